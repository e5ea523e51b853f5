"""Metrics of predicted numbers by scipy and scikit-learn.

Predictions and references are X numbers each. Correlations are in percent: 0 for a constant
prediction, NaN where a prediction is not finite.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxtune import libraries
from jaxtune.metrics.metric import Metric, mean

stats, sklearn = libraries.Lazy("scipy.stats"), libraries.Lazy("sklearn.metrics")

EXPECTED = "a number against another"
Numbers = Sequence[float] | np.ndarray


def fits(prediction: Any, reference: Any) -> bool:
  return isinstance(prediction, numbers.Real) and isinstance(reference, numbers.Real)


def check(prediction: Any, reference: Any) -> None:
  """Accepts every pair of numbers."""


def baseline(references: Numbers, seen: Numbers) -> list[float]:
  """Returns the mean of the numbers for every reference."""
  return [float(np.mean(seen))] * len(references)


def pearson(predictions: Numbers, references: Numbers) -> float:
  return _correlation(stats.pearsonr, predictions, references)


def spearman(predictions: Numbers, references: Numbers) -> float:
  """Returns the correlation of ranks, tied ones averaged."""
  return _correlation(stats.spearmanr, predictions, references)


def mse(predictions: Numbers, references: Numbers) -> float:
  if not np.isfinite(predictions).all():
    return np.nan
  return float(sklearn.mean_squared_error(references, predictions))


def squares_X(predictions: Numbers, references: Numbers) -> np.ndarray:
  return (np.asarray(predictions, np.float64) - np.asarray(references, np.float64)) ** 2


def pairs_X2(predictions: Numbers, references: Numbers) -> np.ndarray:
  return np.stack([np.asarray(predictions, np.float64), np.asarray(references, np.float64)], 1)


def _resampled_pearson(counts_ZX: np.ndarray, pairs_X2: np.ndarray) -> np.ndarray:
  """Returns Pearson's correlation of each resample."""
  return _weighted_correlation(counts_ZX, *(x_X[None] for x_X in pairs_X2.T))


def _resampled_spearman(counts_ZX: np.ndarray, pairs_X2: np.ndarray) -> np.ndarray:
  """Returns Spearman's correlation of each resample, its examples ranked anew."""
  return _weighted_correlation(counts_ZX, *(_ranks(counts_ZX, x_X) for x_X in pairs_X2.T))


def _correlation(measure: Callable, predictions: Numbers, references: Numbers) -> float:
  x_X, y_X = pairs_X2(predictions, references).T
  if not np.isfinite([x_X, y_X]).all():
    return np.nan
  if len(x_X) < 2 or np.ptp(x_X) == 0 or np.ptp(y_X) == 0:
    return 0.0
  return 100 * float(measure(x_X, y_X).statistic)


def _ranks(counts_ZX: np.ndarray, x_X: np.ndarray) -> np.ndarray:
  """Returns each example's rank, averaged over ties, among counts_ZX copies of all examples.

  U is the distinct numbers.
  """
  order_X = np.argsort(x_X, kind="stable")
  _, first_U, group_X = np.unique(x_X[order_X], return_index=True, return_inverse=True)
  copies_ZU = np.add.reduceat(counts_ZX[:, order_X], first_U, axis=1)
  ranks_ZU = np.cumsum(copies_ZU, 1) - (copies_ZU - 1) / 2
  return ranks_ZU[:, group_X][:, np.argsort(order_X)]


def _weighted_correlation(counts_ZX: np.ndarray, x_ZX: np.ndarray, y_ZX: np.ndarray) -> np.ndarray:
  total_Z1 = counts_ZX.sum(1, keepdims=True)
  centred = [x - (counts_ZX * x).sum(1, keepdims=True) / total_Z1 for x in (x_ZX, y_ZX)]
  product = lambda a, b: (counts_ZX * a * b).sum(1)
  spread = np.sqrt([product(x, x) for x in centred])
  # The spread of a single number, drawn repeatedly, is not 0 but a rounding error.
  rounding = [1e-13 * np.sqrt((counts_ZX * x**2).sum(1)) for x in (x_ZX, y_ZX)]
  both = (spread > rounding).all(0)
  return 100 * np.where(both, product(*centred) / np.where(both, spread.prod(0), 1), 0)


METRICS = {
  "pearson": Metric("Pearson correlation (%)", pearson, pairs_X2, _resampled_pearson, low=-100.0),
  "spearman": Metric(
    "Spearman correlation (%)", spearman, pairs_X2, _resampled_spearman, low=-100.0
  ),
  "mse": mean("mean squared error", squares_X)._replace(
    score=mse, high=np.inf, higher_is_better=False
  ),
}
