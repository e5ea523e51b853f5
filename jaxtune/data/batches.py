"""Batches as pure functions: resuming a run needs the step's number and nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from jaxtune.data import mix
from jaxtune.data.encode.choices import alike
from jaxtune.data.padding import PAD_TO, grow
from jaxtune.data.split import Split
from jaxtune.data.stream import Stream
from jaxtune.errors import UserError

Batch = dict[str, np.ndarray]  # the split's arrays, rows (B, ...)


def join(splits: Mapping[str, Split]) -> Split:
  """Joins the splits of several tasks, by name, into one; its `tasks` name the task of each row.

  Raises:
    UserError: splits whose arrays differ, which cannot share an objective.
  """
  splits = dict(zip(splits, alike(list(splits.values())), strict=True))
  first, *others = splits
  kinds = lambda name: {key: (x.dtype, x.ndim) for key, x in splits[name].arrays.items()}
  for other in others:
    if kinds(other) != kinds(first):
      raise UserError(
        f"the tasks {first!r} and {other!r} cannot be mixed: tokenised for different objectives, "
        f"with {', '.join(kinds(first))} and {', '.join(kinds(other))}"
      )
  numbered = _renumber(splits.values())
  lists = {
    field: [item for split in numbered for item in getattr(split, field)]
    for field in Split._fields
    if field not in ("arrays", "tasks", "order") and getattr(splits[first], field) is not None
  }
  tasks = [name for name, split in splits.items() for _ in range(split.examples)]
  return Split(**lists, arrays=_concatenate([split.arrays for split in numbered]), tasks=tasks)


def _renumber(splits: Iterable[Split]) -> list[Split]:
  """Numbers the examples that have several windows on from split to split, as in joined lists."""
  numbered, before = [], 0
  for split in splits:
    if "example" in split.arrays:
      split = split._replace(arrays=split.arrays | {"example": split.arrays["example"] + before})
    numbered.append(split)
    before += len(split.rows)
  return numbered


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
    mixture_batches: "mixed" or "task": whether a batch holds all tasks or one.
    buckets: lengths to sort examples into, at the most; a batch is of one bucket, and as wide as
      that. Which bucket a step takes depends on no seed.
    variants: (N, K), rows that are K forms of one example, as `templates.variants` gives them: an
      example comes once an epoch, every epoch in another form.

  Raises:
    UserError: options that are unknown, out of range or contradict each other.
  """
  rows_NK = np.arange(split.examples)[:, None] if variants is None else np.asarray(variants)
  tasks = [split.tasks[row] for row in rows_NK[:, 0]] if split.tasks else [""] * len(rows_NK)
  share = mix.shares(Counter(tasks), mixture, temperature, cap)
  buckets_N, widths = _bucketed(split, rows_NK, buckets)
  return split._replace(order=mix.order(rows_NK, tasks, share, buckets_N, widths, mixture_batches))


def batch(split: Split | Stream, seed: int, step: int, batch_size: int) -> Batch:
  """Takes training batch number `step`, counted from 0.

  Every epoch is a permutation of its own, drawn from (seed, epoch); batches run on across its end.
  No example comes twice before all have come once; in an arranged split, none of its task and
  bucket. The batch's shapes depend on the step, never on the seed.
  """
  if isinstance(split, Stream):
    return split.batch(seed, step, batch_size)
  if not split.order:
    return _take(split, indices(split.examples, seed, step, batch_size))
  kind, rows_B = mix.draw(split.order, seed, step, batch_size)
  return _take(split, rows_B, kind.widths)


def indices(count: int, seed: int, step: int, batch_size: int) -> np.ndarray:
  """Names the rows of batch number `step` among `count` examples."""
  if count < 1 or batch_size < 1:
    raise UserError(f"a batch of {batch_size} from {count} examples: both must be at least 1")
  draws_B = step * batch_size + np.arange(batch_size, dtype=np.int64)
  return mix.permuted(count, seed, draws_B)[1]


def sample(split: Split, count: int) -> Split:
  """Takes the arrays of `count` examples, evenly over the split."""
  count = min(count, split.examples)
  rows = np.linspace(0, split.examples - 1, count).round().astype(np.int64)
  return split._replace(arrays={name: array[rows] for name, array in split.arrays.items()})


def batches(split: Split, batch_size: int, buckets: int = 1) -> Iterator[Batch]:
  """Walks through a split once; see `walk`."""
  return (taken for _, taken in walk(split, batch_size, buckets))


