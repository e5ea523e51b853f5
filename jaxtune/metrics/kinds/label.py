"""Metrics of predicted classes by scikit-learn, the table of classes and the confusion matrix.

Predictions and references are X labels each, strings or integers. Metrics are in percent.
"""

from __future__ import annotations

import numbers
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jaxtune import libraries
from jaxtune.errors import UserError, nearest
from jaxtune.metrics.metric import Counts, Draws, Metric, mean

sklearn = libraries.Lazy("sklearn.metrics")

EXPECTED = "a string or an integer against another"
Labels = Sequence[str] | Sequence[int] | np.ndarray


class Class(NamedTuple):
  """A row of a table of classes; proportions are in percent."""

  label: str | int
  precision: float
  recall: float
  f1: float
  support: int  # references of this class


class Confusion(NamedTuple):
  """How often each class was predicted for each class: rows are references, columns predictions."""

  labels: tuple[str | int, ...]
  counts_CC: Int[np.ndarray, "C C"]

  @property
  def shares_CC(self) -> Float[np.ndarray, "C C"]:
    """Shares of each row, from 0 to 1; the row of a class without references has zeros."""
    return self.counts_CC / np.maximum(self.counts_CC.sum(1, keepdims=True), 1)


def fits(prediction: Any, reference: Any) -> bool:
  return any(
    isinstance(prediction, types) and isinstance(reference, types)
    for types in (str, (numbers.Integral, np.bool_))
  )


def baseline(references: Labels, seen: Labels) -> list[str | int]:
  """Returns the most frequent label for every reference."""
  return [Counter(seen).most_common(1)[0][0]] * len(references)


def _percent(score: str, predictions: Labels, references: Labels, **options: Any) -> float:
  """Returns a score by its name in scikit-learn, in percent."""
  with warnings.catch_warnings():  # of classes that only the predictions have, or a single one
    warnings.simplefilter("ignore", UserWarning)
    return 100 * float(getattr(sklearn, score)(references, predictions, **options))


def hits_X(predictions: Labels, references: Labels) -> Float[np.ndarray, " X"]:
  """Returns 100 where a prediction is right, else 0."""
  return 100.0 * (np.asarray(predictions) == np.asarray(references))


def counts_XJ(predictions: Labels, references: Labels) -> Float[np.ndarray, "X J"]:
  """Returns whether each of C classes is rightly predicted, is predicted, and is true; J = 3 C."""
  predicted, true = np.asarray(predictions), np.asarray(references)
  classes = np.unique(np.concatenate([predicted, true]))
  predicted_XC = np.equal.outer(predicted, classes)
  true_XC = np.equal.outer(true, classes)
  return np.concatenate([predicted_XC & true_XC, predicted_XC, true_XC], 1).astype(np.float64)


def _combine(of_counts: Callable, counts_ZX: Counts, statistics_XJ: np.ndarray) -> Draws:
  """Applies a function of the three counts of `counts_XJ` to each resample, in percent."""
  return 100 * of_counts(*np.split(counts_ZX @ statistics_XJ, 3, axis=1))


def _recall(right_ZC: np.ndarray, _: np.ndarray, true_ZC: np.ndarray) -> np.ndarray:
  present_ZC = true_ZC > 0
  return (right_ZC / np.maximum(true_ZC, 1)).sum(1) / present_ZC.sum(1)


def _f1(right_ZC: np.ndarray, predicted_ZC: np.ndarray, true_ZC: np.ndarray) -> np.ndarray:
  either_ZC = predicted_ZC + true_ZC
  return (2 * right_ZC / np.maximum(either_ZC, 1)).sum(1) / (either_ZC > 0).sum(1)


def _matthews(right_ZC: np.ndarray, predicted_ZC: np.ndarray, true_ZC: np.ndarray) -> np.ndarray:
  total_Z = true_ZC.sum(1)
  covariance = lambda a, b: total_Z**2 - (a * b).sum(1)
  product_Z = covariance(predicted_ZC, predicted_ZC) * covariance(true_ZC, true_ZC)
  joint_Z = right_ZC.sum(1) * total_Z - (predicted_ZC * true_ZC).sum(1)
  return np.where(product_Z > 0, joint_Z / np.sqrt(np.where(product_Z > 0, product_Z, 1)), 0)


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
  return table(labels, columns)


def table(labels: Sequence[str | int], columns: Iterable[np.ndarray]) -> list[Class]:
  """Makes rows of the columns precision, recall, F1 (shares, from 0 to 1) and support."""
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


def _classes(
  predictions: Labels, references: Labels, labels: Sequence[str | int] | None
) -> list[str | int]:
  occurring = set(np.asarray(predictions).tolist()) | set(np.asarray(references).tolist())
  if labels is None:
    return sorted(occurring)
  for label in sorted(occurring - set(labels)):
    raise UserError(f"the label {label!r} is not among the classes; {nearest(label, labels)}")
  return list(labels)


def _of_classes(
  title: str, of_counts: Callable, score: str, low: float = 0.0, **options: Any
) -> Metric:
  """Makes a metric of the counts of each class."""
  return Metric(
    title, partial(_percent, score, **options), counts_XJ, partial(_combine, of_counts), low
  )


METRICS = {
  "accuracy": mean("accuracy (%)", hits_X)._replace(score=partial(_percent, "accuracy_score")),
  # The mean recall of the classes that the references have.
  "balanced_accuracy": _of_classes("balanced accuracy (%)", _recall, "balanced_accuracy_score"),
  # The mean F1 of the classes that the references or the predictions have.
  "macro_f1": _of_classes("macro F1 (%)", _f1, "f1_score", average="macro", zero_division=0),
  # The F1 of all decisions pooled, which is the accuracy where each has one label.
  "micro_f1": mean("micro F1 (%)", hits_X)._replace(
    score=partial(_percent, "f1_score", average="micro", zero_division=0)
  ),
  # Gorodkin 2004 for many classes; 0 for a constant prediction.
  "matthews": _of_classes("Matthews correlation (%)", _matthews, "matthews_corrcoef", low=-100.0),
}
OF_CLASSES = tuple(name for name, metric in METRICS.items() if metric.statistics is counts_XJ)
