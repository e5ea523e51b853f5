"""Packs several short examples into one row, in which no example sees another.

"segments" numbers a row's examples from 1. Attention and positions stay within a segment, and the
first token of a segment is no target, since the token before it belongs to another example.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence

import numpy as np

from jaxtune.data.padding import pad
from jaxtune.data.split import Split
from jaxtune.errors import UserError


def pack(split: Split, max_length: int | None = None) -> tuple[Split, dict]:
  """Packs examples into rows of max_length, the longest first, each where the least room is left.

  A row holds examples of one task, and is one example of the packed split. Its entry in `rows` is
  {"examples": their numbers in `split`, in the order of their segments}, that in `where` names
  their places, and that in `references` holds the answers that they train on.

  Args:
    max_length: the tokens of a row; None for as many as the split is wide.

  Returns:
    The packed split, and {"examples", "rows", "tokens", "efficiency": tokens / (rows x
    max_length), "unpacked": the efficiency of `split`}.

  Raises:
    UserError: an objective that does not predict tokens; an example longer than a row.
  """
  if {*split.arrays} != {"tokens", "mask", "weights"} or split.arrays["weights"].ndim != 2:
    raise UserError(
      "data.pack is for objective 'sft' of decoders: its examples are tokens, mask and weights, "
      f"these are {', '.join(split.arrays)}"
    )
  width = max_length or split.width
  lengths = split.lengths["tokens"].tolist()
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
  """Returns the examples of each row, by the algorithm best fit decreasing."""
  rows: list[list[int]] = []
  by_room: dict[int, list[int]] = {}  # tokens left: rows that have so many, the newest last
  rooms: list[int] = []  # the keys of `by_room`, sorted
  for example in sorted(chosen, key=lambda n: (-lengths[n], n)):
    length = lengths[example]
    at = bisect.bisect_left(rooms, length)
    if at == len(rooms):
      row, room = len(rows), width
      rows.append([])
    else:
      room = rooms[at]
      row = by_room[room].pop()
      if not by_room[room]:
        del by_room[room], rooms[at]
    rows[row].append(example)
    if room - length not in by_room:
      bisect.insort(rooms, room - length)
    by_room.setdefault(room - length, []).append(row)
  return rows


def _packed(split: Split, members: Sequence[Sequence[int]], width: int) -> Split:
  """Makes a row of each list of examples, which follow each other without a gap."""
  tokens_XT, mask_XT = split.arrays["tokens"], split.arrays["mask"]
  weights_XT = split.arrays["weights"].copy()
  weights_XT[:, 0] = 0.0
  lengths_X = mask_XT.sum(1)
  tokens = [tokens_XT[examples][mask_XT[examples]] for examples in members]
  weights = [weights_XT[examples][mask_XT[examples]] for examples in members]
  segments = [np.arange(1, len(row) + 1).repeat(lengths_X[row]) for row in members]
  fill = next(iter(tokens_XT[~mask_XT]), 0)
  segments_XT = pad(segments, width)
  return Split(
    {
      "tokens": pad(tokens, width, fill),
      "mask": segments_XT > 0,
      "weights": pad(weights, width, 0, np.float32),
      "segments": segments_XT,
    },
    prompts=[[] for _ in members],
    references=[[one for n in examples for one in split.references[n][:1]] for examples in members],
    rows=[{"examples": list(examples)} for examples in members],
    where=[" + ".join(split.where[n] for n in examples) for examples in members],
    tasks=split.tasks and [split.tasks[examples[0]] for examples in members],
  )
