"""What a metric is.

Dimensions: X examples, C classes, Z resamples (of the examples, with replacement), J statistics
that an example contributes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np


class Metric(NamedTuple):
  """A metric of predictions against references, one of each for every example.

  Attributes:
    title: to print, with its unit.
    score: (predictions, references) -> value, computed by the library that papers cite.
    statistics: (predictions, references) -> what each example contributes, (X,) or (X, J).
    combine: (counts_ZX, statistics) -> values_Z: the metric of each resample, in which example x
      occurs counts_ZX[z, x] times. Where every count is 1 it is the score.
    low, high: bounds of the value.
    higher_is_better: whether a model improves as the value rises.
  """

  title: str
  score: Callable[[Sequence[Any], Sequence[Any]], float]
  statistics: Callable[[Sequence[Any], Sequence[Any]], np.ndarray]
  combine: Callable[[np.ndarray, np.ndarray], np.ndarray]
  low: float = 0.0
  high: float = 100.0
  higher_is_better: bool = True


def mean(title: str, values: Callable[[Sequence[Any], Sequence[Any]], np.ndarray]) -> Metric:
  """Returns the metric that is the mean of one value for each example."""
  return Metric(title, partial(_mean, values), values, _resampled_mean)


def _mean(values: Callable, predictions: Sequence[Any], references: Sequence[Any]) -> float:
  return float(np.mean(values(predictions, references)))


def _resampled_mean(counts_ZX: np.ndarray, values_X: np.ndarray) -> np.ndarray:
  return counts_ZX @ values_X / counts_ZX.sum(1)
