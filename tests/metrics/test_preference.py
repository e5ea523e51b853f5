"""Metrics of rewards: calibration against a written-out reference, length, ties, Wilson."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from jaxtune import metrics
from jaxtune.metrics.kinds import preference
from jaxtune.metrics.proportions import wilson

RNG = np.random.default_rng(0)
REWARDS = (RNG.normal(size=(400, 2)) * 2).tolist()
TRUE = [
  {"difference": float(difference), "tokens": tokens}
  for difference, tokens in zip(
    RNG.integers(0, 4, 400), RNG.integers(5, 9, (400, 2)).tolist(), strict=True
  )
]


def by_hand():
  """The pairs that are no ties, in ten bins of their confidence: (confidences, right) of each."""
  bins = [([], []) for _ in range(10)]
  for (chosen, rejected), true in zip(REWARDS, TRUE, strict=True):
    if true["difference"]:
      confidence = max(1 / (1 + np.exp(rejected - chosen)), 1 / (1 + np.exp(chosen - rejected)))
      place = next(n for n in range(10) if confidence <= 0.55 + 0.05 * n + 1e-12)
      bins[place][0].append(confidence)
      bins[place][1].append(chosen > rejected)
  return bins


def test_calibration_error_is_the_mean_distance_in_ten_bins():
  bins = by_hand()
  total = sum(len(right) for _, right in bins)
  expected = sum(
    len(right) / total * abs(np.mean(right) - np.mean(confidence))
    for confidence, right in bins
    if right
  )
  assert metrics.score(REWARDS, TRUE, ["ece"])["ece"] == pytest.approx(100 * expected)
  curve = preference.calibration(REWARDS, TRUE)
  assert [row["pairs"] for row in curve] == [len(right) for _, right in bins if right]
  for row, (confidence, right) in zip(curve, [one for one in bins if one[1]], strict=True):
    assert row["confidence"] == pytest.approx(100 * np.mean(confidence))
    assert row["right"] == pytest.approx(100 * np.mean(right))


def test_calibrated_rewards_have_no_error_and_reversed_ones_the_largest():
  true = [{"difference": 1.0, "tokens": [1, 1]}] * 100
  logit = np.log(0.8 / 0.2)
  calibrated = [[logit, 0.0]] * 80 + [[0.0, logit]] * 20
  assert metrics.score(calibrated, true, ["ece"])["ece"] == pytest.approx(0, abs=1e-9)
  assert metrics.score([[-50.0, 50.0]] * 100, true, ["ece"])["ece"] == pytest.approx(100)
  assert np.isnan(metrics.score([[np.nan, 0.0]] * 100, true, ["ece"])["ece"])


def test_accuracy_by_length_and_ties():
  rewards = [[1, 0], [0, 1], [3, 0], [1, 1], [0.5, 0], [0, 2]]
  tokens = [[5, 2], [5, 2], [2, 5], [2, 5], [4, 4], [9, 1]]
  difference = [1, 2, 1, 1, 0, 0]
  true = [{"difference": d, "tokens": t} for d, t in zip(difference, tokens, strict=True)]
  found = preference.by_length(rewards, true)
  assert {name: (row["right"], row["pairs"]) for name, row in found.items()} == {
    "longer": (50, 2), "shorter": (75, 2)
  }  # fmt: skip
  assert preference.ties(rewards, true) == {"pairs": 2, "ties": 1.25, "others": 1.25}
  assert preference.ties(rewards[:4], true[:4]) == {}


@pytest.mark.parametrize("count, of", [(0, 7), (5, 7), (7, 7), (123, 400)])
def test_wilson_s_interval_is_scipy_s(count, of):
  known = binomtest(count, of).proportion_ci(method="wilson")
  assert wilson(count, of) == pytest.approx((known.low, known.high))
  assert np.isnan(wilson(0, 0)).all()


def test_wilson_s_interval_holds_the_share():
  for of in range(1, 200):
    for count in (0, of):
      low, high = wilson(count, of)
      assert low <= count / of <= high
