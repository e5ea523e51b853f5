from __future__ import annotations

import warnings

import numpy as np
import pytest
import sacrebleu
from sklearn import dummy

from jaxtune import metrics
from jaxtune.errors import UserError
from jaxtune.metrics.kinds import label, tags

SAID = ["the cat sat on the mat today", "a dog barks at the moon tonight"]
ACCEPTED = [["the cat sat on a mat today", "a cat was on the mat"], ["the dog barks at the moon"]]


def of(metric, predictions, references):
  return metrics.score(predictions, references, [metric])[metric]


def spans_of(tags):
  """Reads (first, last, type) of each span, as IOB2 is defined."""
  found = set()
  for first, tag in enumerate(tags):
    if tag.startswith("B-"):
      last = first
      while last + 1 < len(tags) and tags[last + 1] == f"I-{tag[2:]}":
        last += 1
      found.add((first, last, tag[2:]))
  return found


def test_exact_match_ignores_white_space_only():
  said = [" a  b\n", "A b", "c", "d"]
  assert of("exact_match", said, [["a b"], ["a b"], ["x", "c"], ["e"]]) == 50.0


@pytest.mark.parametrize("metric, theirs", [("bleu", sacrebleu.BLEU), ("chrf", sacrebleu.CHRF)])
def test_sacrebleu_with_as_many_references_as_each_example_has(metric, theirs):
  streams = [
    ["the cat sat on a mat today", "the dog barks at the moon"],
    ["a cat was on the mat", None],
  ]
  expected = theirs().corpus_score(SAID, streams).score
  assert of(metric, SAID, ACCEPTED) == pytest.approx(expected)
  reverse = [list(reversed(accepted)) for accepted in ACCEPTED]
  assert of(metric, SAID, reverse) == pytest.approx(expected)
  last = [[accepted[-1]] for accepted in ACCEPTED]
  assert of(metric, SAID, last) < expected
  assert of(metric, SAID, [[said] for said in SAID]) == pytest.approx(100)
  assert of(metric, ["abcdef ghi"], [["uvw xyz"]]) == 0


def test_rouge_by_hand():
  said, accepted = ["the cat ran"], [["the dog ran fast"]]
  # Unigrams: 2 of 3 said, 2 of 4 accepted; F = 2 * 2 / (3 + 4). No common bigram. LCS: the, ran.
  assert of("rouge1", said, accepted) == pytest.approx(400 / 7)
  assert of("rouge2", said, accepted) == 0
  assert of("rougeL", said, accepted) == pytest.approx(400 / 7)
  # In another order the unigrams stay and the longest common subsequence shrinks to one.
  assert of("rouge1", ["ran cat the"], accepted) == pytest.approx(400 / 7)
  assert of("rougeL", ["ran cat the"], accepted) == pytest.approx(200 / 7)
  assert of("rouge2", ["a b c", "x y"], [["z", "a b c"], ["q"]]) == pytest.approx(50)


@pytest.mark.parametrize(
  "said, accepted, exact, f1",
  [
    ("The Eiffel Tower!", ["eiffel  tower"], 100, 100),
    ("Denver", ["Carolina", "Denver Broncos"], 0, 200 / 3),
    ("a an the", ["the"], 100, 100),  # nothing is left of either
    ("theory", ["ory"], 0, 0),  # an article is a whole word
    ("", ["Paris"], 0, 0),
    ("", ["", "Paris"], 100, 100),
    ("to be or not to be", ["to be to be to"], 0, 100 * 2 * 4 / 11),  # a word counts as often
  ],
)
def test_squad_by_hand(said, accepted, exact, f1):
  assert of("squad_exact_match", [said], [accepted]) == exact
  assert of("squad_f1", [said], [accepted]) == pytest.approx(f1)


def test_labels_by_hand():
  true, said = [0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 1, 1]
  found = metrics.score(said, true, metrics.of_kind("label"))
  # Recalls 2/3, 1, 0. F1: 4/5, 4/6, 0. Right 4 of 6.
  assert found["accuracy"] == found["micro_f1"] == pytest.approx(400 / 6)
  assert found["balanced_accuracy"] == pytest.approx(500 / 9)
  assert found["macro_f1"] == pytest.approx(100 * (4 / 5 + 2 / 3) / 3)
  # Gorodkin: (4 * 6 - (3 * 2 + 2 * 4)) / sqrt((36 - (4 + 16)) * (36 - (9 + 4 + 1)))
  assert found["matthews"] == pytest.approx(100 * 10 / np.sqrt(16 * 22))
  names = np.array(["no", "yes", "maybe"])
  assert metrics.score(names[said], list(names[true]), list(found)) == pytest.approx(found)


