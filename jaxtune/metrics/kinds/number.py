"""Metrics of predicted numbers by scipy and scikit-learn.

Predictions and references are X numbers each. Correlations are in percent: 0 for a constant
prediction, NaN where a prediction is not finite.
"""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxtune import libraries
from jaxtune.metrics.metric import Counts, Draws, Metric, mean

stats, sklearn = libraries.Lazy("scipy.stats"), libraries.Lazy("sklearn.metrics")

EXPECTED = "a number against another"
Numbers = Sequence[float] | np.ndarray


def fits(prediction: Any, reference: Any) -> bool:
  return isinstance(prediction, numbers.Real) and isinstance(reference, numbers.Real)


def baseline(references: Numbers, seen: Numbers) -> list[float]:
  """Returns the mean of the numbers for every reference."""
  return [float(np.mean(seen))] * len(references)


def mse(predictions: Numbers, references: Numbers) -> float:
  if not np.isfinite(predictions).all():
    return np.nan
  return float(sklearn.mean_squared_error(references, predictions))


def squares_X(predictions: Numbers, references: Numbers) -> Float[np.ndarray, " X"]:
  return (np.asarray(predictions, np.float64) - np.asarray(references, np.float64)) ** 2


def pairs_X2(predictions: Numbers, references: Numbers) -> Float[np.ndarray, "X 2"]:
  return np.stack([np.asarray(predictions, np.float64), np.asarray(references, np.float64)], 1)


def _correlation(measure: str, predictions: Numbers, references: Numbers) -> float:
  """Returns a correlation by its name in scipy.stats, in percent; 0 where there is no spread."""
  x_X, y_X = pairs_X2(predictions, references).T
  if not np.isfinite([x_X, y_X]).all():
    return np.nan
  if len(x_X) < 2 or np.ptp(x_X) == 0 or np.ptp(y_X) == 0:
    return 0.0
  return 100 * float(getattr(stats, measure)(x_X, y_X).statistic)


def _ranks(counts_ZX: Counts, x_X: np.ndarray) -> Float[np.ndarray, "Z X"]:
  """Returns each example's rank, averaged over ties, among counts_ZX copies of all examples.

  U is the distinct numbers.
  """
  order_X = np.argsort(x_X, kind="stable")
  _, first_U, group_X = np.unique(x_X[order_X], return_index=True, return_inverse=True)
  copies_ZU = np.add.reduceat(counts_ZX[:, order_X], first_U, axis=1)
  ranks_ZU = np.cumsum(copies_ZU, 1) - (copies_ZU - 1) / 2
  return ranks_ZU[:, group_X][:, np.argsort(order_X)]


def _resampled(ranked: bool, counts_ZX: Counts, pairs_X2: np.ndarray) -> Draws:
  """Returns the correlation of each resample: of the numbers, or of their ranks within it."""
  if not np.isfinite(pairs_X2).all():
    return np.full(len(counts_ZX), np.nan)
  x_ZX, y_ZX = (_ranks(counts_ZX, x_X) if ranked else x_X[None] for x_X in pairs_X2.T)
  total_Z1 = counts_ZX.sum(1, keepdims=True)
  centred = [x - (counts_ZX * x).sum(1, keepdims=True) / total_Z1 for x in (x_ZX, y_ZX)]
  product = lambda a, b: (counts_ZX * a * b).sum(1)
  spread = np.sqrt([product(x, x) for x in centred])
  # The spread of a single number, drawn repeatedly, is not 0 but a rounding error.
  rounding = [1e-13 * np.sqrt((counts_ZX * x**2).sum(1)) for x in (x_ZX, y_ZX)]
  varied_Z = (spread > rounding).all(0)
  return 100 * np.where(varied_Z, product(*centred) / np.where(varied_Z, spread.prod(0), 1), 0)


def _of_correlation(title: str, measure: str, ranked: bool) -> Metric:
  score, combine = partial(_correlation, measure), partial(_resampled, ranked)
  return Metric(title, score, pairs_X2, combine, low=-100.0)


METRICS = {
  "pearson": _of_correlation("Pearson correlation (%)", "pearsonr", ranked=False),
  # Equal numbers share a rank.
  "spearman": _of_correlation("Spearman correlation (%)", "spearmanr", ranked=True),
  "mse": mean("mean squared error", squares_X)._replace(
    score=mse, high=np.inf, higher_is_better=False
  ),
}
