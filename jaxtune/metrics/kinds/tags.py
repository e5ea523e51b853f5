"""Metrics of spans in tagged words by seqeval, in percent.

Predictions and references are X lists of IOB2 tags (Tjong Kim Sang and Veenstra 1999): "O",
"B-place", "I-place". Tags are read strictly: only a B begins a span, so an I after O or after
another type is in no span (conlleval would begin one there). A span is right if its first word, its
last word and its type are right. Scores count all spans alike, whichever example they are in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from jaxtune import libraries
from jaxtune.errors import UserError
from jaxtune.metrics.kinds.label import Class
from jaxtune.metrics.metric import Metric

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
  """Raises UserError for tags of another number of words, or that are not IOB2."""
  if len(prediction) != len(reference):
    raise UserError(f"has {len(prediction)} predicted tags for {len(reference)} words")
  for tag in (*prediction, *reference):
    if tag != "O" and (tag[:2] not in ("B-", "I-") or len(tag) < 3):
      raise UserError(f"has the tag {tag!r}; expected 'O', 'B-type' or 'I-type' (IOB2)")


def baseline(references: Tags, seen: Tags) -> list[list[str]]:
  """Returns "O" for every word."""
  return [["O"] * len(tags) for tags in references]


def f1(predictions: Tags, references: Tags) -> float:
  return 100 * float(_strictly(seqeval.f1_score, references, predictions))


def precision(predictions: Tags, references: Tags) -> float:
  return 100 * float(_strictly(seqeval.precision_score, references, predictions))


def recall(predictions: Tags, references: Tags) -> float:
  return 100 * float(_strictly(seqeval.recall_score, references, predictions))


def counts_XJ(predictions: Tags, references: Tags) -> np.ndarray:
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


def _resampled(share: str, counts_ZX: np.ndarray, spans_XJ: np.ndarray) -> np.ndarray:
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
  return [
    Class(kind, 100 * float(p), 100 * float(r), 100 * float(f), int(n))
    for kind, p, r, f, n in zip(kinds, *columns, strict=True)
  ]


def _strictly(score: Callable, references: Tags, predictions: Tags) -> float:
  form = {"mode": "strict", "scheme": scheme.IOB2, "zero_division": 0}
  return score(_lists(references), _lists(predictions), **form)


def _lists(tags: Tags) -> list[list[str]]:
  return [list(sequence) for sequence in tags]  # seqeval accepts lists only


METRICS = {
  "span_f1": Metric("span F1 (%)", f1, counts_XJ, partial(_resampled, "f1")),
  "span_precision": Metric(
    "span precision (%)", precision, counts_XJ, partial(_resampled, "precision")
  ),
  "span_recall": Metric("span recall (%)", recall, counts_XJ, partial(_resampled, "recall")),
}