def walk(split: Split, batch_size: int, buckets: int = 1) -> Iterator[tuple[np.ndarray, Batch]]:
  """Walks through a split once: in order and one shape, or longest first in `buckets` widths.

  The last batch is filled up with copies of its first example with weight 0: a row without any real
  token would make attention divide 0 by 0.

  Yields:
    (rows (B,), the batch): the examples' numbers in the split, -1 where filled up.
  """
  rows_N = np.arange(split.examples)
  buckets_N, widths = _bucketed(split, rows_N[:, None], buckets)
  if buckets > 1:
    rows_N = np.argsort(-_lengths(split, "mask") - _lengths(split, "inputs_mask"), kind="stable")
  for start in range(0, len(rows_N), batch_size):
    taken = rows_N[start : start + batch_size]
    rows_B = np.resize(taken, batch_size)
    rows_B[len(taken) :] = taken[0]
    real_B = np.arange(batch_size) < len(taken)
    filled = _take(split, rows_B, widths[buckets_N[taken].min()])
    weights = filled["weights"]
    real = real_B.reshape(-1, *[1] * (weights.ndim - 1)).astype(np.float32)
    yield np.where(real_B, rows_B, -1), filled | {"weights": weights * real}


def shapes(split: Split) -> list[dict]:
  """Lists the shapes of an arranged split's batches.

  Returns:
    For each: "share" of the steps, "examples", "widths" and "real", the part of the tokens computed
    that is not padding.
  """
  kinds = []
  for kind in split.order:
    rows = np.concatenate([pool.rows.ravel() for pool in kind.pools])
    widths = kind.widths or _widest(split, np.arange(split.examples))
    real = sum(_lengths(split, _MASKS[name])[rows].mean() for name in widths)
    examples = sum(len(pool.rows) for pool in kind.pools)
    kinds.append({
      "share": kind.share, "examples": examples, "widths": widths,
      "real": float(real / sum(widths.values())),
    })  # fmt: skip
  return kinds


_MASKS = {"tokens": "mask", "inputs": "inputs_mask"}  # of an axis: what says where it is real


def _take(split: Split, rows_B: np.ndarray, widths: Mapping[str, int] | None = None) -> Batch:
  taken = {name: array[rows_B] for name, array in split.arrays.items()}
  if not widths:
    return taken
  return {
    name: x[..., : widths[_axis(name)]]
    if x.ndim > 1 and x.shape[-1] == split.arrays[_axis(name)].shape[-1]
    else x
    for name, x in taken.items()
  }


def _axis(name: str) -> str:
  """Names the axis that an array's last one is: the tokens', or an encoder's inputs'."""
  return "inputs" if name.startswith("inputs") else "tokens"


def _lengths(split: Split, mask: str) -> np.ndarray:
  """Counts each row's tokens: of its longest answer where it has several; 0 without such a mask."""
  if mask not in split.arrays:
    return np.zeros(split.examples, np.int64)
  return split.arrays[mask].sum(-1).reshape(split.examples, -1).max(-1)


def _widest(split: Split, rows: np.ndarray) -> dict[str, int]:
  """Takes the widths that hold all of some rows, in multiples of 8."""
  widths = {}
  for name, mask in _MASKS.items():
    if name in split.arrays:
      most = int(_lengths(split, mask)[rows].max())
      widths[name] = min(-(-most // PAD_TO) * PAD_TO, split.arrays[name].shape[-1])
  return widths


def _bucketed(
  split: Split, rows_NK: np.ndarray, buckets: int
) -> tuple[np.ndarray, list[dict[str, int]]]:
  """Sorts examples into about equally many of each length: (buckets_N, widths), widest first."""
  if buckets < 1:
    raise UserError(f"data.buckets is {buckets}, expected 1 (one width for all) or more")
  if buckets == 1:
    return np.zeros(len(rows_NK), np.int64), [{}]
  length_N = (_lengths(split, "mask") + _lengths(split, "inputs_mask"))[rows_NK].max(-1)
  rounded_N = -(-length_N // PAD_TO) * PAD_TO
  levels = np.arange(1, buckets + 1) / buckets
  edges = np.unique(np.quantile(rounded_N, levels, method="higher"))
  buckets_N = len(edges) - 1 - np.searchsorted(edges, rounded_N)
  return buckets_N, [_widest(split, rows_NK[buckets_N == one]) for one in range(len(edges))]


def _concatenate(splits: Sequence[Mapping[str, np.ndarray]]) -> Batch:
  """Joins arrays by name along the first axis; the others are padded with zeros to the largest."""
  joined = {}
  for name in splits[0]:
    shapes = [arrays[name].shape[1:] for arrays in splits]
    largest = tuple(map(max, zip(*shapes, strict=True)))
    joined[name] = np.concatenate([grow(arrays[name], largest) for arrays in splits])
  return joined
