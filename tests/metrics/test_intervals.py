from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from support.shapes import checked

from jaxtune import metrics
from jaxtune.errors import UserError
from jaxtune.metrics import intervals

WORDS = ["the", "a", "cat", "dog", "sat", "on", "mat", "moon", "barks", "loudly", "in", "town"]


def interval(metric, said, true, **options):
  return checked(intervals.between)(checked(intervals.draws)(metric, said, true, **options))


def ratio_interval(sums, weights):
  return checked(intervals.between)(checked(intervals.ratio_draws)(sums, weights))


def noisy(rng, true, choices, share):
  return [x if rng.random() > share else choices[rng.integers(len(choices))] for x in true]


def examples(kind, count, seed=0, share=0.4):
  """Makes predictions that are wrong for a share, with references."""
  rng = np.random.default_rng(seed)
  if kind == "label":
    true = [str(x) for x in rng.choice(list("aaabbcd"), count)]
    return noisy(rng, true, list("abcde"), share), true
  if kind == "number":
    true = rng.integers(0, 4, count).astype(float)  # with ties
    return [x + round(2 * share * rng.normal()) for x in true], list(true)
  if kind == "preference":
    rewards = rng.normal(0, 2, (count, 2)).tolist()
    return rewards, [{"difference": float(x), "tokens": [1, 1]} for x in rng.integers(0, 4, count)]
  choices = WORDS if kind == "text" else ["O", "O", "B-a", "I-a", "B-b", "I-b"]
  true = [rng.choice(choices, rng.integers(4, 9)).tolist() for _ in range(count)]
  if kind == "tags":  # of true ones a B begins every span
    spans = [["O"], ["O"], ["B-a"], ["B-a", "I-a"], ["B-b", "I-b"]]
    drawn = rng.integers(len(spans), size=(count, 5)).tolist()
    true = [sum((spans[n] for n in numbers), []) for numbers in drawn]
  said = [noisy(rng, one, choices, share) for one in true]
  if kind == "tags":
    return said, true
  second = [" ".join(noisy(rng, one, choices, 0.2)) for one in true]
  several = [[" ".join(one), *others] for one, others in zip(true, zip(second), strict=True)]
  return [" ".join(one) for one in said], [one[: 1 + i % 2] for i, one in enumerate(several)]


@pytest.mark.parametrize("metric", metrics.METRICS)
@pytest.mark.parametrize("count", [5, 40])
def test_a_resample_is_what_the_library_says_of_its_examples(metric, count):
  found = metrics.METRICS[metric]
  said, true = examples(metrics.kind_of(metric), count)
  statistics = checked(found.statistics)(said, true)
  rng = np.random.default_rng(1)
  chosen = [np.arange(count), np.full(count, 2), *rng.integers(count, size=(6, count))]
  counts_ZX = np.stack([np.bincount(one, minlength=count) for one in chosen]).astype(float)
  expected = [
    metrics.score([said[i] for i in one], [true[i] for i in one], [metric])[metric]
    for one in chosen
  ]
  values_Z = checked(found.combine)(counts_ZX, statistics)
  np.testing.assert_allclose(values_Z, expected, rtol=1e-9, atol=1e-9)


def test_the_interval_of_a_mean_is_scipys():
  said, true = examples("label", 50)
  right = 100.0 * (np.array(said) == np.array(true))
  theirs = stats.bootstrap(
    (right,), np.mean, n_resamples=1000, method="percentile", rng=np.random.default_rng(7)
  ).confidence_interval
  assert interval("accuracy", said, true, seed=7) == pytest.approx(tuple(theirs))


@pytest.mark.parametrize("metric", ["bleu", "macro_f1", "pearson", "span_f1"])
def test_intervals_contain_the_score_and_shrink(metric):
  kind = metrics.kind_of(metric)
  widths = []
  for count in (40, 640):
    said, true = examples(kind, count)
    low, high = interval(metric, said, true, resamples=300)
    assert low < metrics.score(said, true, [metric])[metric] < high
    widths.append(high - low)
  assert 2.5 < widths[0] / widths[1] < 6.5  # as the root of 16


def test_95_of_100_intervals_contain_the_truth():
  rng = np.random.default_rng(0)
  hits = 0
  for trial in range(300):
    said = noisy(rng, ["x"] * 60, ["y"], 0.3)
    low, high = interval("accuracy", said, ["x"] * 60, seed=trial, resamples=300)
    hits += low <= 70 <= high
  assert 0.90 < hits / 300 < 0.99


