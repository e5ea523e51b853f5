"""Tests of paired differences: two configurations with the same seeds, on the same examples.

Which test is right depends on what varies. Another seed would give another difference, and so would
other examples; a statement about "A is better than B" means neither these seeds nor these examples.
A bootstrap that resamples both (or a permutation of the signs) is the usual answer, but with the
three to five seeds of a sweep it is wrong: resampled seeds vary too little, by (E - 1) / E and as
normal numbers do, so that its 95 % intervals cover about 80 %, and of 2^5 signs the least two-sided
p is 0.06. The design is that of readers who judge the same cases in radiology, with seeds for the
readers, and `test` is its standard analysis (Obuchowski and Rockette 1995; degrees of freedom of
Hillis 2007): seeds enter by Student's t, and the part that examples share over seeds by the
bootstrap over examples, of which there are enough. Without draws it is the paired t test.

Dimensions: E seeds (trials), Z resamples of the examples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from jaxtune import libraries

special = libraries.Lazy("scipy.special")
_MOST_SEEDS = 1000
Interval = tuple[float, float]


class Test(NamedTuple):
  """The test of a difference, in the metric's units.

  Attributes:
    difference: its mean over seeds.
    interval: of 95 %; None where nothing varies.
    p: two-sided; None where nothing varies but there is a difference.
    positive: the probability that the difference is above 0: the posterior of Student's t with a
      flat prior on the mean and on the logarithm of the standard deviation.
    varied: what the test knows to vary: "seeds and examples", "seeds", "examples" or "nothing".
  """

  difference: float
  interval: Interval | None
  p: float | None
  positive: float | None
  varied: str


class Effect(NamedTuple):
  """The size of a difference in its standard deviations over seeds.

  Attributes:
    g: Hedges' g of pairs: Cohen's d_z, the mean by the standard deviation of the differences, times
      the factor that makes it unbiased.
    interval: of 95 % for the true size, by the noncentral t distribution.
    seeds_needed: the seeds with which the paired t test at 5 % (before any correction) finds a
      difference of size d_z with probability 0.8; None for more than a thousand.
  """

  g: float
  interval: Interval
  seeds_needed: int | None


def test(differences_E: Sequence[float], draws_EZ: Float[np.ndarray, "E Z"] | None = None) -> Test:
  """Tests that the mean of paired differences is not 0.

  Args:
    differences_E: of each seed, finite.
    draws_EZ: the same differences on resamples of the examples, which are the same for all seeds.
  """
  values = np.asarray(differences_E, np.float64)
  count, mean = len(values), float(values.mean())
  of_seeds = _variance(values)
  shared = 0.0 if draws_EZ is None else _shared_variance(draws_EZ)
  parts = [name for name, x in (("seeds", of_seeds), ("examples", shared)) if x > 0]
  varied = " and ".join(parts) or "nothing"
  if not parts:
    return Test(mean, None, None if mean else 1.0, None if mean else 0.5, varied)
  error = math.sqrt(of_seeds / count + shared)
  # Hillis' degrees of freedom: count - 1 where examples add nothing, infinite where seeds do not.
  freedom = (count - 1) * (1 + count * shared / of_seeds) ** 2 if of_seeds else math.inf
  below = lambda t: float(special.ndtr(t) if math.isinf(freedom) else special.stdtr(freedom, t))
  infinite = math.isinf(freedom)
  half = error * float(special.ndtri(0.975) if infinite else special.stdtrit(freedom, 0.975))
  t = mean / error
  return Test(mean, (mean - half, mean + half), 2 * below(-abs(t)), below(t), varied)


def effect(differences_E: Sequence[float]) -> Effect | None:
  """Returns the effect size of paired differences; None with one seed, or where they are equal."""
  values = np.asarray(differences_E, np.float64)
  count, variance = len(values), _variance(values)
  if not variance:
    return None
  size, freedom, root = float(values.mean()) / math.sqrt(variance), count - 1, math.sqrt(count)
  # The noncentrality at which the observed t is the 97.5th, and the 2.5th percentile.
  of_share = lambda share: float(special.nctdtrinc(freedom, share, abs(size) * root)) / root
  low, high = sorted(math.copysign(1, size) * of_share(share) for share in (0.975, 0.025))
  return Effect(_unbiased(freedom) * size, (low, high), seeds_needed(size))


def _unbiased(freedom: int) -> float:
  """Returns the factor of Hedges' g (1981): of two pairs, whose d_z has no mean, 0."""
  if freedom < 2:
    return 0.0
  logarithm = math.lgamma(freedom / 2) - math.lgamma((freedom - 1) / 2)
  return math.exp(logarithm) / math.sqrt(freedom / 2)


