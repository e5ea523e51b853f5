"""Configurations are compared on what both have, and nothing that is missing passes unsaid."""

from __future__ import annotations

import csv
import io
import math

import numpy as np
import pytest
from pyarrow import parquet
from scipy import stats as scipy_stats

from jaxtune.errors import UserError
from jaxtune.runs.scores import Scores
from jaxtune.sweeps import comparison, exports, paired, pairs, stats, table

LOSSES = {1: [2.0, 2.1, 2.3, 2.2], 2: [1.9, 2.0, 2.0, 2.2], 4: [1.5, 1.4, 1.6, 1.5]}
RANKS = {rank: f"lora rank={rank}" for rank in (1, 2, 4)}


def pair(compared, a, b):
  return pairs.find(compared.pairs, RANKS[a], RANKS[b])


def test_configurations_are_ordered_by_the_metric(made):
  compared = comparison.compare(made.ranks(LOSSES))
  assert [one.label for one in compared.configurations] == [RANKS[4], RANKS[2], RANKS[1]]
  assert compared.reference == RANKS[4] and compared.metric == "test_loss"


def test_pairs_are_tested_and_corrected_twice(made):
  compared = comparison.compare(made.ranks(LOSSES))
  p = {
    (a, b): scipy_stats.ttest_rel(LOSSES[a], LOSSES[b]).pvalue for a, b in ((4, 2), (4, 1), (2, 1))
  }
  assert [(one.a, one.b) for one in compared.pairs] == [(RANKS[a], RANKS[b]) for a, b in p]
  assert [one.test.p for one in compared.pairs] == pytest.approx(list(p.values()))
  with_best = paired.holm([p[4, 2], p[4, 1]])
  assert [one.p_reference for one in compared.pairs[:2]] == pytest.approx(with_best)
  assert compared.pairs[2].p_reference is None
  assert [one.p_pairs for one in compared.pairs] == pytest.approx(paired.holm(list(p.values())))
  assert [one.p_adjusted for one in compared.pairs] == [one.p_pairs for one in compared.pairs]
  best = compared.pairs[0]
  assert best.test.difference < 0 and best.better > 0.99 and (best.wins, best.ties) == (4, 0)
  last = compared.pairs[2]
  assert (last.wins, last.ties) == (3, 1)
  turned = pair(compared, 1, 2)
  assert turned.test.difference == -last.test.difference and turned.better == 1 - last.better
  assert turned.wins == 0 and turned.test.interval == (
    -last.test.interval[1],
    -last.test.interval[0],
  )
  assert pairs.turned(turned)._replace(test=last.test, better=last.better) == last


def test_higher_metrics_are_better_when_higher(made):
  results = [
    made.result({"method.rank": rank, "seed": seed}, 2.0, bleu=10.0 * rank + seed)
    for rank in (1, 2)
    for seed in range(3)
  ]
  compared = comparison.compare(results, "test_bleu")
  assert compared.higher_is_better and compared.pairs[0].a == RANKS[2]
  assert compared.pairs[0].wins == 3 and compared.pairs[0].reason.startswith("neither seeds nor")


def test_another_reference_is_named_by_a_label_or_a_trial(made):
  results = made.ranks(LOSSES)
  for name in (RANKS[1], "rank=1,seed=2"):
    compared = comparison.compare(results, reference=name)
    assert compared.reference == RANKS[1]
    assert [one.p_reference is None for one in compared.pairs] == [True, False, False]
    first, *others = compared.pairs
    assert first.p_adjusted == first.p_pairs
    assert all(one.p_adjusted == one.p_reference <= one.p_pairs for one in others)
    assert others[0].p_reference < others[0].p_pairs
    row = next(row for row in compared.tables["main"].rows if row[0] == RANKS[4])
    assert row[3].startswith("-0.650 ± ")
  with pytest.raises(UserError, match="no configuration is named 'rank=3'"):
    comparison.compare(results, reference="rank=3")


def scored(results, examples="same"):
  """Gives trials a folder, and scores whose resamples differ in what the examples share."""
  rng, known = np.random.default_rng(0), {}
  difficulty = {rank: rng.normal(0, 0.2, 500) for rank in LOSSES}
  for result in results:
    result["folder"] = result["trial"]
    draws = result["final"]["test_loss"] + difficulty[result["settings"]["method.rank"]]
    known[result["trial"]] = Scores(examples, {}, {"test_loss": draws})
  return known