def test_a_difference_is_paired():
  said, true = examples("text", 60, share=0.5)
  better = [true[3][0] if i == 3 else one for i, one in enumerate(said)]
  scores = [metrics.score(one, true, ["chrf"])["chrf"] for one in (better, said)]
  difference = scores[0] - scores[1]
  drawn = [intervals.draws("chrf", one, true) for one in (better, said, said)]
  assert intervals.between(drawn[2] - drawn[1]) == (0, 0)
  low, high = intervals.between(drawn[0] - drawn[1])
  # The draws without example 3 differ in nothing; those with it, in favour of `better`.
  assert low == 0 < difference < high
  alone = interval("chrf", said, true)
  assert high - low < 0.5 * (alone[1] - alone[0])


def test_the_same_seed_draws_the_same():
  said, true = examples("label", 30)
  one = intervals.draws("macro_f1", said, true, seed=1, resamples=50)
  assert (one == intervals.draws("macro_f1", said, true, seed=1, resamples=50)).all()
  assert (one != intervals.draws("macro_f1", said, true, seed=2, resamples=50)).any()


def test_blocks_hold_every_draw(monkeypatch):
  monkeypatch.setattr(intervals, "_CELLS", 70)
  blocks = list(intervals._counts(np.arange(30), 30, seed=0, resamples=9))
  assert [len(block) for block in blocks] == [2, 2, 2, 2, 1]
  assert (np.concatenate(blocks).sum(1) == 30).all()


def test_ratios():
  rng = np.random.default_rng(0)
  weights = rng.integers(1, 20, 400)
  sums = weights * 2.0 + rng.normal(size=400)
  low, high = ratio_interval(sums, weights)
  assert low < sums.sum() / weights.sum() < high
  # The delta method: the spread of the residuals over the mean weight.
  residuals = sums - weights * sums.sum() / weights.sum()
  half_width = 1.96 * residuals.std() / weights.mean() / np.sqrt(400)
  assert (high - low) / 2 == pytest.approx(half_width, rel=0.15)
  drawn = [intervals.ratio_draws(x, weights) for x in (sums + weights, sums)]
  assert intervals.between(drawn[0] - drawn[1]) == pytest.approx((1, 1))
  equal = intervals.ratio_draws(100.0 * (sums > 8), np.ones(400), resamples=20)
  label = intervals.draws("accuracy", (sums > 8).tolist(), [True] * 400, resamples=20)
  np.testing.assert_allclose(equal, label)


@pytest.mark.parametrize("metric", ["accuracy", "ece", "bleu", "mse"])
def test_what_is_drawn_as_a_whole_counts_as_one(metric, monkeypatch):
  """Equal examples of each unit say no more than one of them, in any order."""
  said, true = examples(metrics.kind_of(metric), 30)
  units = np.random.default_rng(1).permutation(np.repeat(np.arange(30), 3))
  thrice = lambda values: [values[unit] for unit in units]
  alone = intervals.draws(metric, said, true, resamples=50)
  monkeypatch.setattr(intervals, "_CELLS", 200)  # blocks of other sizes
  together = intervals.draws(metric, thrice(said), thrice(true), resamples=50, units=units)
  np.testing.assert_allclose(together, alone)
  sums, weights = np.random.default_rng(2).uniform(1, 2, (2, 30))
  found = intervals.ratio_draws(sums[units], weights[units], resamples=50, units=units)
  np.testing.assert_allclose(found, intervals.ratio_draws(sums, weights, resamples=50))
  assert np.isnan(intervals.ratio_draws(sums, weights, units=np.zeros(30, int))).all()


def test_what_has_no_interval():
  assert np.isnan(interval("accuracy", ["a"], ["a"])).all()
  assert np.isnan(ratio_interval([np.inf, 1.0], [1.0, 1.0])).all()
  assert np.isnan(intervals.between(np.array([1.0] * 999 + [np.inf]))).all()
  assert np.isnan(ratio_interval([1.0, 0.0], [1.0, 0.0])).all()
  assert interval("accuracy", ["a"] * 3, ["a"] * 3) == (100, 100)
  with pytest.raises(UserError, match="did you mean 'bleu'"):
    interval("blue", ["a"], [["a"]])