def seeds_needed(size: float, power: float = 0.8, level: float = 0.05) -> int | None:
  """Returns the fewest pairs of seeds whose two-sided t test has this power; None beyond 1000.

  Args:
    size: the mean difference in standard deviations of the differences.
  """
  size = min(abs(size), 20.0)  # two seeds are enough for this one already
  if not size:
    return None
  # With the standard deviation known, fewer would do: the search begins there.
  count = max(
    2, math.floor((float(special.ndtri(1 - level / 2) + special.ndtri(power)) / size) ** 2)
  )
  while count <= _MOST_SEEDS:
    freedom, shift = count - 1, size * math.sqrt(count)
    bound = float(special.stdtrit(freedom, 1 - level / 2))
    # The other tail is left out: at such a power it is below 1e-5.
    if 1 - float(special.nctdtr(freedom, shift, bound)) >= power:
      return count
    count += 1
  return None


def holm(ps: Sequence[float | None]) -> list[float | None]:
  """Adjusts p-values so that 5 % bounds the chance of any false one among them (Holm 1979).

  None is no test, and stays None.
  """
  known = sorted((p, i) for i, p in enumerate(ps) if p is not None)
  adjusted: list[float | None] = [None] * len(ps)
  largest = 0.0
  for rank, (p, i) in enumerate(known):
    adjusted[i] = largest = max(largest, min(1.0, (len(known) - rank) * p))
  return adjusted


def bootstrap_interval(values: Sequence[float], resamples: int = 2000) -> Interval | None:
  """Returns the 95 % interval of a mean by resampling its values; None with fewer than two.

  Percentiles are taken further out, as far as Student's t is from the normal distribution
  ("expanded percentiles", Hesterberg 2015), as a resample of E values varies too little. From about
  eight values on it covers as stated; with three it is their range, which covers 75 %.
  """
  known = np.asarray(values, np.float64)
  count = len(known)
  if count < 2:
    return None
  drawn = np.random.default_rng(0).integers(count, size=(resamples, count))
  quantile = float(special.stdtrit(count - 1, 0.975)) * math.sqrt(count / (count - 1))
  share = float(special.ndtr(-quantile))
  low, high = np.quantile(known[drawn].mean(1), (share, 1 - share))
  return float(low), float(high)


def _variance(values: np.ndarray) -> float:
  """Returns the variance of values; 0 of one value, or where they differ by rounding alone."""
  if len(values) < 2 or np.ptp(values) <= 1e-9 * np.abs(values).max():
    return 0.0
  return float(values.var(ddof=1))


def _shared_variance(draws_EZ: np.ndarray) -> float:
  """Returns the variance by examples that all seeds share: their mean covariance, 0 or above.

  Of one seed it is its whole variance by examples.
  """
  count = len(draws_EZ)
  if not np.isfinite(draws_EZ).all():
    return 0.0
  if count == 1:
    return float(draws_EZ[0].var(ddof=1))
  covariances = np.cov(draws_EZ)
  return max(0.0, float(covariances.sum() - np.trace(covariances)) / (count * (count - 1)))
