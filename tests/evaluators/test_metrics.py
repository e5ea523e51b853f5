from __future__ import annotations

import pytest
import sacrebleu

from jaxtune.errors import UserError
from jaxtune.evaluators import metrics

SAID = ["the cat sat on the mat today", "a dog barks at the moon tonight"]
ACCEPTED = [["the cat sat on a mat today", "a cat was on the mat"], ["the dog barks at the moon"]]


def test_exact_match_ignores_white_space_only():
  said = [" a  b\n", "A b", "c", "d"]
  assert metrics.exact_match(said, [["a b"], ["a b"], ["x", "c"], ["e"]]) == 50.0


def test_bleu_equals_sacrebleu_with_as_many_references_as_each_example_has():
  expected = (
    sacrebleu.BLEU()
    .corpus_score(
      SAID,
      [["the cat sat on a mat today", "the dog barks at the moon"], ["a cat was on the mat", None]],
    )
    .score
  )
  assert metrics.bleu(SAID, ACCEPTED) == pytest.approx(expected)
  reverse = [list(reversed(accepted)) for accepted in ACCEPTED]
  assert metrics.bleu(SAID, reverse) == pytest.approx(expected)
  single = [[accepted[0]] for accepted in ACCEPTED]
  raw = sacrebleu.raw_corpus_bleu(SAID, [[a for (a,) in single]]).score
  assert metrics.bleu(SAID, single) == pytest.approx(raw, abs=1.0)  # no smoothing is needed here


def test_bleu_of_the_reference_is_100_and_of_other_words_is_0():
  assert metrics.bleu(SAID, [[said] for said in SAID]) == pytest.approx(100)
  assert metrics.bleu(["alpha beta gamma delta"], [["one two three four"]]) == 0


def test_rouge_by_hand():
  said, accepted = ["the cat ran"], [["the dog ran fast"]]
  # Unigrams: 2 of 3 said, 2 of 4 accepted; F = 2 * 2 / (3 + 4). No common bigram. LCS: the, ran.
  assert metrics.rouge1(said, accepted) == pytest.approx(400 / 7)
  assert metrics.rouge2(said, accepted) == 0
  assert metrics.rougeL(said, accepted) == pytest.approx(400 / 7)
  # In another order the unigrams stay and the longest common subsequence shrinks to one.
  assert metrics.rouge1(["ran cat the"], accepted) == pytest.approx(400 / 7)
  assert metrics.rougeL(["ran cat the"], accepted) == pytest.approx(200 / 7)


def test_rouge_takes_the_best_reference_and_averages_examples():
  assert metrics.rouge2(["a b c", "x y"], [["z", "a b c"], ["q"]]) == pytest.approx(50)


def test_score_names_its_metrics_in_order():
  found = metrics.score(SAID, ACCEPTED)
  assert list(found) == ["exact_match", "bleu", "rougeL"]
  assert all(0 <= value <= 100 for value in found.values())
  assert metrics.score([], [], metrics=()) == {}


@pytest.mark.parametrize(
  "said, accepted, names, message",
  [
    (SAID, ACCEPTED, ("blue",), "Did you mean 'bleu'"),
    ([], [], ("bleu",), "no predictions"),
    (SAID, ACCEPTED[:1], ("bleu",), "2 predictions for 1"),
    (SAID, [["a"], []], ("rougeL",), "example 1 has no reference"),
    (SAID, ["a", "b"], ("exact_match",), "expected a list"),
  ],
)
def test_mistakes_are_named(said, accepted, names, message):
  with pytest.raises(UserError, match=message):
    metrics.score(said, accepted, names)


def test_directions_and_titles():
  for metric in ("loss", "test_loss", "validation_perplexity"):
    assert not metrics.higher_is_better(metric)
  for metric in ("test_accuracy", "exact_match", "test_exact_match", "rougeL"):
    assert metrics.higher_is_better(metric)
  assert metrics.title("test_loss") == "test loss (nats/token)"
  assert metrics.title("test_exact_match") == "test exact match (%)"
