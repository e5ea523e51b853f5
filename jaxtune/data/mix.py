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
  """Examples of one task, drawn in permutations of their own.

  Attributes:
    task: its name.
    key: tells its permutations from those of other pools.
    rows: (M, K), the rows of the split that are the K variants of each of M examples.
  """

  task: str
  key: int
  rows: np.ndarray


class BatchKind(NamedTuple):
  """Batches of one shape.

  Attributes:
    share: of the steps.
    pools: what its rows are drawn from, and shares: of each pool in the kind's draws.
    widths: what the arrays are cropped to: {"tokens": T, ...}; {} for no cropping.
  """

  share: float
  pools: tuple[Pool, ...]
  shares: tuple[float, ...]
  widths: dict[str, int]


Order = tuple[BatchKind, ...]


def shares(
  sizes: Mapping[str, int],
  mixture: str | Mapping[str, float] = "proportional",
  temperature: float = 1.0,
  cap: int | None = None,
) -> dict[str, float]:
  """Decides each task's share of the draws; they sum to 1.

  Args:
    sizes: examples of each task, n.
    mixture: "proportional": n; "capped": min(n, cap); "equal"; or a weight for every task, where 0
      leaves a task out.
    temperature: T, which raises these to 1/T: 1 as they are, large towards equal (Raffel et al.
      2020, section 3.5.2). Not for given weights.
    cap: for "capped".

  Raises:
    UserError: a cap without "capped" or the other way round; weights of other tasks than there are.
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
    weights = {task: min(size, most) ** (1 / temperature) for task, size in sizes.items()}
  total = sum(weights.values())
  return {task: weight / total for task, weight in weights.items()}


def order(
  rows_NK: np.ndarray,
  tasks: Sequence[str],
  share: Mapping[str, float],
  buckets_N: np.ndarray,
  widths: Sequence[dict[str, int]],
  batches: str = "mixed",
) -> Order:
  """Lays out pools by task and bucket.

  Args:
    rows_NK: the K variants of each example.
    tasks: of each example; share: of each task, from `shares`.
    buckets_N: of each example; widths: of each bucket, the widest first, so that a batch too large
      for the device shows at the first step.
    batches: "mixed": a batch holds all tasks by their shares; "task": a batch holds one.
  """
  names, task_N = np.unique(np.asarray(tasks), return_inverse=True)
  kinds, keys = [], itertools.count()
  for bucket, cropped in enumerate(widths):
    pools, weights = [], []  # a weight is a pool's share of all draws
    for t, name in enumerate(map(str, names)):
      members = np.flatnonzero((buckets_N == bucket) & (task_N == t))
      if len(members):
        pools.append(Pool(name, next(keys), rows_NK[members]))
        weights.append(float(share[name] * len(members) / np.sum(task_N == t)))
    size = len(pools) if batches == "mixed" else 1  # pools of one kind of batch
    for at in range(0, len(pools), size):
      group = slice(at, at + size)
      total = sum(weights[group])
      inner = tuple(weight / total if total else 0.0 for weight in weights[group])
      kinds.append(BatchKind(total, tuple(pools[group]), inner, cropped))
  return tuple(kinds)


def draw(order: Order, seed: int, step: int, batch_size: int) -> tuple[BatchKind, np.ndarray]:
  """Returns the kind of the batch of a step, and its rows (B,)."""
  (which,), (turn,) = spread(tuple(kind.share for kind in order), step, 1)
  kind = order[which]
  pool_B, position_B = spread(kind.shares, int(turn) * batch_size, batch_size)
  rows_B = np.empty(batch_size, np.int64)
  for k in np.unique(pool_B):
    here_B = pool_B == k
    rows_B[here_B] = _rows(kind.pools[k], seed, position_B[here_B])
  return kind, rows_B


def permuted(count: int, seed: int, draws_B: np.ndarray, key: int = 0) -> tuple[np.ndarray, ...]:
  """Reads draws from permutations of `count` examples, one an epoch: (epoch_B, example_B)."""
  epoch_B, position_B = np.divmod(draws_B, count)
  example_B = np.empty(len(draws_B), np.int64)
  for epoch in np.unique(epoch_B):
    here_B = epoch_B == epoch
    example_B[here_B] = permutation(count, seed, int(epoch), key)[position_B[here_B]]
  return epoch_B, example_B


@functools.lru_cache(maxsize=128)
def permutation(count: int, seed: int, epoch: int, key: int = 0) -> np.ndarray:
  order_N = _generator(seed, epoch, key).permutation(count).astype(np.int32)
  order_N.flags.writeable = False
  return order_N


@functools.lru_cache(maxsize=16)
def spread(shares: tuple[float, ...], start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
  """Assigns each of the turns start .. start + count - 1 to a share.

  Turn i falls at the fraction i / golden ratio of the unit interval, which the shares divide: after
  any number of turns each has had its part of them but for a few.

  Returns:
    (whose_B, the share that each turn belongs to; before_B, how many turns it had before).
  """
  bounds = _bounds(shares)
  turns_B = np.arange(start, start + count, dtype=np.uint64)
  inner = np.array(bounds[:-1], np.uint64)
  whose_B = np.searchsorted(inner, turns_B * np.uint64(_GOLDEN), side="right")
  before_B = np.empty(count, np.int64)
  had = _dealt(bounds, start)
  for k in np.unique(whose_B):
    here_B = whose_B == k
    before_B[here_B] = had[k] + np.arange(here_B.sum())
  return whose_B, before_B


def counts(order: Order, steps: int, batch_size: int) -> dict[str, dict]:
  """Counts what a run of so many steps draws of each task.

  Returns:
    {task: {"share": wanted, "examples", "drawn", "epochs", "fewest" and "most" times an example
    is drawn}}.
  """
  tasks: dict[str, dict] = {}
  turns = _dealt(_bounds(tuple(kind.share for kind in order)), steps)
  for kind, turn in zip(order, turns, strict=True):
    drawn = _dealt(_bounds(kind.shares), turn * batch_size)
    for pool, share, times in zip(kind.pools, kind.shares, drawn, strict=True):
      size = len(pool.rows)
      fewest, most = times // size, -(-times // size)
      nothing = {"share": 0.0, "examples": 0, "drawn": 0, "fewest": fewest, "most": most}
      task = tasks.setdefault(pool.task, nothing)
      task["share"] += kind.share * share
      task["examples"] += size
      task["drawn"] += times
      task["fewest"], task["most"] = min(task["fewest"], fewest), max(task["most"], most)
  for task in tasks.values():
    task["epochs"] = task["drawn"] / task["examples"]
  return tasks


def check(order: Order, steps: int, batch_size: int) -> None:
  """Raises UserError where a task of the mixture would never be drawn; () is no mixture."""
  tasks = counts(order, steps, batch_size) if order else {}
  starved = {name: task for name, task in tasks.items() if task["share"] > 0 and not task["drawn"]}
  if starved:
    listed = ", ".join(f"{name} ({100 * task['share']:.3g}%)" for name, task in starved.items())
    raise UserError(
      f"{len(starved)} of {len(tasks)} tasks would get none of the {steps * batch_size} examples "
      f"drawn in {steps} steps: {listed}; raise train.steps or data.temperature, set data.mixture "
      "to 'equal', or give them more weight (0 leaves a task out)"
    )


def _rows(pool: Pool, seed: int, draws_B: np.ndarray) -> np.ndarray:
  """Takes another variant of each example in every epoch, until all K have come."""
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
  """Divides 2^64 by shares, which need not sum to 1."""
  running = np.cumsum(shares)
  inner = (min(int(x / running[-1] * 2**64), 2**64 - 1) for x in running[:-1].tolist())
  return (*inner, 2**64)


def _dealt(bounds: tuple[int, ...], turns: int) -> list[int]:
  """Counts how many of the first `turns` each has had."""
  # i * G mod M < bound exactly where floor(iG / M) exceeds floor((iG - bound) / M).
  whole = _floor_sum(turns, 2**64, _GOLDEN, 0)
  below = [0] + [whole - _floor_sum(turns, 2**64, _GOLDEN, -bound) for bound in bounds]
  return [high - low for low, high in zip(below, below[1:], strict=False)]


def _floor_sum(n: int, m: int, a: int, b: int) -> int:
  """Sums floor((a i + b) / m) over i < n, as Euclid's algorithm would."""
  total = 0
  while n:
    total += n * (n - 1) // 2 * (a // m) + n * (b // m)
    n, b, m, a = *divmod(a % m * n + b % m, m), a % m, m
  return total
