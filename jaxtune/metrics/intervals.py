"""How much a metric would change with other examples: 95 % intervals by the bootstrap.

Z resamples of X examples are drawn with replacement (Efron 1979). Two systems are compared on the
same resamples, so that the difficulty of an example cancels. Examples that are alike, as several
answers to one prompt are, belong to one unit, which is drawn as a whole: drawn one by one they
would seem to say more than they do, and intervals would be too short (Field & Welsh 2007).
Intervals are percentiles, which commute with any increasing function: those of a perplexity are the
exponentials of those of the loss. Intervals over seeds of training are in `sweeps.stats`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import Float

from jaxtune import metrics
from jaxtune.metrics.metric import Counts, Draws

_CELLS = 2**20  # how many counts are in memory at a time


def draws(
  metric: str,
  predictions: Sequence,
  references: Sequence,
  seed: int = 0,
  resamples: int = 1000,
  units: Sequence[int] | np.ndarray | None = None,
) -> Draws:
  """Returns the metric of each resample.

  The same seed draws the same examples for every metric and system, so the differences of two
  systems' draws are paired.

  Args:
    units: the number of the unit that each example belongs to; None: each is one.

  Raises:
    UserError: as `metrics.score`.
  """
  metrics.check([metric])
  metrics.check_examples(metrics.kind_of(metric), predictions, references, [metric])
  judge = metrics.METRICS[metric]
  statistics = judge.statistics(predictions, references)
  return _resampled(judge.combine, statistics, seed, resamples, units)


def ratio_draws(
  sums: np.ndarray | Sequence[float],
  weights: np.ndarray | Sequence[float],
  seed: int = 0,
  resamples: int = 1000,
  units: Sequence[int] | np.ndarray | None = None,
) -> Draws:
  """Returns sum(sums) / sum(weights) of each resample: the loss per token, say.

  Args:
    sums, weights: one of each for every example.
    units: as in `draws`.
  """
  pairs_X2 = np.stack([np.asarray(sums, np.float64), np.asarray(weights, np.float64)], 1)
  return _resampled(_ratio, pairs_X2, seed, resamples, units)


def between(draws_Z: Draws) -> tuple[float, float]:
  """Returns the 2.5th and the 97.5th percentile, the 95 % interval; NaN if a draw is not finite."""
  if not np.isfinite(draws_Z).all():
    return np.nan, np.nan
  low, high = np.quantile(draws_Z, (0.025, 0.975))
  return float(low), float(high)


def _resampled(
  combine: Callable,
  statistics: np.ndarray,
  seed: int,
  resamples: int,
  units: Sequence[int] | np.ndarray | None,
) -> Draws:
  """Combines the statistics of the examples, (X, ...), in each resample of their units."""
  known, unit_X = np.unique(
    np.arange(len(statistics)) if units is None else units, return_inverse=True
  )
  if len(known) < 2:  # one does not show how much others differ
    return np.full(resamples, np.nan)
  blocks = _counts(unit_X, len(known), seed, resamples)
  return np.concatenate([combine(counts_ZX, statistics) for counts_ZX in blocks])


def _counts(unit_X: np.ndarray, units: int, seed: int, resamples: int) -> Iterator[Counts]:
  """Yields how often each resample has each example, in blocks of some resamples."""
  rng = np.random.default_rng(seed)
  rows = max(1, _CELLS // len(unit_X))  # what is drawn does not depend on it
  for done in range(0, resamples, rows):
    size = min(rows, resamples - done)
    drawn_ZU = rng.integers(units, size=(size, units))
    cells_ZU = drawn_ZU + units * np.arange(size)[:, None]
    counts = np.bincount(cells_ZU.ravel(), minlength=size * units)
    yield counts.reshape(size, units).astype(np.float64)[:, unit_X]


def _ratio(counts_ZX: Counts, pairs_X2: Float[np.ndarray, "X 2"]) -> Draws:
  # NaN where a sum is not finite, or where all the weights in a resample are 0.
  with np.errstate(divide="ignore", invalid="ignore"):
    sums_Z2 = counts_ZX @ pairs_X2
    return sums_Z2[:, 0] / sums_Z2[:, 1]
