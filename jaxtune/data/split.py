"""Tokenised examples, and the counts of them that stand in a report."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxtune.data import mix
from jaxtune.data.padding import PAD_TO

SPLITS = ("train", "validation", "test")


class Split(NamedTuple):
  """Tokenised examples, padded on the right.

  Attributes:
    arrays: the arrays of which batches are made, by name; the first axis is the example, X. For
      sft: "tokens" (X, T) int32, "mask" (X, T) bool, true on real tokens, and "weights" (X, T)
      float32, 1 where the token is a target (the objective shifts them).
    prompts: the ids of each example up to its answer; [] for plain text.
    references: the accepted answers, the trained one first; [] for plain text, and for an
      answer that people did not like.
    rows: the rows as they were read.
    where: the file and line of each.
    tasks: of a mixture, the name of each example's task (as long as the arrays).
    choices: the answers that each example's answer is chosen from, where there are any.
    order: how training draws them, from `batches.arrange`; () if all are drawn alike.
  """

  arrays: dict[str, np.ndarray]
  prompts: list[list[int]]
  references: list[list[str]]
  rows: list[dict]
  where: list[str]
  tasks: list[str] | None = None
  choices: list[list[str]] | None = None
  order: mix.Order = ()

  @property
  def examples(self) -> int:
    """The number of rows of the arrays, X."""
    return len(self.arrays["tokens"])

  @property
  def lengths(self) -> dict[str, np.ndarray]:
    """The number of real "tokens" of each example, (X,), and of "inputs" for an encoder-decoder.

    Of several answers to choose from, the longest counts.
    """
    masks = {"tokens": "mask", "inputs": "inputs_mask"}
    counts = {key: self.arrays[mask].sum(-1) for key, mask in masks.items() if mask in self.arrays}
    return {key: x.max(-1) if x.ndim == 2 else x for key, x in counts.items()}

  @property
  def width(self) -> int:
    """The number of tokens of a padded row, T."""
    return self.arrays["tokens"].shape[-1]

  @property
  def own_choices(self) -> bool:
    """Whether rows of a task have choices of their own, which are no classes of the task."""
    if self.choices is None:
      return False
    texts: dict[str, set[str]] = defaultdict(set)
    most: dict[str, int] = defaultdict(int)
    for task, one in zip(self.tasks or [""] * len(self.choices), self.choices, strict=True):
      texts[task] |= {*one}
      most[task] = max(most[task], len(one))
    return any(len(texts[task]) > most[task] for task in most)

  def units(self, predicted: Sequence[int] = ()) -> dict[str, np.ndarray]:
    """Numbers the units that are resampled as a whole, as their examples are alike.

    A unit is a question with its windows, or a prompt with all answers to it that people judged.

    Args:
      predicted: the numbers of the examples that predictions are made for.

    Returns:
      {"rows": the unit of each row of the arrays, (X,), "predictions": of each prediction}, without
      an entry where each is a unit of its own.
    """
    if "example" in self.arrays:
      return {"rows": self.arrays["example"]}
    if "reference" not in self.arrays:
      return {}
    known: dict[tuple, int] = {}
    units_X = np.array([known.setdefault(tuple(prompt), len(known)) for prompt in self.prompts])
    return {"rows": units_X, "predictions": units_X[list(predicted)]}


def most_targets(splits: Sequence[Split]) -> int | None:
  """Returns how many targets the row with the most has, rounded up as the lengths of rows are.

  None where that is above three quarters of a row, so that few positions are without a target.
  """
  splits = list({id(split): split for split in splits}.values())  # trials often share one
  most = max(int((split.arrays["weights"][..., 1:] != 0).sum(-1).max()) for split in splits)
  most = -(-most // PAD_TO) * PAD_TO
  return most if most <= 0.75 * max(split.width for split in splits) else None


def measures(split: Split) -> dict[str, Any]:
  """Returns the number of "tokens", of "trained_tokens" and of the "longest", and a "sha256"."""
  digest = hashlib.sha256()
  for name, array in sorted(split.arrays.items()):
    digest.update(repr((name, array.shape, array.dtype.str)).encode())
    digest.update(array.tobytes())
  return {
    "tokens": int(split.arrays["mask"].sum()),
    "trained_tokens": int(np.count_nonzero(split.arrays["weights"])),
    "longest": int(split.arrays["mask"].sum(axis=-1).max(initial=0)),
    "sha256": digest.hexdigest(),
  }


def counts(split: Split, skipped: dict[str, int], truncated: int = 0, **more: Any) -> dict:
  """Returns what a report says of a split's examples.

  Returns:
    {"kept": examples, "skipped": {reason: how many}, "truncated": how many, and all of `measures`
    and of `more`}.
  """
  return {
    "kept": len(split.where),
    "skipped": {reason: count for reason, count in skipped.items() if count},
    "truncated": truncated,
    **measures(split),
    **more,
  }
