"""Tests of paired differences: two configurations with the same seeds, on the same examples.

Which test is right depends on what varies. "A is better than B" is meant of other seeds and of
other examples than those that were drawn, and both make the difference of two figures vary:

  variance of the mean difference = variance over seeds / E + covariance by examples

The first part is estimated from the E differences (it holds what seeds and examples do together),
the second from the metric on resamples of the examples, as the covariance that two seeds share. The
paired t test knows the first part alone: with three seeds its 95 % intervals cover 82 % where both
parts matter, and 52 % where examples do. A bootstrap of both, the usual answer, resamples so few
seeds that they vary too little, by (E - 1) / E and without Student's tails: where seeds matter
most, it covers 85 %. A permutation of the signs of five seeds knows no p below 0.06. So seeds enter
by Student's t and examples, of which there are enough, by the normal distribution: the mean
difference less the true one is distributed as their sum (Behrens and Fisher). Intervals of that sum
cover 95 to 99 % in all of these cases. The split of the variance is that of Obuchowski and Rockette
(1995), whose readers and cases are our seeds and examples; the degrees of freedom of Hillis (2007)
cover 88 % with two seeds. These figures are kept in `experiments/reliability/coverage.csv`.

Without scores by example the test is the paired t test, and with one seed it is of examples alone.

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
optimize = libraries.Lazy("scipy.optimize")
_MOST_SEEDS = 1000
_ROUNDING = 1e-9  # of the largest value
_LARGE = 300.0  # a t beyond which SciPy's search for the noncentrality may not end
Interval = tuple[float, float]
# Quantiles, dense towards 0 where the tails of Student's t are, and their weights (Gauss-Legendre).
_NODES, _LENGTHS = np.polynomial.legendre.leggauss(100)
_QUANTILES, _WEIGHTS = ((_NODES + 1) / 2) ** 3, 1.5 * ((_NODES + 1) / 2) ** 2 * _LENGTHS


class Test(NamedTuple):
  """The test of a difference, in the metric's units.

  Attributes:
    difference: its mean over seeds.
    interval: of 95 %; None where nothing varies.
    p: two-sided; None where nothing varies but there is a difference.
    positive: the probability that the true difference is above 0, with a flat prior on it and on
      the logarithm of the deviation over seeds: the share of the test's distribution above 0.
    varied: what the test takes into account: "seeds and examples", "seeds", "examples" or
      "nothing".
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
      the factor that makes it unbiased; None of two seeds, which have no such factor.
    interval: of 95 % for the true size, by the noncentral t distribution.
    seeds_needed: the seeds with which the paired t test at 5 % (on the same examples, before any
      correction) finds a difference of size d_z with probability 0.8; None beyond a thousand.
  """

  g: float | None
  interval: Interval
  seeds_needed: int | None


def test(differences_E: Sequence[float], draws_EZ: Float[np.ndarray, "E Z"] | None = None) -> Test:
  """Tests that the mean of paired differences is not 0.

  Args:
    differences_E: of each seed, finite.
    draws_EZ: the same differences on resamples of the examples, which are the same for all seeds;
      finite.
  """
  values = np.asarray(differences_E, np.float64)
  mean, count = float(values.mean()), len(values)
  seeds = math.sqrt(_variance(values) / count)
  examples = 0.0 if draws_EZ is None else math.sqrt(_shared_variance(draws_EZ))
  known = ["seeds"] * (count > 1) + ["examples"] * (draws_EZ is not None)
  varied = " and ".join(known) or "nothing"
  if not seeds and not examples:
    return Test(mean, None, None if mean else 1.0, None if mean else 0.5, varied)
  above = lambda x: _above(x, seeds, examples, count - 1)
  bound = float(special.stdtrit(count - 1, 0.975)) * seeds if seeds else 0.0
  if examples:  # the sum reaches less far than both bounds together
    ends = 0.0, 2 * bound + 3 * examples
    bound = float(optimize.brentq(lambda x: above(x) - 0.025, *ends, rtol=1e-9))
  p, positive = 2 * above(abs(mean)), above(-mean)
  return Test(mean, (mean - bound, mean + bound), p, positive, varied)


def _above(x: float, seeds: float, examples: float, freedom: int) -> float:
  """Returns P(seeds * T + examples * N > x), with T of Student's t and N normal.

  Given the chi-square in T the sum is normal; that is integrated over the chi-square's quantiles.
  """
  if not examples:
    return float(special.stdtr(freedom, -x / seeds))
  if not seeds:
    return float(special.ndtr(-x / examples))
  squares = 2 * special.gammaincinv(freedom / 2, _QUANTILES)
  deviations = np.sqrt(seeds**2 * freedom / squares + examples**2)
  return float(special.ndtr(-x / deviations) @ _WEIGHTS)


def effect(differences_E: Sequence[float]) -> Effect | None:
  """Returns the effect size of paired differences; None with one seed, or where they are equal."""
  values = np.asarray(differences_E, np.float64)
  count, variance = len(values), _variance(values)
  if not variance:
    return None
  size, freedom, root = float(values.mean()) / math.sqrt(variance), count - 1, math.sqrt(count)
  # The noncentrality at which the observed t is the 97.5th, and the 2.5th percentile.
  of_share = lambda share: _noncentrality(freedom, share, abs(size) * root) / root
  low, high = sorted(math.copysign(1, size) * of_share(share) for share in (0.975, 0.025))
  return Effect(_unbiased(freedom) * size if count > 2 else None, (low, high), seeds_needed(size))


def _noncentrality(freedom: int, share: float, t: float) -> float:
  """Returns the noncentrality of the t distribution of which a share is below t, above 0."""
  if t < _LARGE:
    return float(special.nctdtrinc(freedom, share, t))
  # The normal part of so large a t does not matter beside its mean: what varies is the chi-square.
  return t * math.sqrt(2 * special.gammaincinv(freedom / 2, 1 - share) / freedom)


def _unbiased(freedom: int) -> float:
  """Returns the factor of Hedges (1981)."""
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


def holm(ps: Sequence[float | None], others: int = 0) -> list[float | None]:
  """Adjusts p-values so that 5 % bounds the chance of any false one among them (Holm 1979).

  None is no test, and stays None.

  Args:
    others: how many tests of the family are left out; they count as those with the largest p.
  """
  known = sorted((p, i) for i, p in enumerate(ps) if p is not None)
  adjusted: list[float | None] = [None] * len(ps)
  largest, count = 0.0, len(known) + others
  for rank, (p, i) in enumerate(known):
    adjusted[i] = largest = max(largest, min(1.0, (count - rank) * p))
  return adjusted


def _variance(values: np.ndarray) -> float:
  """Returns the variance of values; 0 of one value, or where they differ by rounding alone."""
  if len(values) < 2 or np.ptp(values) <= _ROUNDING * np.abs(values).max():
    return 0.0
  return float(values.var(ddof=1))


def _shared_variance(draws_EZ: np.ndarray) -> float:
  """Returns the variance by examples that all seeds share: their mean covariance, 0 or above.

  Of one seed it is its whole variance by examples.
  """
  count = len(draws_EZ)
  if not _variance(draws_EZ.mean(0)):
    return 0.0
  if count == 1:
    return _variance(draws_EZ[0])
  covariances = np.cov(draws_EZ)
  return max(0.0, float(covariances.sum() - np.trace(covariances)) / (count * (count - 1)))
