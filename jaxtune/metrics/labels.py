"""Metrics of predicted classes by scikit-learn, the table of classes and the confusion matrix.

Predictions and references are N labels each, strings or integers, and metrics are in percent.
What ends in `_N` or `_NK` is what each example contributes, for resampling; C is the classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from jaxtune import lazy
from jaxtune.errors import UserError, nearest

sklearn = lazy.Module("sklearn.metrics")

Labels = Sequence[str] | Sequence[int] | np.ndarray


class Class(NamedTuple):
  """One row of a table of classes; proportions in percent."""

  label: str | int
  precision: float
  recall: float
  f1: float
  support: int  # references of this class


class Confusion(NamedTuple):
  """How often each class was predicted for each class: rows are references, columns predictions."""

  labels: tuple[str | int, ...]
  counts_CC: np.ndarray  # int

  @property
  def shares_CC(self) -> np.ndarray:
    """Shares of each row, from 0 to 1; the row of a class without references has zeros."""
    return self.counts_CC / np.maximum(self.counts_CC.sum(1, keepdims=True), 1)


def accuracy(predictions: Labels, references: Labels) -> float:
  return _percent(sklearn.accuracy_score, predictions, references)


def balanced_accuracy(predictions: Labels, references: Labels) -> float:
  """Returns the mean recall of the classes that the references have."""
  return _percent(sklearn.balanced_accuracy_score, predictions, references)


def macro_f1(predictions: Labels, references: Labels) -> float:
  """Returns the mean F1 of the classes that the references or the predictions have."""
  return _percent(sklearn.f1_score, predictions, references, average="macro", zero_division=0)


def micro_f1(predictions: Labels, references: Labels) -> float:
  """Returns the F1 of all decisions pooled, which is the accuracy where each has one label."""
  return _percent(sklearn.f1_score, predictions, references, average="micro", zero_division=0)


def matthews(predictions: Labels, references: Labels) -> float:
  """Returns Matthews' correlation (Gorodkin 2004 for many classes); a constant gets 0."""
  return _percent(sklearn.matthews_corrcoef, predictions, references)


def hits_N(predictions: Labels, references: Labels) -> np.ndarray:
  """Returns 100 where a prediction is right, else 0."""
  return 100.0 * (np.asarray(predictions) == np.asarray(references))


def counts_NK(predictions: Labels, references: Labels) -> np.ndarray:
  """Returns (N, 3C) indicators: right for a class, predicted as it, belonging to it."""
  predicted, true = np.asarray(predictions), np.asarray(references)
  classes = np.unique(np.concatenate([predicted, true]))
  predicted_NC = np.equal.outer(predicted, classes)
  true_NC = np.equal.outer(true, classes)
  return np.concatenate([predicted_NC & true_NC, predicted_NC, true_NC], 1).astype(np.float64)


def pooled(kind: Callable, counts_RN: np.ndarray, statistics_NK: np.ndarray) -> np.ndarray:
  """Returns `kind` (one of the three below) of each resample, in percent."""
  return 100 * kind(*np.split(counts_RN @ statistics_NK, 3, axis=1))


def recall_of(right_RC: np.ndarray, _: np.ndarray, true_RC: np.ndarray) -> np.ndarray:
  present = true_RC > 0
  return (right_RC / np.maximum(true_RC, 1)).sum(1) / present.sum(1)


def f1_of(right_RC: np.ndarray, predicted_RC: np.ndarray, true_RC: np.ndarray) -> np.ndarray:
  either = predicted_RC + true_RC
  return (2 * right_RC / np.maximum(either, 1)).sum(1) / (either > 0).sum(1)


def matthews_of(right_RC: np.ndarray, predicted_RC: np.ndarray, true_RC: np.ndarray) -> np.ndarray:
  total = true_RC.sum(1)
  covariance = lambda a, b: total**2 - (a * b).sum(1)
  both = covariance(predicted_RC, predicted_RC) * covariance(true_RC, true_RC)
  joint = right_RC.sum(1) * total - (predicted_RC * true_RC).sum(1)
  return np.where(both > 0, joint / np.sqrt(np.where(both > 0, both, 1)), 0)


def per_class(
  predictions: Labels, references: Labels, labels: Sequence[str | int] | None = None
) -> list[Class]:
  """Returns a row for each class.

  Args:
    labels: the classes, in order; default those that occur, sorted.

  Raises:
    UserError: a label that is not among `labels`.
  """
  labels = _classes(predictions, references, labels)
  columns = sklearn.precision_recall_fscore_support(
    references, predictions, labels=labels, zero_division=0
  )
  return [
    Class(label, 100 * float(p), 100 * float(r), 100 * float(f), int(n))
    for label, p, r, f, n in zip(labels, *columns, strict=True)
  ]


def confusion(
  predictions: Labels, references: Labels, labels: Sequence[str | int] | None = None
) -> Confusion:
  """Counts which class was taken for which; `labels` as in `per_class`."""
  labels = _classes(predictions, references, labels)
  return Confusion(tuple(labels), sklearn.confusion_matrix(references, predictions, labels=labels))


def _percent(score: Callable, predictions: Labels, references: Labels, **options) -> float:
  with warnings.catch_warnings():  # of classes that only the predictions have, or a single one
    warnings.simplefilter("ignore", UserWarning)
    return 100 * float(score(references, predictions, **options))


def _classes(
  predictions: Labels, references: Labels, labels: Sequence[str | int] | None
) -> list[str | int]:
  found = set(np.asarray(predictions).tolist()) | set(np.asarray(references).tolist())
  if labels is None:
    return sorted(found)
  for label in sorted(found - set(labels)):
    raise UserError(f"the label {label!r} is not among the classes. {nearest(label, labels)}")
  return list(labels)
