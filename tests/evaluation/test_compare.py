"""Differences have the sign of an improvement, pair examples, and agree with plain resampling."""

from types import SimpleNamespace

import numpy as np
import pytest
from support import made_trials

from jaxtune.data import Data, Split
from jaxtune.data.pack import pack
from jaxtune.data.stream import Stream
from jaxtune.evaluation import compare, judge
from jaxtune.evaluation.options import EvaluateOptions
from jaxtune.metrics import intervals
from jaxtune.objectives import choices, classify, kto, regression, reward, sft

RNG = np.random.default_rng(0)
TRUE = RNG.choice(["no", "yes"], 40).tolist()


def judged(losses, said=None, true=TRUE, split="test"):
  weights = np.full(len(losses), 2.0)
  rows = {"loss": np.asarray(losses), "weight": weights, "correct": np.zeros(len(losses))}
  found = {f"{split}_loss": float(np.sum(losses) / weights.sum())}
  if said is not None:
    found[f"{split}_accuracy"] = 100 * np.mean([a == b for a, b in zip(said, true, strict=True)])
  return judge.Judged(found, split, rows, said, true if said is not None else None)


def flipped(count):
  """The true labels, but for the first `count`."""
  other = {"no": "yes", "yes": "no"}
  return [other[x] if i < count else x for i, x in enumerate(TRUE)]


def test_differences_are_paired_and_have_a_sign():
  hard = RNG.exponential(5.0, 40)  # examples differ far more than the two systems do
  before, after = judged(hard + 1.0, flipped(20)), judged(hard + 0.5, flipped(4))
  found = compare.differences(after, before, ("accuracy",), 500)
  assert found["test_loss"][0] == pytest.approx(-0.25) and found["test_accuracy"][0] == 40.0
  np.testing.assert_allclose(found["test_loss"][1:], -0.25, atol=1e-9)  # the same for every example
  assert 20 < found["test_accuracy"][1] < 40 < found["test_accuracy"][2] < 60
  back = compare.differences(before, after, ("accuracy",), 500)
  np.testing.assert_allclose(back["test_accuracy"], -np.array(found["test_accuracy"])[[0, 2, 1]])
  alone = compare.metric_intervals(after, ("accuracy",), 500)
  assert alone["test_loss"][1] - alone["test_loss"][0] > 1.0
  drawn = intervals.draws("accuracy", after.predictions, TRUE, resamples=500)
  assert alone["test_accuracy"] == list(intervals.between(drawn))


def test_measures_of_tokens_have_intervals_in_their_own_units():
  """A perplexity's is that of the loss through exp, and an accuracy's is in per cent."""
  losses, right, weights = RNG.exponential(2.0, 40), RNG.integers(0, 3, 40), np.full(40, 2.0)
  measured = {"test_loss": 0.0, "test_perplexity": 0.0, "test_accuracy": 0.0}
  rows = {"loss": losses, "weight": weights, "correct": right}
  found = compare.metric_intervals(judge.Judged(measured, "test", rows), (), 300)
  drawn = (intervals.ratio_draws(x, weights, resamples=300) for x in (losses, right))
  loss, share = map(intervals.between, drawn)
  np.testing.assert_allclose(found["test_loss"], loss)
  assert found["test_perplexity"] == pytest.approx(np.exp(loss), rel=1e-2)
  np.testing.assert_allclose(found["test_accuracy"], 100 * np.array(share))


def test_a_class_that_no_example_has_is_counted_too():
  options = EvaluateOptions(resamples=10)
  evaluator = SimpleNamespace(objective=classify, metrics=("accuracy",), options=options)
  after = judged(np.ones(40), flipped(4))
  untuned = compare.Untuned(judged(np.ones(40), flipped(20)))
  train = Split({"labels": np.zeros(4, np.int32)}, [], [], [], [])
  dataset = Data(train, None, None, {}, ("maybe", "no", "yes"))
  found = compare.record(after, untuned, evaluator, dataset)
  assert [row["label"] for row in found["classes"]] == ["maybe", "no", "yes"]
  assert found["confusion"]["labels"] == ["maybe", "no", "yes"]
  counts = np.array(found["confusion"]["counts"])
  assert counts.sum() == 40 and counts[0].sum() == counts[:, 0].sum() == 0
  assert np.trace(counts) == 36


def test_what_one_side_lacks_is_left_out():
  with_labels, without = judged(np.ones(40), flipped(3)), judged(np.ones(40))
  assert {*compare.differences(with_labels, without, ("accuracy",), 9)} == {"test_loss"}
  assert compare.differences(with_labels, without, ("accuracy",), 0) == {}
  assert compare.metric_intervals(judge.Judged({}), (), 9) == {}


def split_of(references, labels=None):
  arrays = {"tokens": np.zeros((len(references), 4), np.int32)}
  arrays |= {} if labels is None else {"labels": np.array(labels)}
  return Split(arrays, [], references, [], [])


def record(objective, names, one, other, train, labels=(), shots=None):
  options = EvaluateOptions(resamples=20)
  evaluator = judge.Evaluator(None, None, objective, None, options, names, None, ())
  dataset = Data(train, None, None, {}, labels)
  return compare.record(one, compare.Untuned(other, shots, {"shots": 2}), evaluator, dataset)