def test_examples_count_where_all_trials_were_judged_on_the_same(made):
  results = made.ranks({1: LOSSES[1], 4: LOSSES[4]})
  known, rows = scored(results), stats.best_first(stats.group(results), "test_loss")
  (both,) = pairs.compare(rows, "test_loss", RANKS[4], known)
  (seeds,) = pairs.compare(rows, "test_loss", RANKS[4], {})
  assert (both.test.varied, seeds.test.varied) == ("seeds and examples", "seeds")
  assert both.test.p > seeds.test.p and both.test.difference == seeds.test.difference
  scores = known["rank=1,seed=2"]
  for other in (
    scores._replace(examples="others"),
    scores._replace(draws={}),
    scores._replace(draws={"test_loss": np.full(500, np.nan)}),
  ):
    known["rank=1,seed=2"] = other
    assert pairs.compare(rows, "test_loss", RANKS[4], known) == [seeds]


def test_one_seed_is_compared_by_examples_or_not_at_all(made):
  results = made.ranks({1: [2.0], 4: [1.5]})
  known, rows = scored(results), stats.best_first(stats.group(results), "test_loss")
  (found,) = pairs.compare(rows, "test_loss", RANKS[4], known)
  assert found.test.varied == "examples" and 0 < found.test.p < 1 and found.effect is None
  (found,) = pairs.compare(rows, "test_loss", RANKS[4], {})
  assert found.test.difference == -0.5 and found.test.p is None and found.test.interval is None
  assert found.reason == "one common seed, and no scores by example"
  assert comparison.compare(made.ranks({1: [2.0], 4: [1.5]})).tables["main"].rows[2][3] == "+0.500"


def test_only_seeds_that_both_have_are_compared(made):
  results = made.ranks(LOSSES)
  missing = [r for r in results if r["trial"] not in ("rank=1,seed=0", "rank=4,seed=3")]
  compared = comparison.compare(missing)
  found = pair(compared, 4, 1)
  assert found.seeds == (1, 2) and set(found.unpaired) == {0, 3}
  assert found.test.difference == pytest.approx(np.mean([1.4 - 2.1, 1.6 - 2.3]))
  (said,) = [one for one in compared.warnings if one.kind == "unequal_seeds"]
  assert "3 of 3 comparisons use only the seeds that both have" in said.text
  apart = [r for r in results if (r["settings"]["seed"] < 2) == (r["settings"]["method.rank"] == 4)]
  found = pair(comparison.compare(apart), 4, 1)
  assert found.test is None and found.reason == "they have test loss with no common seed"


def test_a_diverged_seed_leaves_no_test(made):
  compared = comparison.compare(made.ranks(LOSSES | {2: [1.0, math.nan, 1.0, 1.0]}))
  assert compared.configurations[-1].label == RANKS[2]
  for other in (1, 4):
    tested = pair(compared, 2, other)
    assert tested.test is None and tested.reason == "a seed of lora rank=2 diverged"
    assert tested.p_pairs is None
  alone = scipy_stats.ttest_rel(LOSSES[4], LOSSES[1]).pvalue
  assert pair(compared, 4, 1).p_pairs == pytest.approx(alone), "no test is no member of a family"


def test_a_metric_that_some_seeds_lack(made):
  results = made.ranks(LOSSES)
  for result in results[:2] + results[4:]:
    result["final"]["test_bleu"] = 10.0 + result["settings"]["seed"]
  found = pair(comparison.compare(results, "test_bleu"), 1, 4)
  assert found.seeds == (0, 1) and found.unpaired == (2, 3)
  assert (found.wins, found.ties, found.test.p) == (0, 2, 1.0), "constant and equal"


def test_trials_that_left_early_or_failed_are_in_no_figure(made, tmp_path):
  stopped = made.ranks({8: [9.0, 9.0]}, exited_at=5)
  for result in stopped:
    result["final"], result["stopped_at"] = {"validation_loss": 0.1}, 5
  finished = made.ranks(LOSSES)
  for result in finished:
    result["final"]["validation_loss"] = 2.0 + result["settings"]["method.rank"]
  lost = made.result({"method.rank": 16, "seed": 0}, 0.0) | {"detail": "MemoryError"}
  compared = comparison.compare(finished + stopped, "validation_loss", failed=[lost])
  assert [one.label for one in compared.configurations] == [RANKS[1], RANKS[2], RANKS[4]]
  assert all("rank=8" not in cell for row in compared.tables["main"].rows for cell in row)
  said = {one.kind: one for one in compared.warnings}
  assert "Left early (2 of 14 trials)" in said["exited"].text
  assert said["exited"].trials == ("rank=8,seed=0", "rank=8,seed=1")
  assert "rank=16,seed=0 (MemoryError)" in said["failed"].text
  assert compared.columns["trial"][-3:] == ["rank=8,seed=0", "rank=8,seed=1", "rank=16,seed=0"]
  assert compared.columns["exited_at"][-3:] == [5, 5, None]
  assert compared.columns["failed"] == [None] * 14 + ["MemoryError"]
  assert compared.columns["method.rank"][-1] == 16
  with pytest.raises(UserError, match="no finished trial"):
    comparison.compare(stopped)


