"""What a metric is.

Dimensions: X examples, C classes, Z resamples (of the examples, with replacement), J statistics
that an example contributes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

Counts = Float[np.ndarray, "Z X"]  # how often each resample has each example
Draws = Float[np.ndarray, " Z"]  # a number for each resample


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
  statistics: Callable[[Sequence[Any], Sequence[Any]], Float[np.ndarray, "X ..."]]
  combine: Callable[[Counts, np.ndarray], Draws]
  low: float = 0.0
  high: float = 100.0
  higher_is_better: bool = True


def mean(
  title: str, values: Callable[[Sequence[Any], Sequence[Any]], Float[np.ndarray, " X"]]
) -> Metric:
  """Returns the metric that is the mean of one value for each example."""
  score = lambda predictions, references: float(np.mean(values(predictions, references)))
  combine = lambda counts_ZX, values_X: counts_ZX @ values_X / counts_ZX.sum(1)
  return Metric(title, score, values, combine)
