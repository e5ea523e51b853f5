"""Metrics of spans in tagged words by seqeval, in percent.

Predictions and references are N lists of IOB2 tags (Tjong Kim Sang and Veenstra 1999): "O",
"B-place", "I-place". Reading is strict: a span begins at B alone, so an I after O or after another
type belongs to none (conlleval would begin one there). A span is right if its first word, its last
word and its type are. Scores are pooled over all spans. What ends in `_NK` is what each example
contributes, for resampling.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from jaxtune import lazy
from jaxtune.metrics.labels import Class

Tags = Sequence[Sequence[str]]
seqeval, v1 = lazy.Module("seqeval.metrics"), lazy.Module("seqeval.metrics.v1")
scheme = lazy.Module("seqeval.scheme")


def f1(predictions: Tags, references: Tags) -> float:
  return 100 * float(_strictly(seqeval.f1_score, references, predictions))


def precision(predictions: Tags, references: Tags) -> float:
  return 100 * float(_strictly(seqeval.precision_score, references, predictions))


def recall(predictions: Tags, references: Tags) -> float:
  return 100 * float(_strictly(seqeval.recall_score, references, predictions))


def counts_NK(predictions: Tags, references: Tags) -> np.ndarray:
  """Returns (N, 3): spans that are right, predicted and true."""
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


def _pooled(part: str, counts_RN: np.ndarray, counts_NK: np.ndarray) -> np.ndarray:
  right_R, said_R, true_R = (counts_RN @ counts_NK).T
  of_R = {"precision": said_R, "recall": true_R, "f1": (said_R + true_R) / 2}[part]
  return 100 * right_R / np.where(of_R > 0, of_R, 1)


pooled_f1 = partial(_pooled, "f1")
pooled_precision = partial(_pooled, "precision")
pooled_recall = partial(_pooled, "recall")


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


def _strictly(score, references, predictions):
  form = {"mode": "strict", "scheme": scheme.IOB2, "zero_division": 0}
  return score(_lists(references), _lists(predictions), **form)


def _lists(tags: Tags) -> list[list[str]]:
  return [list(sequence) for sequence in tags]  # seqeval takes nothing else
