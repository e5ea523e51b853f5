from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from jaxtune.sweeps import stats


def test_interval_is_that_of_the_t_test():
  values = [1.2, 1.5, 1.1, 1.3]
  interval = scipy_stats.ttest_1samp(values, 0).confidence_interval(0.95)
  summary = stats.summarize(values)
  assert summary.mean == pytest.approx(np.mean(values))
  assert summary.mean - summary.half_width == pytest.approx(interval.low)
  assert summary.mean + summary.half_width == pytest.approx(interval.high)


def test_one_seed_has_no_interval():
  assert stats.summarize([1.5]) == stats.Summary(1.5, None, 1, 0)
  assert stats.summarize([1.5, None]) == stats.Summary(1.5, None, 1, 0)
  assert stats.summarize([]) == stats.Summary(None, None, 0, 0)


def test_a_diverged_seed_leaves_no_mean():
  assert stats.summarize([1.0, math.nan, 1.2]) == stats.Summary(None, None, 3, 1)
  assert stats.summarize([1.0, math.inf]).diverged == 1


def test_a_diverged_trial_has_no_other_metric_either(made):
  lost = made.result({"seed": 0}, math.nan, bleu=0.0)
  assert math.isnan(stats.final(lost, "test_bleu"))


def test_a_trial_that_left_early_has_no_final_metric(made):
  left = made.result({"seed": 0}, 0.1, exited_at=5)
  assert stats.final(left, "test_loss") is None and stats.change(left, "test_loss") is None
  rows = stats.group([left | {"method": "prefix"}, made.result({"seed": 0}, 2.0)])
  assert [row.label for row in stats.best_first(rows, "test_loss")] == ["lora", "prefix"]


def test_group_leaves_out_the_seed_alone(made):
  rows = stats.group(made.ranks({1: [2.0, 2.1], 4: [1.5, 1.4]}))
  assert [row.label for row in rows] == ["lora rank=1", "lora rank=4"]
  assert [len(row.results) for row in rows] == [2, 2]
  again = stats.group(made.ranks({1: [2.0, 2.1]}) + made.ranks({1: [2.0]}))
  assert [len(row.results) for row in again] == [2], "a seed counts once"


def test_difference_is_paired(made):
  results = [
    made.result({"seed": seed}, loss, base=base)
    for seed, (loss, base) in enumerate([(2.0, 3.0), (3.1, 4.0), (1.0, 2.1)])
  ]
  expected = scipy_stats.ttest_rel([2.0, 3.1, 1.0], [3.0, 4.0, 2.1]).confidence_interval(0.95)
  summary = stats.difference(results, "test_loss")
  assert summary.mean - summary.half_width == pytest.approx(expected.low)
  assert summary.mean + summary.half_width == pytest.approx(expected.high)
  assert stats.difference(results, "test_bleu").mean is None


