"""Batches as pure functions of (seed, step): to resume a run, the step's number is enough."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from jaxtune.data import mix
from jaxtune.data.encode.choices import same_folding
from jaxtune.data.padding import PAD_TO, to_widest, width
from jaxtune.data.split import Split
from jaxtune.data.stream import Stream
from jaxtune.errors import UserError

Batch = dict[str, np.ndarray]  # rows of the split's arrays, each (B, ...)


def join(splits: Mapping[str, Split]) -> Split:
  """Joins the splits of several tasks, by name, into one; its `tasks` name the task of each row.

  Raises:
    UserError: splits whose arrays differ in name, type or axes: they are for other objectives.
  """
  names, parts = list(splits), same_folding(list(splits.values()))
  kinds = [{key: (x.dtype, x.ndim) for key, x in part.arrays.items()} for part in parts]
  for name, kind in zip(names, kinds, strict=True):
    if kind != kinds[0]:
      raise UserError(
        f"the tasks {names[0]!r} and {name!r} cannot be mixed: tokenised for different objectives, "
        f"with {', '.join(kinds[0])} and {', '.join(kind)}"
      )
  padded = to_widest([part.arrays for part in parts])
  arrays = {key: np.concatenate([part[key] for part in padded]) for key in padded[0]}
  sizes = [part.examples for part in parts]
  if "example" in arrays:  # it numbers the entries of the lists, which are joined too
    before = np.cumsum([0, *(len(part.rows) for part in parts[:-1])])
    arrays["example"] += np.repeat(before, sizes)
  lists = {
    field: [item for part in parts for item in getattr(part, field)]
    for field in ("prompts", "references", "rows", "where", "choices")
    if getattr(parts[0], field) is not None
  }
  tasks = [name for name, size in zip(names, sizes, strict=True) for _ in range(size)]
  return Split(**lists, arrays=arrays, tasks=tasks)


def arrange(
  split: Split,
  *,
  mixture: str | Mapping[str, float] = "proportional",
  temperature: float = 1.0,
  cap: int | None = None,
  mixture_batches: str = "mixed",
  buckets: int = 1,
  variants: np.ndarray | None = None,
) -> Split:
  """Decides the order in which `batch` draws a split's examples.

  Args:
    mixture, temperature, cap: each task's share; see `mix.shares`.
    mixture_batches: "mixed" if a batch holds all tasks, "task" if it holds one.
    buckets: into how many groups of similar length examples are sorted at most. A batch is drawn
      from one of them, and is as wide as the longest example there needs. Which bucket a step draws
      from does not depend on the seed.
    variants: (X, U), the rows that are U forms of each example, from `templates.variants`. An
      example then comes once an epoch, in every epoch in another form.

  Raises:
    UserError: options that contradict each other, or do not name the tasks that there are.
  """
  rows_XU = np.arange(split.examples)[:, None] if variants is None else np.asarray(variants)
  tasks = [split.tasks[row] for row in rows_XU[:, 0]] if split.tasks else [""] * len(rows_XU)
  share = mix.shares(Counter(tasks), mixture, temperature, cap)
  buckets_X, widths = _bucketed(split, rows_XU, buckets)
  return split._replace(order=mix.order(rows_XU, tasks, share, buckets_X, widths, mixture_batches))


def batch(
  split: Split | Stream, seed: int, step: int, batch_size: int, chosen: Any = slice(None)
) -> Batch:
  """Returns training batch number `step`, counted from 0.

  The order of every epoch is drawn from (seed, epoch), and a batch may begin in one epoch and end
  in the next. No example comes twice before all have come once; in an arranged split, before all of
  its task and bucket have. The batch's shapes depend on the step, never on the seed.

  Args:
    chosen: which of the batch's rows are made; default all.
  """
  if isinstance(split, Stream):
    return {name: x[chosen] for name, x in split.batch(seed, step, batch_size).items()}
  if split.order:
    kind, rows_B = mix.draw(split.order, seed, step, batch_size)
    return _take(split, rows_B[chosen], kind.widths)
  if split.examples < 1 or batch_size < 1:
    raise UserError(
      f"a batch of {batch_size} from {split.examples} examples: both must be at least 1"
    )
  draws_B = step * batch_size + np.arange(batch_size, dtype=np.int64)
  _, rows_B = mix.permuted(split.examples, seed, draws_B)
  return _take(split, rows_B[chosen], {})


def kinds(split: Split | Stream, steps: int, batch_size: int) -> list[tuple[int, Batch]]:
  """Returns a batch of every shape that a run has, with the number of its steps."""
  if not split.order:
    return [(steps, batch(split, 0, 0, batch_size))]
  first = np.zeros(batch_size, np.int64)
  found = mix.kinds(split.order, steps)
  return [(turns, _take(split, first, kind.widths)) for kind, turns in found if turns]


def tokens_seen(split: Split | Stream, seed: int, steps: int, batch_size: int) -> int | None:
  """Counts the tokens, without padding, of the examples that a run draws; None for a stream."""
  if isinstance(split, Stream):
    return None
  masks = [split.arrays[name] for name in ("mask", "inputs_mask") if name in split.arrays]
  tokens_X = sum(mask.reshape(len(mask), -1).sum(1) for mask in masks)
  alone = mix.Pool("", 0, 1.0, np.arange(split.examples)[:, None])
  order = split.order or (mix.BatchKind(1.0, (alone,), {}),)
  return mix.total(order, seed, steps, batch_size, tokens_X)


def sample(split: Split, count: int) -> Split:
  """Returns a split with the arrays of `count` examples only, spread evenly over it."""
  count = min(count, split.examples)
  rows = np.linspace(0, split.examples - 1, count).round().astype(np.int64)
  return split._replace(arrays={name: array[rows] for name, array in split.arrays.items()})


def batches(split: Split, batch_size: int, multiple: int = 1) -> Iterator[Batch]:
  """Yields batches of one shape that hold every example of a split once, in its order.

  The last batch is filled up with copies of its first example, with weight 0. Rows without a real
  token would make attention divide 0 by 0.

  Args:
    multiple: such copies make the number of rows one of it.
  """
  for start in range(0, split.examples, batch_size):
    rows_B = np.arange(start, start + -(-batch_size // multiple) * multiple)
    real_B = rows_B < min(start + batch_size, split.examples)
    taken = _take(split, np.where(real_B, rows_B, start), {})
    weights = taken["weights"]
    real = real_B.reshape(-1, *[1] * (weights.ndim - 1)).astype(np.float32)
    yield taken | {"weights": weights * real}


def _take(split: Split, rows_B: np.ndarray, widths: Mapping[str, int]) -> Batch:
  """Takes rows of all arrays, cropped to `widths`: of "tokens", and of an encoder's "inputs"."""
  taken = {}
  for name, array in split.arrays.items():
    axis = "inputs" if name.startswith("inputs") else "tokens"
    crops = axis in widths and array.ndim > 1 and array.shape[-1] == split.arrays[axis].shape[-1]
    taken[name] = array[rows_B][..., : widths[axis]] if crops else array[rows_B]
  return taken


def _bucketed(
  split: Split, rows_XU: np.ndarray, buckets: int
) -> tuple[np.ndarray, list[dict[str, int]]]:
  """Sorts examples by length into buckets of about equally many.

  Returns:
    (the bucket of each example, the widths of each bucket, the widest first).
  """
  if buckets == 1:
    return np.zeros(len(rows_XU), np.int64), [{}]
  lengths = split.lengths
  length_X = sum(lengths.values())[rows_XU].max(-1)
  rounded_X = -(-length_X // PAD_TO) * PAD_TO
  levels = np.arange(1, buckets + 1) / buckets
  edges = np.unique(np.quantile(rounded_X, levels, method="higher"))
  buckets_X = len(edges) - 1 - np.searchsorted(edges, rounded_X)
  members = [rows_XU[buckets_X == bucket] for bucket in range(len(edges))]
  return buckets_X, [
    {
      name: width(int(lengths_X[rows].max()), split.arrays[name].shape[-1])
      for name, lengths_X in lengths.items()
    }
    for rows in members
  ]