def test_the_main_table_has_five_columns(made):
  main = comparison.compare(made.ranks(LOSSES)).tables["main"]
  assert main.header == [
    "configuration",
    "trained parameters",
    "test loss ↓",
    "difference from the best (p by Holm)",
    "seconds per trial",
  ]
  tests = [scipy_stats.ttest_rel(LOSSES[n], LOSSES[4]) for n in (2, 1)]
  low = [test.confidence_interval(0.95).low for test in tests]  # with the best
  tests.append(scipy_stats.ttest_rel(LOSSES[2], LOSSES[1]))
  p = paired.holm([test.pvalue for test in tests])
  assert [row[3] for row in main.rows] == [
    "-",
    "the best",
    f"+0.525 ± {0.525 - low[0]:.3f}, p = {p[0]:.2g}",
    f"+0.650 ± {0.650 - low[1]:.3f}, p = {p[1]:.2g}",
  ]
  alone = comparison.compare(made.ranks({1: [2.0, 2.2]})).tables["main"]
  assert alone.header[3] == "change of test loss from base"
  assert alone.rows[1][3] == "-0.900 ± 1.271"


def test_many_configurations_are_compared_with_the_reference_alone(made):
  noise = np.random.default_rng(0).normal(0, 0.1, (63, 4))
  results = made.ranks({rank: (rank / 10 + noise[rank]).tolist() for rank in range(1, 63)})
  compared = comparison.compare(results)
  assert len(compared.pairs) == 61 and {one.a for one in compared.pairs} == {compared.reference}
  surest = min(compared.pairs, key=lambda one: one.test.p)
  assert surest.p_pairs == pytest.approx(surest.test.p * 62 * 61 / 2) and surest.p_pairs < 0.5
  assert surest.p_adjusted == surest.p_pairs
  assert surest.p_reference == pytest.approx(surest.test.p * 61)


def test_csv_and_parquet_say_the_same(made):
  results = made.ranks({1: [2.0, math.nan]}) + [
    made.result({"method": {"name": "prefix", "length": 10}, "data.only": ["a", "b"]}, 1.5)
  ]
  results[0]["settings"]["model.remat"] = True
  lost = {"trial": "lost", "method": "lora", "settings": {}, "detail": "full disk"}
  columns = exports.columns(results, [lost])
  rows = list(csv.DictReader(io.StringIO(exports.to_csv(columns))))
  read = parquet.read_table(io.BytesIO(exports.to_parquet(columns)))
  assert read.column_names == list(rows[0]) and read.num_rows == len(rows) == 4
  typed = {name: str(read.schema.field(name).type) for name in read.column_names}
  assert typed["method.rank"] == typed["steps"] == "int64" and typed["final.test_loss"] == "double"
  assert typed["model.remat"] == "bool" and typed["data.only"] == typed["failed"] == "string"
  for row, values in zip(rows, read.to_pylist(), strict=True):
    for name, value in values.items():
      assert row[name] == ("" if value is None else str(value)), name
  assert rows[2]["data.only"] == "a+b" and rows[3]["failed"] == "full disk"


def test_latex_is_escaped():
  rows = table.Table(["a_b", "%"], [["base", "-0.5"], ["[x] & y#1", r"\{1e-05 ± 2} ~^$"]], 1)
  written = exports.to_latex(rows, "50 % of <x>").splitlines()
  assert r"a\_b & \% \\" in written and "base & $-$0.5 \\\\" in written
  assert r"\caption{50 \% of $<$x$>$}" in written and r"\begin{tabular}{lr}" in written
  assert r"{[}x{]} \& y\#1 & \textbackslash{}\{1e-05 $\pm$ 2\} \textasciitilde{}" in written[-4]
  assert written[-5] == r"\midrule" and written[-3] == r"\bottomrule"