def test_base_has_an_interval_only_where_it_was_measured_on_different_examples(made):
  same = made.ranks({1: [2.0, 2.1]})
  assert stats.of_base(same, "test_loss") == stats.Summary(3.0, None, 1, 0)
  other = [made.result({"seed": i}, 2.0, base=base) for i, base in enumerate([3.0, 3.2])]
  assert stats.of_base(other, "test_loss").half_width > 0
  # All configurations share the seeds, so that more of them tell no more of the base.
  more = [
    one | {"settings": {"seed": i % 2, "method.rank": i // 2}} for i, one in enumerate(other * 3)
  ]
  assert stats.of_base(more, "test_loss") == stats.of_base(other, "test_loss")


def test_best_first_follows_the_metric_and_puts_the_diverged_last(made):
  results = made.ranks({1: [2.0, 2.1], 2: [math.nan, 1.0], 4: [1.5, 1.4], 8: [math.nan, math.nan]})
  results[0]["final"]["test_bleu"], results[4]["final"]["test_bleu"] = 30.0, 20.0
  rows = stats.group(results)
  order = [row.settings["method.rank"] for row in stats.best_first(rows, "test_loss")]
  assert order == [4, 1, 2, 8]
  order = [row.settings["method.rank"] for row in stats.best_first(rows, "test_bleu")]
  assert order == [1, 4, 2, 8]


def test_of_the_diverged_the_one_comes_first_that_did_so_in_fewer_of_its_seeds(made):
  often, rarely = [math.nan, 1.0], [math.nan] * 3 + [1.0] * 6
  rows = stats.best_first(stats.group(made.ranks({1: often, 2: rarely})), "test_loss")
  assert [row.settings["method.rank"] for row in rows] == [2, 1]


def test_a_row_without_the_metric_comes_before_one_that_diverged(made):
  results = made.ranks({1: [math.nan], 2: [2.0], 4: [1.5]})
  results[2]["final"]["test_bleu"] = 20.0
  rows = stats.best_first(stats.group(results), "test_bleu")
  assert [row.settings["method.rank"] for row in rows] == [4, 2, 1]


def test_settings_are_shown_compactly():
  shown = [stats.show(value) for value in (1e-5, 1e-10, 1e6, 1e20, 0.5, 3, ["a", 1e-4])]
  assert shown == ["1e-5", "1e-10", "1e+6", "1e+20", "0.5", "3", "a+0.0001"]
  assert stats.show(0.001) != stats.show(0.0010000001)


def test_a_base_for_each_data_set_but_not_for_each_mixture(made):
  rows = lambda key, values: stats.group([made.result({key: value}, 2.0) for value in values])
  assert len(stats.group_bases(rows("data.template", ["a", "b"]))) == 2
  for key in ("data.temperature", "data.limit", "data.buckets", "data.stream"):
    assert len(stats.group_bases(rows(key, [1, 2]))) == 1
  assert len(stats.group_bases(rows("method.rank", [1, 2]))) == 1


def test_a_base_for_each_limit_whose_most_frequent_answer_scores_otherwise(made):
  rows = lambda *accuracies: stats.group([
    made.result({"data.limit": limit}, 2.0, chance={"test_accuracy": accuracy})
    for limit, accuracy in enumerate(accuracies, 1)
  ])  # fmt: skip
  labels = [row.label for row in stats.group_bases(rows(50.0, 60.0))]
  assert labels == ["base (untuned) limit=1", "base (untuned) limit=2"]
  assert len(stats.group_bases(rows(50.0, 50.0))) == 1


def test_a_base_for_each_objective_that_scores_it_otherwise(made):
  """A mean over them would be of no model, and no seed differs."""
  rows = lambda *bases: stats.group([
    made.result({"objective.beta": beta, "seed": seed}, 2.0, base=base)
    for beta, base in enumerate(bases) for seed in (0, 1)
  ])  # fmt: skip
  found = stats.group_bases(rows(3.0, 2.5))
  assert [row.label for row in found] == ["base (untuned) beta=0", "base (untuned) beta=1"]
  assert len(stats.group_bases(rows(3.0, 3.0))) == 1 == stats.count_tasks(rows(3.0, 2.5))


def test_labels():
  lora = {"method.name": "lora", "method.alpha": 16, "optim.learning_rate": 1e-3}
  full = {"method.name": "full", "optim.learning_rate": 1e-3}
  prefix = {"method.name": "prefix", "optim.learning_rate": 1e-3, "method.length": 10}
  assert stats.labels([lora | {"method.rank": 1}, lora | {"method.rank": 4}, prefix, full]) == [
    "lora rank=1",
    "lora rank=4",
    "prefix length=10",
    "full",
  ]
  assert stats.labels([lora]) == ["lora"]
  assert stats.labels([prefix, prefix | {"optim.learning_rate": 3e-5}]) == [
    "prefix learning_rate=0.001",
    "prefix learning_rate=3e-5",
  ]
  assert stats.labels([lora | {"optim.name": "adamw"}, lora | {"optim.name": "lion"}]) == [
    "lora optim=adamw",
    "lora optim=lion",
  ]


def test_a_base_for_each_model(made):
  results = [
    made.result({"model.path": path, "seed": 0}, 2.0, base=base)
    for path, base in (("small", 3.0), ("large", 2.5))
  ]
  bases = stats.group_bases(stats.group(results))
  assert [row.label for row in bases] == ["base (untuned) path=small", "base (untuned) path=large"]
  assert [stats.of_base(row.results, "test_loss").mean for row in bases] == [3.0, 2.5]
