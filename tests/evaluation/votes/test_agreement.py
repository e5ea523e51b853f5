"""Intervals and kappas against scipy, sklearn and a published table."""

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from jaxtune.evaluation.votes import agreement
from jaxtune.evaluation.votes.voting import Vote

# Fourteen raters put ten subjects into five categories; kappa is 0.210:
# https://en.wikipedia.org/wiki/Fleiss%27_kappa#Worked_example
TABLE = """0 0 0 0 14, 0 2 6 4 2, 0 0 3 5 6, 0 3 9 2 0, 2 2 8 1 1,
           7 7 0 0 0, 3 2 6 3 0, 2 5 3 2 2, 6 5 2 1 0, 0 2 2 3 7"""


def votes(*given, left="a"):
  """Makes votes of (rater, pair, choice)."""
  return [Vote(rater, pair, choice, left, "", 0.0) for rater, pair, choice in given]


def test_cohen_s_kappa_is_sklearn_s():
  rng = np.random.default_rng(0)
  for count in (5, 40, 300):
    first = rng.choice(["a", "tie", "b"], count, p=[0.5, 0.2, 0.3])
    second = np.where(rng.random(count) < 0.6, first, rng.choice(["a", "tie", "b"], count))
    found = agreement.cohen(list(first), list(second))
    assert found == pytest.approx(cohen_kappa_score(first, second))


def test_fleiss_kappa_is_that_of_a_published_table():
  counts = np.array([list(map(int, row.split())) for row in TABLE.split(",")])
  assert round(agreement.fleiss(counts), 3) == 0.210
  more = np.concatenate([counts, [[1, 0, 0, 0, 0]]])  # one vote agrees with no other
  assert agreement.fleiss(more) == agreement.fleiss(counts)


def test_what_is_not_defined_is_none():
  assert agreement.cohen([], []) is None
  assert agreement.cohen(["a", "a"], ["a", "a"]) is None
  assert agreement.fleiss(np.array([[3, 0, 0], [2, 0, 0]])) is None
  found = agreement.summarise([], ("a", "b"), 3)
  assert found["win_rate"] is None and found["agreement"] is None and found["left"] is None


def test_ties_count_half_and_skips_not_at_all():
  given = votes(("x", 1, "a"), ("x", 2, "tie"), ("x", 3, "b"), ("x", 4, "a"), ("x", 5, "skip"))
  found = agreement.summarise(given, ("one", "two"), 6)
  counts = [found[name] for name in ("wins", "ties", "losses", "skips", "judged")]
  assert counts == [2, 1, 1, 1, 4]
  assert found["win_rate"] == 2.5 / 4 and found["interval"] == agreement.wilson(2.5, 4)
  assert found["left"] == 2 / 3, "the left side is a's here"


def test_more_raters_of_the_same_pairs_do_not_narrow_the_interval():
  alone = votes(*(("x", n, "ab"[n % 2]) for n in range(8)))
  several = alone + votes(*(("y", n, "ab"[n % 2]) for n in range(8)))
  intervals = [agreement.tally(given)["interval"] for given in (alone, several)]
  assert intervals[0] == intervals[1]


def test_two_raters_are_compared_by_cohen_and_three_by_fleiss_on_what_they_share():
  first = votes(("x", 1, "a"), ("x", 2, "b"), ("x", 3, "tie"), ("x", 4, "a"), ("x", 5, "a"))
  second = votes(("y", 1, "a"), ("y", 2, "b"), ("y", 3, "a"), ("y", 4, "b"), ("y", 6, "skip"))
  found = agreement.agree(first + second)
  assert (found["kind"], found["pairs"], found["agreed"]) == ("Cohen's kappa", 4, 0.5)
  expected = cohen_kappa_score(["a", "b", "tie", "a"], ["a", "b", "a", "b"])
  assert found["kappa"] == pytest.approx(expected)
  third = agreement.agree(first + second + votes(("z", 1, "a"), ("z", 5, "b")))
  # By hand: pairs 1 to 5 have 3, 2, 2, 2 and 2 votes, of which 1, 1, 0, 0 and 0 agree; the 11 votes
  # are 6 a, 1 tie and 4 b.
  by_chance = (36 + 1 + 16) / 121
  assert third["kind"] == "Fleiss' kappa" and third["kappa"] == pytest.approx(
    (0.4 - by_chance) / (1 - by_chance)
  )
