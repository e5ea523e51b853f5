"""How much a metric would change with other examples: 95 % intervals by the bootstrap.

Z resamples of X examples are drawn with replacement (Efron 1979). Two systems are compared on the
same resamples, so that the difficulty of an example cancels. Intervals are percentiles, which
commute with any increasing function: those of a perplexity are the exponentials of those of the
loss. Intervals over seeds of training are in `sweeps.stats`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np

from jaxtune import metrics

_CELLS = 2**20  # how many counts are in memory at a time


def draws(
  metric: str, predictions: Sequence, references: Sequence, seed: int = 0, resamples: int = 1000
) -> np.ndarray:
  """Returns the metric of each resample, (Z,).

  The same seed draws the same examples for every metric and system, so the differences of two
  systems' draws are paired.

  Raises:
    UserError: as `metrics.score`.
  """
  metrics.check([metric])
  metrics.check_examples(metrics.kind_of(metric), predictions, references, [metric])
  _, _, statistics_of, combine, *_ = metrics.METRICS[metric]
  statistics = statistics_of(predictions, references)
  combined = lambda counts_ZX: combine(counts_ZX, statistics)
  return _resampled(combined, len(statistics), seed, resamples)


def ratio_draws(
  sums: Sequence, weights: Sequence, seed: int = 0, resamples: int = 1000
) -> np.ndarray:
  """Returns sum(sums) / sum(weights) of each resample: the loss per token, say.

  Args:
    sums, weights: one of each for every example.
  """
  pairs_X2 = np.stack([np.asarray(sums, np.float64), np.asarray(weights, np.float64)], 1)
  return _resampled(partial(_ratio, pairs_X2), len(pairs_X2), seed, resamples)


def between(draws_Z: np.ndarray) -> tuple[float, float]:
  """Returns the 2.5th and 97.5th percentile; NaN if any draw is not finite."""
  if not np.isfinite(draws_Z).all():
    return np.nan, np.nan
  low, high = np.quantile(draws_Z, (0.025, 0.975))
  return float(low), float(high)


def interval(
  metric: str, predictions: Sequence, references: Sequence, seed: int = 0, resamples: int = 1000
) -> tuple[float, float]:
  """Returns the 95 % interval of a metric, NaN for a single example."""
  return between(draws(metric, predictions, references, seed, resamples))


def paired_difference(
  metric: str,
  a: Sequence,
  b: Sequence,
  references: Sequence,
  seed: int = 0,
  resamples: int = 1000,
) -> tuple[float, float, float]:
  """Returns a's metric minus b's and its 95 % interval.

  Args:
    a, b: the predictions of two systems for the same examples.
  """
  of = lambda said: metrics.score(said, references, [metric])[metric]
  drawn = lambda said: draws(metric, said, references, seed, resamples)
  return of(a) - of(b), *between(drawn(a) - drawn(b))


def ratio_interval(
  sums: Sequence, weights: Sequence, seed: int = 0, resamples: int = 1000
) -> tuple[float, float]:
  """Returns the 95 % interval of sum(sums) / sum(weights); arguments as `ratio_draws`."""
  return between(ratio_draws(sums, weights, seed, resamples))


def ratio_difference(
  a: tuple[Sequence, Sequence],
  b: tuple[Sequence, Sequence],
  seed: int = 0,
  resamples: int = 1000,
) -> tuple[float, float, float]:
  """Returns a's ratio minus b's and its 95 % interval; a and b are (sums, weights)."""
  ratio = lambda sums, weights: float(np.sum(sums, dtype=np.float64) / np.sum(weights))
  paired = ratio_draws(*a, seed, resamples) - ratio_draws(*b, seed, resamples)
  return ratio(*a) - ratio(*b), *between(paired)


def _resampled(
  statistic: Callable[[np.ndarray], np.ndarray], examples: int, seed: int, resamples: int
) -> np.ndarray:
  if examples < 2:  # one example does not show how much others differ
    return np.full(resamples, np.nan)
  return np.concatenate([statistic(counts) for counts in _counts(examples, seed, resamples)])


def _counts(examples: int, seed: int, resamples: int) -> Iterator[np.ndarray]:
  """Yields how often each resample has each example, (some of Z, X), in blocks."""
  rng = np.random.default_rng(seed)
  rows = max(1, _CELLS // examples)
  for done in range(0, resamples, rows):
    size = min(rows, resamples - done)
    drawn_ZX = rng.integers(examples, size=(size, examples))
    cells = drawn_ZX + examples * np.arange(size)[:, None]
    counts = np.bincount(cells.ravel(), minlength=size * examples)
    yield counts.reshape(size, examples).astype(np.float64)


def _ratio(pairs_X2: np.ndarray, counts_ZX: np.ndarray) -> np.ndarray:
  # NaN where a sum is not finite, or where all the weights in a resample are 0.
  with np.errstate(divide="ignore", invalid="ignore"):
    sums_Z2 = counts_ZX @ pairs_X2
    return sums_Z2[:, 0] / sums_Z2[:, 1]