def test_spans_are_read_strictly():
  rng = np.random.default_rng(0)
  spans = [["O"], ["O"], ["B-a"], ["B-a", "I-a"], ["B-b", "I-b"]]
  true = [sum((spans[n] for n in row), []) for row in rng.integers(len(spans), size=(60, 5))]
  said = [rng.choice(["O", "O", "B-a", "I-a", "B-b", "I-b"], len(row)).tolist() for row in true]
  right = sum(len(spans_of(s) & spans_of(t)) for s, t in zip(said, true, strict=True))
  precision = right / sum(len(spans_of(s)) for s in said)
  recall = right / sum(len(spans_of(t)) for t in true)
  assert 0 < precision < 1
  assert of("span_precision", said, true) == pytest.approx(100 * precision)
  assert of("span_recall", said, true) == pytest.approx(100 * recall)
  assert of("span_f1", said, true) == pytest.approx(200 / (1 / precision + 1 / recall))
  assert of("span_f1", [["O", "I-a"]], [["B-a", "I-a"]]) == 0  # an I alone is no span
  assert of("span_f1", [["O"]], [["O"]]) == 0
  rows = tags.per_class(said, true)
  assert [row.label for row in rows] == ["a", "b"]
  for row in rows:
    of_type = lambda tags, kind=row.label: {span for span in spans_of(tags) if span[2] == kind}
    hit = sum(len(of_type(s) & of_type(t)) for s, t in zip(said, true, strict=True))
    assert row.support == sum(len(of_type(t)) for t in true)
    assert row.recall == pytest.approx(100 * hit / row.support)
  assert tags.per_class([["O"]], [["O"]]) == []


def test_numbers():
  true = [1.0, 2.0, 3.0, 4.0]
  found = metrics.score([2.0, 4.0, 6.0, 80.0], true, ("pearson", "spearman", "mse"))
  assert found["spearman"] == pytest.approx(100)
  assert found["pearson"] == pytest.approx(100 * np.corrcoef([2, 4, 6, 80], true)[0, 1])
  assert found["mse"] == (1 + 4 + 9 + 76**2) / 4
  constant = metrics.score([1.5] * 4, true, ("pearson", "spearman", "mse"))
  assert (constant["pearson"], constant["spearman"]) == (0, 0)
  lost = metrics.score([1.5, np.nan, 2.0, 2.0], true, ("pearson", "spearman", "mse"))
  assert np.isnan(list(lost.values())).all()
  for name in lost:  # as is each resample
    metric = metrics.METRICS[name]
    counted = metric.statistics([1.5, np.nan, 2.0, 2.0], true)
    assert np.isnan(metric.combine(np.ones((1, 4)), counted)).all()
  assert of("mse", np.float32([1, 2]), np.array([1, 3])) == 0.5


def test_no_metric_warns():
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    for metric in metrics.of_kind("label"):
      of(metric, ["a", "a", "b"], ["a", "a", "c"])
      of(metric, ["a"], ["a"])
    for metric in metrics.of_kind("tags"):
      of(metric, [["O", "O"]], [["B-x", "O"]])
    assert of("pearson", [1.0], [1.0]) == 0


def test_score_names_its_metrics_in_order():
  found = metrics.score(SAID, ACCEPTED)
  assert list(found) == ["exact_match", "bleu", "rougeL"]
  assert all(0 <= value <= 100 for value in found.values())
  assert metrics.score([], [], metrics=()) == {}


@pytest.mark.parametrize(
  "said, true, names, message",
  [
    (SAID, ACCEPTED, ("blue",), "did you mean 'bleu'"),
    (SAID, ACCEPTED, ("perplexity",), "measured on every split"),
    ([], [], ("bleu",), "no predictions"),
    (SAID, ACCEPTED[:1], ("bleu",), "2 predictions for 1"),
    (SAID, [["a"], []], ("rougeL",), "example 1 has no reference"),
    (SAID, ["a", "b"], ("exact_match",), "judges text, expected a string against a list"),
    (SAID, ACCEPTED, ("span_f1",), "not example 0.*; metrics of text: exact_match, bleu"),
    (["a", "b"], ["a", 1], ("accuracy",), "accuracy judges label.*not example 1, 'b' against 1"),
    ([1.5], [1], ("mse", "macro_f1"), "macro_f1 judges.*metrics of number: pearson, spearman, mse"),
    ([["O"]], [["O", "O"]], ("span_f1",), "example 0 has 1 predicted tags for 2 words"),
    ([["O"]], [["E-x"]], ("span_f1",), "the tag 'E-x'; expected 'O', 'B-type'"),
    ([["B-"]], [["O"]], ("span_f1",), "the tag 'B-'"),
    ([["O"] * 2], [["O", "I-x"]], ("span_f1",), "true tag 'I-x' behind 'O', expected IOB2"),
    ([["O"] * 2], [["B-y", "I-x"]], ("span_f1",), "true tag 'I-x' behind 'B-y'"),
  ],
)
def test_mistakes_are_named(said, true, names, message):
  with pytest.raises(UserError, match=message):
    metrics.score(said, true, names)


