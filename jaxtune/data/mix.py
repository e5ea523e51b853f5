"""The order of examples in training: mixtures of tasks, buckets of lengths, variants of an example.

A draw is a function of (seed, step). The shape of a batch, and how many of its rows a task has, are
the same for every seed: trials with different seeds run in one compiled step.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxtune.errors import UserError, nearest


class Pool(NamedTuple):
  """Examples of one task in one bucket, drawn in permutations of their own.

  Attributes:
    task: its name.
    key: its number; pools with different keys have different permutations.
    share: its part of the rows of its kind of batch.
    rows: (M, U), the rows of the split that are the U variants of each of M examples.
  """

  task: str
  key: int
  share: float
  rows: np.ndarray


class BatchKind(NamedTuple):
  """Batches of one shape.

  Attributes:
    share: their part of the steps.
    pools: what their rows are drawn from.
    widths: what their arrays are cropped to, {"tokens": T, ...}; {} for no cropping.
  """

  share: float
  pools: tuple[Pool, ...]
  widths: dict[str, int]


Order = tuple[BatchKind, ...]


def shares(
  sizes: Mapping[str, int],
  mixture: str | Mapping[str, float] = "proportional",
  temperature: float = 1.0,
  cap: int | None = None,
) -> dict[str, float]:
  """Returns each task's share of the draws; the shares sum to 1.

  Args:
    sizes: the number of examples of each task, n.
    mixture: what the shares are proportional to: "proportional" to n, "capped" to min(n, cap),
      "equal" to 1; or a weight for every task, where 0 leaves a task out.
    temperature: T, the numbers are raised to 1/T. 1 leaves them as they are, and the larger T is,
      the more equal the shares are (Raffel et al. 2020, section 3.5.2). Weights are not raised.
    cap: the most examples that a task counts for with "capped"; else None.

  Raises:
    UserError: a cap without "capped", or "capped" without a cap; weights that do not name each
      task, or that are all 0.
  """
  if (cap is not None) != (mixture == "capped"):
    raise UserError(
      f"data.cap is {cap} with data.mixture={mixture!r}, expected the most examples that a task "
      "counts for with 'capped', and None with any other"
    )
  if isinstance(mixture, Mapping):
    for task in mixture:
      if task not in sizes:
        raise UserError(f"data.mixture names the task {task!r}; {nearest(task, sizes)}")
    if missing := [task for task in sizes if task not in mixture]:
      raise UserError(f"data.mixture has no weight for {', '.join(missing)}: 0 leaves a task out")
    if not any(mixture.values()):
      raise UserError(f"data.mixture is {dict(mixture)}, expected a weight above 0")
    weights = {task: float(mixture[task]) for task in sizes}
  else:
    most = {"proportional": max(sizes.values()), "capped": cap, "equal": 1}[mixture]
    counted = {task: min(size, most) for task, size in sizes.items()}
    largest = max(counted.values())  # no power overflows, and one of 0 would leave its task out
    weights = {task: max((n / largest) ** (1 / temperature), 1e-300) for task, n in counted.items()}
  total = sum(weights.values())
  return {task: weight / total for task, weight in weights.items()}


def order(
  rows_XU: np.ndarray,
  tasks: Sequence[str],
  share: Mapping[str, float],
  buckets_X: np.ndarray,
  widths: Sequence[dict[str, int]],
  batches: str = "mixed",
) -> Order:
  """Divides examples into pools by task and bucket, and pools into kinds of batches.

  Args:
    rows_XU: the rows of the split that are the U variants of each example.
    tasks: the task of each example.
    share: the share of each task, from `shares`.
    buckets_X: the bucket of each example.
    widths: what each bucket is cropped to, the widest first, so that a batch that is too large for
      the device fails at the first step.
    batches: "mixed" for batches that hold all tasks by their shares, "task" for one task in each.
  """
  names, task_X = np.unique(np.asarray(tasks), return_inverse=True)
  kinds, keys = [], itertools.count()
  for bucket, cropped in enumerate(widths):
    pools = []  # `share` is of all draws here, and of one kind's below
    for t, name in enumerate(map(str, names)):
      members_M = np.flatnonzero((buckets_X == bucket) & (task_X == t))
      if len(members_M):
        part = float(share[name] * len(members_M) / np.sum(task_X == t))
        pools.append(Pool(name, next(keys), part, rows_XU[members_M]))
    for group in [pools] if batches == "mixed" else [[pool] for pool in pools]:
      total = sum(pool.share for pool in group)
      inner = [pool._replace(share=pool.share / total if total else 0.0) for pool in group]
      kinds.append(BatchKind(total, tuple(inner), cropped))
  return tuple(kinds)


def draw(order: Order, seed: int, step: int, batch_size: int) -> tuple[BatchKind, np.ndarray]:
  """Returns the kind of the batch of a step, and its rows (B,)."""
  (number,), (turn,) = assign_turns(_shares(order), step, 1)
  kind = order[number]
  pool_B, position_B = assign_turns(_shares(kind.pools), int(turn) * batch_size, batch_size)
  rows_B = np.empty(batch_size, np.int64)
  for pool in np.unique(pool_B):
    chosen_B = pool_B == pool
    rows_B[chosen_B] = _rows(kind.pools[pool], seed, position_B[chosen_B])
  return kind, rows_B


def _shares(parts: Sequence[BatchKind] | Sequence[Pool]) -> tuple[float, ...]:
  return tuple(part.share for part in parts)


def permuted(count: int, seed: int, draws_B: np.ndarray, key: int = 0) -> tuple[np.ndarray, ...]:
  """Draws from `count` examples, in every epoch in another order: (epoch_B, example_B).

  Args:
    draws_B: the numbers of the draws, counted from the first of the run.
    key: where examples are drawn from several sets, the number of the set.
  """
  epoch_B, position_B = np.divmod(draws_B, count)
  example_B = np.empty(len(draws_B), np.int64)
  for epoch in np.unique(epoch_B):
    chosen_B = epoch_B == epoch
    example_B[chosen_B] = permutation(count, seed, int(epoch), key)[position_B[chosen_B]]
  return epoch_B, example_B


@functools.lru_cache(maxsize=128)
def permutation(count: int, seed: int, epoch: int, key: int = 0) -> np.ndarray:
  """Returns the order of `count` examples in an epoch, (X,) int32, which cannot be written to."""
  order_X = _generator(seed, epoch, key).permutation(count).astype(np.int32)
  order_X.flags.writeable = False
  return order_X


@functools.lru_cache(maxsize=16)
def assign_turns(
  shares: tuple[float, ...], start: int, count: int
) -> tuple[np.ndarray, np.ndarray]:
  """Gives each of the turns start .. start + count - 1 to one of W shares.

  The shares divide the interval from 0 to 1, and turn i belongs to the share in which the
  fractional part of i / golden ratio lies. So after any number of turns, the number of those that a
  share has had differs from its part by a few at most.

  Returns:
    (whose_B, the number of the share that a turn belongs to; before_B, how many of the turns before
    it belong to the same share).
  """
  turns_B = np.arange(start, start + count, dtype=np.uint64)
  inner = np.array(_bounds(shares)[:-1], np.uint64)
  whose_B = np.searchsorted(inner, turns_B * np.uint64(_GOLDEN), side="right")
  had_BW = _turns_per_share(shares, start) + np.cumsum(
    whose_B[:, None] == np.arange(len(shares)), axis=0
  )
  return whose_B, had_BW[np.arange(count), whose_B] - 1


def kinds(order: Order, steps: int) -> list[tuple[BatchKind, int]]:
  """Returns each kind of batch with how many of so many steps draw one."""
  return list(zip(order, _turns_per_share(_shares(order), steps), strict=True))


def total(order: Order, seed: int, steps: int, batch_size: int, values_X: np.ndarray) -> int:
  """Sums a whole number of each row over all rows that a run of so many steps draws."""
  found = 0
  for kind, turns in kinds(order, steps):
    drawn = _turns_per_share(_shares(kind.pools), turns * batch_size)
    for pool, draws in zip(kind.pools, drawn, strict=True):
      size, variants = pool.rows.shape
      epochs, rest = divmod(draws, size)
      # Epochs that are a multiple of the number of variants apart draw the same rows.
      whole = [(e, size, len(range(e, epochs, variants))) for e in range(min(epochs, variants))]
      for epoch, count, times in [*whole, (epochs, rest, 1)]:
        rows = _rows(pool, seed, epoch * size + np.arange(count))
        found += times * int(values_X[rows].sum())
  return found


def counts(order: Order, steps: int, batch_size: int) -> dict[str, dict]:
  """Counts what a run of so many steps draws of each task.

  Returns:
    {task: {"share": of the draws, as it should be, "examples": how many the task has, "drawn": how
    many are drawn, "epochs": drawn / examples, "fewest" and "most": times that an example is
    drawn}}.
  """
  tasks: dict[str, dict] = {}
  for kind, turns in kinds(order, steps):
    drawn = _turns_per_share(_shares(kind.pools), turns * batch_size)
    for pool, times in zip(kind.pools, drawn, strict=True):
      size = len(pool.rows)
      fewest, most = times // size, -(-times // size)
      nothing = {"share": 0.0, "examples": 0, "drawn": 0, "fewest": fewest, "most": most}
      task = tasks.setdefault(pool.task, nothing)
      task["share"] += kind.share * pool.share
      task["examples"] += size
      task["drawn"] += times
      task["fewest"], task["most"] = min(task["fewest"], fewest), max(task["most"], most)
  for task in tasks.values():
    task["epochs"] = task["drawn"] / task["examples"]
  return tasks


def check(order: Order, steps: int, batch_size: int) -> None:
  """Raises UserError for a task that would never be drawn; without a mixture the order is ()."""
  tasks = counts(order, steps, batch_size) if order else {}
  starved = {name: task for name, task in tasks.items() if task["share"] > 0 and not task["drawn"]}
  if starved:
    listed = ", ".join(f"{name} ({100 * task['share']:.3g}%)" for name, task in starved.items())
    raise UserError(
      f"{len(starved)} of {len(tasks)} tasks would get none of the {steps * batch_size} examples "
      f"that are drawn: {listed}; raise train.steps or data.temperature, set data.mixture to "
      "'equal', or give them more weight (0 leaves a task out)"
    )


def _rows(pool: Pool, seed: int, draws_B: np.ndarray) -> np.ndarray:
  """Returns the rows of draws from a pool: in every epoch another of the U variants of an example.

  The variant of the first epoch is drawn, and the others follow in turn.
  """
  count, variants = pool.rows.shape
  epoch_B, example_B = permuted(count, seed, draws_B, pool.key)
  if variants == 1:
    return pool.rows[example_B, 0]
  first_B = _first_variants(count, variants, seed, pool.key)[example_B]
  return pool.rows[example_B, (first_B + epoch_B) % variants]


@functools.lru_cache(maxsize=128)
def _first_variants(count: int, variants: int, seed: int, key: int) -> np.ndarray:
  return _generator(seed, 2**32 - 1, key).integers(0, variants, count)


def _generator(seed: int, epoch: int, key: int) -> np.random.Generator:
  return np.random.Generator(
    np.random.Philox(key=np.array([seed % 2**64, epoch + (key << 32)], np.uint64))
  )


_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio


def _bounds(shares: tuple[float, ...]) -> tuple[int, ...]:
  """Divides 0 .. 2^64 by shares, which need not sum to 1; returns where each of them ends."""
  running = np.cumsum(shares)
  whole = running[-1] or 1.0  # all are 0 in batches of tasks that are left out: none is drawn
  inner = (min(int(x / whole * 2**64), 2**64 - 1) for x in running[:-1].tolist())
  return (*inner, 2**64)


def _turns_per_share(shares: tuple[float, ...], turns: int) -> list[int]:
  """Counts how many of the first `turns` each share has had."""
  # i * G mod M < bound exactly where floor(iG / M) exceeds floor((iG - bound) / M).
  whole = _floor_sum(turns, 2**64, _GOLDEN, 0)
  below = [whole - _floor_sum(turns, 2**64, _GOLDEN, -bound) for bound in _bounds(shares)]
  return np.diff(below, prepend=0).tolist()


def _floor_sum(n: int, m: int, a: int, b: int) -> int:
  """Returns the sum of floor((a i + b) / m) over 0 <= i < n, in as many steps as Euclid's gcd."""
  total = 0
  while n:
    total += n * (n - 1) // 2 * (a // m) + n * (b // m)
    n, b, m, a = *divmod(a % m * n + b % m, m), a % m, m
  return total
