"""Metrics of predicted numbers by scipy and scikit-learn.

Predictions and references are N numbers each. A constant prediction correlates with nothing and
gets 0; one that is not finite gets NaN. Correlations are in percent.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from jaxtune import lazy

stats, sklearn = lazy.Module("scipy.stats"), lazy.Module("sklearn.metrics")


def pearson(predictions, references) -> float:
  return _correlation(stats.pearsonr, predictions, references)


def spearman(predictions, references) -> float:
  """Returns the correlation of ranks, tied ones averaged."""
  return _correlation(stats.spearmanr, predictions, references)


def mse(predictions, references) -> float:
  if not np.isfinite(predictions).all():
    return np.nan
  return float(sklearn.mean_squared_error(references, predictions))


def squares_N(predictions, references) -> np.ndarray:
  return (np.asarray(predictions, np.float64) - np.asarray(references, np.float64)) ** 2


def pairs_N2(predictions, references) -> np.ndarray:
  return np.stack([np.asarray(predictions, np.float64), np.asarray(references, np.float64)], 1)


def pooled_pearson(counts_RN: np.ndarray, pairs_N2: np.ndarray) -> np.ndarray:
  """Returns Pearson's correlation of each resample."""
  return _weighted(counts_RN, *(x_N[None] for x_N in pairs_N2.T))


def pooled_spearman(counts_RN: np.ndarray, pairs_N2: np.ndarray) -> np.ndarray:
  """Returns Spearman's correlation of each resample, its examples ranked anew."""
  return _weighted(counts_RN, *(_ranks(counts_RN, x_N) for x_N in pairs_N2.T))


def _correlation(measure: Callable, predictions, references) -> float:
  x_N, y_N = pairs_N2(predictions, references).T
  if not np.isfinite([x_N, y_N]).all():
    return np.nan
  if len(x_N) < 2 or np.ptp(x_N) == 0 or np.ptp(y_N) == 0:
    return 0.0
  return 100 * float(measure(x_N, y_N).statistic)


def _ranks(counts_RN: np.ndarray, x_N: np.ndarray) -> np.ndarray:
  """Returns the averaged rank of each example among counts_RN copies of all."""
  order_N = np.argsort(x_N, kind="stable")
  _, starts_V, place_N = np.unique(x_N[order_N], return_index=True, return_inverse=True)
  copies_RV = np.add.reduceat(counts_RN[:, order_N], starts_V, axis=1)
  ranks_RV = np.cumsum(copies_RV, 1) - (copies_RV - 1) / 2
  return ranks_RV[:, place_N][:, np.argsort(order_N)]


def _weighted(counts_RN: np.ndarray, x_RN: np.ndarray, y_RN: np.ndarray) -> np.ndarray:
  total_R1 = counts_RN.sum(1, keepdims=True)
  centred = [x - (counts_RN * x).sum(1, keepdims=True) / total_R1 for x in (x_RN, y_RN)]
  product = lambda a, b: (counts_RN * a * b).sum(1)
  spread = np.sqrt([product(x, x) for x in centred])
  # Where all that was drawn is one number, rounding leaves crumbs of a spread.
  crumbs = [1e-13 * np.sqrt((counts_RN * x**2).sum(1)) for x in (x_RN, y_RN)]
  both = (spread > crumbs).all(0)
  return 100 * np.where(both, product(*centred) / np.where(both, spread.prod(0), 1), 0)
