"""Metrics of spans in tagged words by seqeval, in percent.

Predictions and references are X lists of IOB2 tags (Tjong Kim Sang and Veenstra 1999): "O",
"B-place", "I-place". Tags are read strictly: only a B begins a span, so an I after O or after
another type is in no span (conlleval would begin one there). A span is right if its first word, its
last word and its type are right. Scores count all spans alike, whichever example they are in.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxtune import libraries
from jaxtune.errors import UserError
from jaxtune.metrics.kinds.label import Class, table
from jaxtune.metrics.metric import Counts, Draws, Metric

EXPECTED = "a list of IOB2 tags against another"
Tags = Sequence[Sequence[str]]
seqeval, v1 = libraries.Lazy("seqeval.metrics"), libraries.Lazy("seqeval.metrics.v1")
scheme = libraries.Lazy("seqeval.scheme")


def fits(prediction: Any, reference: Any) -> bool:
  return all(
    isinstance(tags, (list, tuple)) and all(isinstance(tag, str) for tag in tags)
    for tags in (prediction, reference)
  )


def check(prediction: Sequence[str], reference: Sequence[str]) -> None:
  """Raises UserError for tags of another number of words, and true ones that are not IOB2."""
  if len(prediction) != len(reference):
    raise UserError(f"has {len(prediction)} predicted tags for {len(reference)} words")
  for tag in (*prediction, *reference):
    if tag != "O" and (tag[:2] not in ("B-", "I-") or len(tag) < 3):
      raise UserError(f"has the tag {tag!r}; expected 'O', 'B-type' or 'I-type' (IOB2)")
  for before, tag in zip(("O", *reference), reference, strict=False):
    if tag[:2] == "I-" and before[2:] != tag[2:]:
      raise UserError(
        f"has the true tag {tag!r} behind {before!r}, expected IOB2, in which every span begins "
        "with a B: convert the data"
      )


def baseline(references: Tags, seen: Tags) -> list[list[str]]:
  """Returns "O" for every word."""
  return [["O"] * len(tags) for tags in references]


def _percent(score: str, predictions: Tags, references: Tags) -> float:
  """Returns a score by its name in seqeval, in percent."""
  form = {"mode": "strict", "scheme": scheme.IOB2, "zero_division": 0}
  return 100 * float(getattr(seqeval, score)(_lists(references), _lists(predictions), **form))


def counts_XJ(predictions: Tags, references: Tags) -> Float[np.ndarray, "X J"]:
  """Returns (X, 3): spans that are right, predicted and true."""
  said, true = (
    scheme.Entities(_lists(tags), scheme.IOB2).entities for tags in (predictions, references)
  )
  return np.array(
    [
      (len(set(ours) & set(theirs)), len(ours), len(theirs))
      for ours, theirs in zip(said, true, strict=True)
    ],
    np.float64,
  )


def _resampled(share: str, counts_ZX: Counts, spans_XJ: np.ndarray) -> Draws:
  right_Z, said_Z, true_Z = (counts_ZX @ spans_XJ).T
  of_Z = {"precision": said_Z, "recall": true_Z, "f1": (said_Z + true_Z) / 2}[share]
  return 100 * right_Z / np.where(of_Z > 0, of_Z, 1)


def per_class(predictions: Tags, references: Tags) -> list[Class]:
  """Returns a row for each type of span that occurs, sorted."""
  true, said = _lists(references), _lists(predictions)
  kinds = v1.unique_labels(true, said, scheme.IOB2)
  if not kinds:
    return []
  columns = v1.precision_recall_fscore_support(true, said, scheme=scheme.IOB2, zero_division=0)
  return table(kinds, columns)


def _lists(tags: Tags) -> list[list[str]]:
  return [list(sequence) for sequence in tags]  # seqeval accepts lists only


def _of_spans(share: str) -> Metric:
  """Makes the metric of the "precision", "recall" or "f1" of spans."""
  title = f"span {'F1' if share == 'f1' else share} (%)"
  return Metric(title, partial(_percent, f"{share}_score"), counts_XJ, partial(_resampled, share))


METRICS = {f"span_{share}": _of_spans(share) for share in ("f1", "precision", "recall")}
