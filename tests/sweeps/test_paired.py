"""Tests agree with scipy's, intervals cover as they say, and Holm bounds the family's error."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import optimize
from scipy import stats as scipy_stats

from jaxtune.sweeps import paired

A = np.array([1.9, 2.1, 1.7, 2.4, 2.0])
B = np.array([2.0, 2.6, 1.8, 2.9, 2.1])


def rng():
  return np.random.default_rng(0)


def test_without_draws_it_is_the_paired_t_test():
  found, expected = paired.test(A - B), scipy_stats.ttest_rel(A, B)
  assert found.difference == pytest.approx(np.mean(A - B)) and found.varied == "seeds"
  assert found.p == pytest.approx(expected.pvalue)
  assert found.interval == pytest.approx(tuple(expected.confidence_interval(0.95)))
  less = scipy_stats.ttest_rel(A, B, alternative="less")
  assert 1 - found.positive == pytest.approx(1 - less.pvalue)
  # Draws that no example changes add nothing.
  same = paired.test(A - B, np.repeat((A - B)[:, None], 50, 1))
  assert same == found._replace(varied="seeds and examples")


def test_one_seed_is_tested_by_examples_alone():
  draws_EZ = rng().normal(0.3, 0.2, (1, 4000))
  found, normal = paired.test([0.3], draws_EZ), scipy_stats.norm(0.3, draws_EZ.std(ddof=1))
  assert found.varied == "examples" and found.interval == pytest.approx(normal.interval(0.95))
  assert found.p == pytest.approx(2 * normal.cdf(0))


def test_seeds_and_examples_add_up_as_student_and_normal():
  shared_Z, count = rng().normal(0, 0.1, 1000), 200_000
  found = paired.test(A - B, (A - B)[:, None] + shared_Z)
  assert found.varied == "seeds and examples"
  drawn = rng().standard_t(4, count) * scipy_stats.sem(A - B)
  drawn += rng().normal(0, shared_Z.std(ddof=1), count)
  assert found.p == pytest.approx((abs(drawn) > abs(found.difference)).mean(), abs=2e-3)
  reach = np.quantile(abs(drawn), 0.95)
  assert found.interval == pytest.approx(
    (found.difference - reach, found.difference + reach), abs=5e-3
  )


def test_what_seeds_do_not_share_is_not_counted_twice():
  """Noise of the examples that is independent in every seed is in the variance over seeds.

  Taken for shared, it would make the intervals wider by 0.9.
  """
  alone = rng().normal(0, 1, (5, 20_000))
  assert paired.test(A - B, alone).interval == pytest.approx(paired.test(A - B).interval, abs=0.05)


@pytest.mark.parametrize(
  ("of_seeds", "of_examples", "fails"),
  [(0.3, 0.5, "bootstrap"), (0.1, 1.5, "t"), (0.02, 3.0, "t")],
)
def test_intervals_cover_in_a_crossed_design(of_seeds, of_examples, fails):
  """Three seeds are scored on the same examples; both are drawn anew in every trial.

  Where seeds matter most, a bootstrap of both covers too little; where examples do, the t test.
  """
  draw, trials, seeds, examples = rng(), 500, 3, 100
  counts_ZX = draw.multinomial(examples, np.full(examples, 1 / examples), 200) / examples
  covered = {"both": 0, "t": 0, "bootstrap": 0}
  for _ in range(trials):
    scores_EX = draw.normal(0, of_examples, examples) + draw.normal(0, of_seeds, (seeds, 1))
    scores_EX = scores_EX + draw.normal(0, 1, (seeds, examples))
    differences, draws_EZ = scores_EX.mean(1), scores_EX @ counts_ZX.T
    chosen = draw.integers(seeds, size=(200, seeds))
    resampled = np.take_along_axis(draws_EZ.T, chosen, 1).mean(1)
    intervals = {
      "both": paired.test(differences, draws_EZ).interval,
      "t": paired.test(differences).interval,
      "bootstrap": np.quantile(resampled, (0.025, 0.975)),
    }
    for name, (low, high) in intervals.items():
      covered[name] += low < 0 < high
  assert 0.93 < covered["both"] / trials < 0.995
  assert covered[fails] / trials < 0.9


def test_intervals_over_seeds_cover():
  draw, count = rng(), 1500
  low, high = np.transpose([paired.test(x).interval for x in draw.normal(1, 1, (count, 4))])
  assert abs(((low < 1) & (high > 1)).mean() - 0.95) < 0.02


def test_an_effect_has_its_size_and_its_exact_interval():
  found, values = paired.effect(A - B), A - B
  size = values.mean() / values.std(ddof=1)
  assert found.g == pytest.approx(size * (1 - 3 / (4 * 4 - 1)), rel=5e-3)  # Hedges' approximation
  t = abs(size) * math.sqrt(5)
  ends = [
    optimize.brentq(lambda d, s=share: scipy_stats.nct.cdf(t, 4, d) - s, -5, 12) / math.sqrt(5)
    for share in (0.975, 0.025)
  ]
  assert found.interval == pytest.approx((-ends[1], -ends[0]), rel=1e-4)
  turned = paired.effect(B - A)
  assert turned.g == -found.g and turned.interval == pytest.approx(tuple(ends), rel=1e-4)
  assert paired.effect([0.3]) is None and paired.effect([0.3, 0.3, 0.3]) is None
  assert paired.effect([0.1, 0.3]).g is None, "two seeds have no unbiased size"
  # Seeds that hardly differ: then t is the mean over a chi-square's root, in closed form.
  nearly = paired.effect([1, 1.000001, 0.999999])
  ends = np.sqrt(scipy_stats.chi2.ppf((0.025, 0.975), 2) / 2) * 1e6
  assert nearly.interval == pytest.approx(tuple(ends), rel=1e-5)


@pytest.mark.parametrize("size", [0.1, 0.3, 0.5, 1.0, 2.0, 4.0])
def test_seeds_needed_are_the_fewest_with_that_power(size):
  def power(count):
    bound, shift = scipy_stats.t.ppf(0.975, count - 1), size * math.sqrt(count)
    return scipy_stats.nct.sf(bound, count - 1, shift) + scipy_stats.nct.cdf(
      -bound, count - 1, shift
    )

  count = paired.seeds_needed(-size)
  assert power(count) >= 0.8 and (count == 2 or power(count - 1) < 0.8)


def test_no_number_of_seeds_finds_nothing():
  assert paired.seeds_needed(0.0) is None and paired.seeds_needed(0.01) is None
  assert paired.seeds_needed(math.inf) == 2


def test_holm_rejects_what_his_steps_reject():
  for ps in rng().uniform(0, 0.08, (20, 6)):
    adjusted = paired.holm(ps)
    order, rejected = np.argsort(ps), set()
    for rank, i in enumerate(order):
      if ps[i] > 0.05 / (6 - rank):
        break
      rejected.add(i)
    assert {i for i, p in enumerate(adjusted) if p <= 0.05} == rejected
  assert paired.holm([None, 0.02, None, 0.03]) == [None, 0.04, None, 0.04]
  assert paired.holm([]) == [] and paired.holm([0.01, 0.001], others=2) == [0.03, 0.004]


def test_holm_keeps_the_error_of_the_family():
  """Seven configurations are equal, and are compared with one that was named, or with the best.

  Of the best one, which the same values have chosen, only the correction for all pairs is enough.
  """
  values, (a, b) = rng().normal(0, 1, (2000, 7, 5)), np.triu_indices(7, 1)
  ps = scipy_stats.ttest_1samp(values[:, a] - values[:, b], 0, axis=2).pvalue  # of all 21 pairs
  best = values.mean(2).argmin(1)
  with_best = (a == best[:, None]) | (b == best[:, None])
  errors = lambda smallest: np.mean(np.array(smallest) < 0.05)
  family = lambda chosen: [min(paired.holm(p[of])) for p, of in zip(ps, chosen, strict=True)]
  assert errors(ps[:, :6].min(1)) > 0.15, "without a correction"
  assert 0.02 < errors(family([slice(6)] * 2000)) < 0.065
  assert errors(family(with_best)) > 0.08
  of_pairs = [np.array(paired.holm(p))[of].min() for p, of in zip(ps, with_best, strict=True)]
  assert 0.01 < errors(of_pairs) < 0.065


@pytest.mark.parametrize(
  ("differences", "p", "positive"),
  [([0.0, 0.0, 0.0], 1.0, 0.5), ([0.3, 0.3, 0.3], None, None), ([0.1 + 0.2, 0.3], None, None)],
)
def test_what_does_not_vary_has_no_p(differences, p, positive):
  found = paired.test(differences)
  assert (found.p, found.positive, found.interval) == (p, positive, None)
  assert found.varied == "seeds" and paired.test(differences[:1]).varied == "nothing"