def test_what_could_not_be_judged_is_not_compared():
  """As where a reward failed on every answer of the trial, and not on the base's."""
  base = judged(RNG.exponential(2.0, 40))
  rows = {name: np.zeros(40) for name in base.rows}
  nothing = judge.Judged(judge.summarise(sft.MEASURES, rows, "test"), "test", rows)
  assert nothing.metrics == {} == compare.metric_intervals(nothing, (), 20)
  for pair in ((nothing, base), (base, nothing)):
    assert compare.differences(*pair, (), 20) == {}


def test_a_record_of_labels():
  train = split_of([["yes"]] * 5, [1, 1, 1, 1, 0])  # yes is the most frequent in training
  before, after = judged(np.ones(40), flipped(20)), judged(np.ones(40), flipped(4))
  found = record(classify, ("accuracy",), after, before, train, ("no", "yes"))
  assert found["chance"] == {"test_accuracy": pytest.approx(100 * TRUE.count("yes") / 40)}
  assert sum(map(sum, found["confusion"]["counts"])) == 40
  assert found["confusion"]["labels"] == ["no", "yes"]
  assert [row["support"] for row in found["classes"]] == [TRUE.count("no"), TRUE.count("yes")]
  assert {*found["differences"]} == {"base"} and "shots" not in found
  found = record(classify, ("accuracy",), after, before, train, ("no", "yes"), before)
  assert found["differences"]["shots"] == found["differences"]["base"]
  assert found["shots"] == before.metrics and found["demonstrations"] == {"shots": 2}


def test_the_most_frequent_answer_is_that_of_training():
  """However training reads its examples: packed, and not at all where nobody knows them."""
  train, test = made_trials.split(12, 0), [["b"]] * 5 + [["a"]]
  train = train._replace(references=[["a", "b"]] * 7 + [["b"]] * 5)
  one = judged(np.ones(6), ["c"] * 6, test)
  for seen in (train, pack(train, 32)[0]):
    found = record(sft, ("exact_match",), one, one, seen)
    assert found["chance"] == {"test_exact_match": pytest.approx(100 / 6)}
  thumbs, of_train = train._replace(choices=[["up"], ["down"]] * 6), one._replace(split="train")
  found = record(kto, ("exact_match",), of_train, one, thumbs)
  assert found["chance"] == {"train_exact_match": pytest.approx(100 / 6)} and "guess" not in found
  plain = train._replace(references=[[]] * 12)
  for seen in (plain, pack(plain)[0], Stream(lambda: iter(()), None, 8, 2)):
    assert record(sft, ("exact_match",), one, one, seen)["chance"] == {}


def test_rewards_that_no_metric_reads():
  """With evaluate.metrics=() nothing is predicted; what length alone says is known all the same."""
  arrays = {"mask": np.tri(8)[[[5, 2], [6, 3], [4, 1]]] > 0, "difference": np.ones(3)}
  one = judged(np.ones(3), split="train")
  found = record(reward, (), one, one, Split(arrays, [], [], [], []))
  assert found["length"] == {"train_accuracy": 100.0} and "calibration" not in found


def test_choices_of_each_row_are_no_classes():
  """Rows with two choices and with three, of which a guess is right as often as there are many."""
  own = [[f"{n} yes", f"{n} no", f"{n} maybe"][: 2 + n % 2] for n in range(4)]
  split = split_of([[options[0]] for options in own], [0] * 4)._replace(choices=own)
  dataset, options = Data(split, None, split, {}), EvaluateOptions(resamples=20)
  evaluator = judge.Evaluator(None, None, choices, None, options, choices.METRICS, None, ())
  rows = {name: np.ones(4) for name in judge.SUMS} | {"labels": np.array([0, 0, 0, 1])}
  (one,) = judge._predicted(evaluator, None, None, [dataset], [judge.Judged({}, "test", rows)], ())
  found = compare.record(one, compare.Untuned(one), evaluator, dataset)
  assert one.metrics == {"test_accuracy": 75}
  assert {*found["intervals"]} == {"test_accuracy"}
  assert found["guess"] == {"test_accuracy": pytest.approx(100 * (1 / 2 + 1 / 3) / 2)}
  assert found["chance"] == {} and not found.keys() & {"classes", "confusion"}
  # Choices that a row lacks, and those of another task, make no choices of its own.
  fewer = split._replace(choices=[["a", "b", "c"], ["c", "a"]] * 2)
  tasks = split._replace(choices=[["a", "b"], ["c", "d"]] * 2, tasks=["x", "y"] * 2)
  for same in (fewer, tasks):
    assert judge.scoring(choices.METRICS, same) == choices.METRICS


def test_zero_counts_in_the_mean_of_numbers():
  true = [0.0, 1.0, 2.0]
  one = judged(np.ones(3), [0.5, 0.5, 0.5], true)
  train = split_of([["0"]] * 4, [0.0, 0.0, 0.0, 4.0])
  found = record(regression, ("mse",), one, one, train)
  assert found["chance"]["test_mse"] == pytest.approx((1 + 0 + 1) / 3)  # the mean, 1, for all
  assert "classes" not in found
