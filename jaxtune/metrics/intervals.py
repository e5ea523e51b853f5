"""How much a metric would change with other examples: 95 % intervals by the bootstrap.

Examples are drawn with replacement, R times N (Efron 1979). Two systems are compared on the same
draws, so that what makes an example hard for both cancels. Intervals are percentiles, which follow
any rising transformation: those of a perplexity are the exponentials of those of the loss. They
say nothing of other seeds of training; `sweeps.stats` does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np

from jaxtune import metrics

_CELLS = 2**20  # of counts at a time


def draws(
  metric: str, predictions: Sequence, references: Sequence, seed: int = 0, resamples: int = 1000
) -> np.ndarray:
  """Returns the metric of each resample, (R,).

  The same seed draws the same examples for every metric and system, so differences of two
  systems' draws are paired.

  Raises:
    UserError: as `metrics.score`.
  """
  metrics.check([metric])
  found = metrics.METRICS[metric]
  metrics.check_examples(found.kind, predictions, references, [metric])
  statistics = found.statistics(predictions, references)
  combined = lambda counts_RN: found.combine(counts_RN, statistics)
  return _resampled(combined, len(statistics), seed, resamples)


def ratio_draws(
  sums: Sequence, weights: Sequence, seed: int = 0, resamples: int = 1000
) -> np.ndarray:
  """Returns sum(sums) / sum(weights) of each resample: of a loss, say, per token.

  Args:
    sums, weights: one of each an example.
  """
  pairs_N2 = np.stack([np.asarray(sums, np.float64), np.asarray(weights, np.float64)], 1)
  return _resampled(partial(_ratio, pairs_N2), len(pairs_N2), seed, resamples)


def between(draws_R: np.ndarray) -> tuple[float, float]:
  """Returns the 2.5th and 97.5th percentile; NaN if any draw is not finite."""
  if not np.isfinite(draws_R).all():
    return np.nan, np.nan
  low, high = np.quantile(draws_R, (0.025, 0.975))
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
  if examples < 2:  # one example says nothing of others
    return np.full(resamples, np.nan)
  return np.concatenate([statistic(counts) for counts in _counts(examples, seed, resamples)])


def _counts(examples: int, seed: int, resamples: int) -> Iterator[np.ndarray]:
  """Yields how often each resample has each example, (some of R, N), in blocks."""
  rng = np.random.default_rng(seed)
  rows = max(1, _CELLS // examples)
  for start in range(0, resamples, rows):
    size = min(rows, resamples - start)
    drawn_RN = rng.integers(examples, size=(size, examples))
    cells = drawn_RN + examples * np.arange(size)[:, None]
    counts = np.bincount(cells.ravel(), minlength=size * examples)
    yield counts.reshape(size, examples).astype(np.float64)


def _ratio(pairs_N2: np.ndarray, counts_RN: np.ndarray) -> np.ndarray:
  # NaN where a sum is not finite, or where nothing that was drawn has a weight.
  with np.errstate(divide="ignore", invalid="ignore"):
    sums_R2 = counts_RN @ pairs_N2
    return sums_R2[:, 0] / sums_R2[:, 1]
