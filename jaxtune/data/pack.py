"""Several short examples in one row, which the model must not see each other through.

"segments" numbers a row's examples from 1: attention and positions stay within a segment, and no
segment's first token is a target, since what comes before it belongs to another example.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence

import numpy as np

from jaxtune.data.split import Split
from jaxtune.errors import UserError

_ARRAYS = {"tokens", "mask", "weights"}


def pack(split: Split, max_length: int | None = None) -> tuple[Split, dict]:
  """Packs examples into rows of max_length, the longest first, each where the least room is left.

  Rows hold examples of one task. An example of the packed split is a row: its `rows` are
  {"examples": numbers in `split`, in the order of their segments}, its `where` their places, its
  `references` the answers that they train on.

  Args:
    max_length: tokens of a row; None for as many as the split is wide.

  Returns:
    The packed split, and {"examples", "rows", "tokens", "efficiency": tokens / (rows x
    max_length), "unpacked": what that was}.

  Raises:
    UserError: an objective that does not predict tokens; an example longer than a row.
  """
  if set(split.arrays) != _ARRAYS or split.arrays["weights"].ndim != 2:
    raise UserError(
      "data.pack is for objective 'sft' of decoders: its examples are tokens, mask and weights, "
      f"these are {', '.join(split.arrays)}"
    )
  width = max_length or split.width
  lengths = split.arrays["mask"].sum(1).tolist()
  if max(lengths) > width:
    longest = int(np.argmax(lengths))
    raise UserError(
      f"{split.where[longest]}: {lengths[longest]} tokens do not fit into packed rows of {width}: "
      "raise data.max_length"
    )
  tasks = split.tasks or [""] * split.examples
  members = [
    row
    for task in dict.fromkeys(tasks)
    for row in _best_fit(lengths, [n for n, one in enumerate(tasks) if one == task], width)
  ]
  tokens = sum(lengths)
  return _packed(split, members, width), {
    "examples": split.examples,
    "rows": len(members),
    "tokens": tokens,
    "efficiency": tokens / (len(members) * width),
    "unpacked": tokens / split.arrays["mask"].size,
  }


def _best_fit(lengths: Sequence[int], chosen: Sequence[int], width: int) -> list[list[int]]:
  """Decides which examples share a row: best fit, decreasing."""
  rows: list[list[int]] = []
  open_rows: dict[int, list[int]] = {}  # room left: rows with that much, the oldest last
  rooms: list[int] = []  # its keys, sorted
  for example in sorted(chosen, key=lambda n: (-lengths[n], n)):
    length = lengths[example]
    at = bisect.bisect_left(rooms, length)
    if at == len(rooms):
      row, room = len(rows), width
      rows.append([])
    else:
      room = rooms[at]
      row = open_rows[room].pop()
      if not open_rows[room]:
        del open_rows[room], rooms[at]
    rows[row].append(example)
    left = room - length
    if left not in open_rows:
      open_rows[left] = []
      bisect.insort(rooms, left)
    open_rows[left].append(row)
  return rows


def _packed(split: Split, members: Sequence[Sequence[int]], width: int) -> Split:
  padding = split.arrays["tokens"][~split.arrays["mask"]]
  fill = padding[0] if len(padding) else 0
  arrays = {
    "tokens": np.full((len(members), width), fill, np.int32),
    "mask": np.zeros((len(members), width), bool),
    "weights": np.zeros((len(members), width), np.float32),
    "segments": np.zeros((len(members), width), np.int32),
  }
  for row, examples in enumerate(members):
    start = 0
    for segment, example in enumerate(examples, 1):
      real_T = split.arrays["mask"][example]
      here = slice(start, start + int(real_T.sum()))
      for name in _ARRAYS:
        arrays[name][row, here] = split.arrays[name][example, real_T]
      arrays["segments"][row, here] = segment
      arrays["weights"][row, start] = 0.0
      start = here.stop
  return Split(
    arrays,
    prompts=[[] for _ in members],
    references=[[one for n in examples for one in split.references[n][:1]] for examples in members],
    rows=[{"examples": list(examples)} for examples in members],
    where=[" + ".join(split.where[n] for n in examples) for examples in members],
    tasks=split.tasks and [split.tasks[examples[0]] for examples in members],
  )