def test_metrics_are_checked_before_there_are_predictions():
  metrics.check(["bleu", "squad_f1"], "text")
  with pytest.raises(UserError, match="span_f1 judges tags.*metrics of text: exact_match"):
    metrics.check(["span_f1"], "text")
  with pytest.raises(UserError, match="did you mean 'span_f1'"):
    metrics.check(["spanf1"], "tags")


def test_the_baseline_ignores_the_input():
  true = ["b", "a", "a", "c"]
  found = metrics.baseline(true, ("accuracy", "balanced_accuracy", "matthews", "macro_f1"))
  constant = dummy.DummyClassifier().fit(np.zeros((4, 1)), true)
  assert found["accuracy"] == 100 * constant.score(np.zeros((4, 1)), true)
  assert found["balanced_accuracy"] == pytest.approx(100 / 3) and found["matthews"] == 0
  assert metrics.baseline(true, ("accuracy",), seen=["c", "c", "b"]) == {"accuracy": 25}
  assert metrics.baseline([1.0, 3.0], ("mse", "pearson"), seen=[1.0]) == {"mse": 2, "pearson": 0}
  assert metrics.baseline([["x"], ["y", "x"], ["x"]], ("exact_match",)) == {"exact_match": 100}
  assert metrics.baseline([["B-a", "O"]], ("span_f1",)) == {"span_f1": 0}
  assert metrics.baseline([4, 4, 1], ("accuracy", "mse")) == pytest.approx(
    {"accuracy": 200 / 3, "mse": 2}
  )


def test_table_of_classes():
  true, said = ["x", "x", "y", "accuracy"], ["x", "y", "y", "y"]
  rows = label.per_class(said, true, ["y", "accuracy", "x", "unseen"])
  assert [row.label for row in rows] == ["y", "accuracy", "x", "unseen"]
  assert rows[0] == pytest.approx(("y", 100 / 3, 100, 50, 1))
  assert rows[2] == pytest.approx(("x", 100, 50, 200 / 3, 2))
  assert rows[1][1:] == (0, 0, 0, 1) and rows[3][1:] == (0, 0, 0, 0)
  with pytest.raises(UserError, match="label 'accuracy' is not among the classes"):
    label.per_class(said, true, ["x", "y"])


def test_confusion():
  found = label.confusion([1, 1, 2, 0], [0, 1, 1, 0], [0, 1, 2])
  np.testing.assert_array_equal(found.counts_CC, [[1, 1, 0], [0, 1, 1], [0, 0, 0]])
  np.testing.assert_array_equal(found.shares_CC, [[0.5, 0.5, 0], [0, 0.5, 0.5], [0, 0, 0]])
  assert found.labels == (0, 1, 2)


def test_directions_and_titles():
  for metric in ("loss", "test_loss", "validation_perplexity", "test_mse", "test_loss/bleu",
                 "test_rejected", "validation_drift/mean"):  # fmt: skip
    assert not metrics.higher_is_better(metric)
  # A reward that is named like a metric has neither its unit nor its direction.
  assert metrics.title("test_reward_exact_match") == "test reward exact match"
  assert all(map(metrics.higher_is_better, ("test_reward_neg_loss", "test_reward_step_down")))
  for metric in ("test_accuracy", "exact_match", "test_exact_match", "rougeL", "other"):
    assert metrics.higher_is_better(metric)
  assert metrics.title("test_loss") == "test loss"
  assert metrics.title("loss") == "loss"
  assert metrics.title("test_exact_match") == "test exact match (%)"
  assert metrics.title("test_squad_exact_match") == "test SQuAD exact match (%)"
  assert metrics.title("validation_sst2_macro_f1") == "validation sst2 macro F1 (%)"
  assert metrics.title("test_loss/sst2_en") == "test loss, sst2_en"
  assert metrics.title("test_bleu/mean") == "test BLEU, mean of tasks"
  assert metrics.title("seconds_per_trial") == "seconds per trial"


def test_every_metric_has_a_direction_and_bounds():
  """Correlations may be negative; losses have no largest value, and less of them is better."""
  for name, metric in metrics.METRICS.items():
    low, high = metrics.bounds(f"test_{name}/task")
    correlates = name in ("matthews", "pearson", "spearman")
    assert (low, high) == ((0, np.inf) if name == "mse" else (-100 * correlates, 100))
    assert metrics.higher_is_better(f"test_{name}") == (name not in ("mse", "ece"))
    assert metric.title
  for name in ("loss", "perplexity"):
    assert metrics.bounds(f"test_{name}") == (0, np.inf)
    assert not metrics.higher_is_better(f"test_{name}")
