from __future__ import annotations

import csv
import json
import math
import os
import re

import pytest

import jaxtune
from jaxtune.errors import UserError
from jaxtune.sweeps import comparison, pages, report, table


def document(page):
  """Returns what the page draws."""
  return json.loads(re.search(r'id="data">(.*?)</script>', page.read_text())[1])


def test_files(made, tmp_path):
  path = report.write(
    made.ranks({1: [2.0, 2.1], 4: [1.5, 1.4]}),
    tmp_path,
    notes={"compiled programs": 1},
  )
  assert path == tmp_path / "report.md"
  written = path.read_text()
  assert "- trials: 4\n- seeds: 2\n" in written and "- compiled programs: 1" in written
  assert "- data: train 20" in written and "- versions: jax 0.10" in written
  assert all(
    (tmp_path / name).exists()
    for name in ("plots/test_loss-rank.png", "plots/test_loss-trained_parameters.png")
  )
  page = (tmp_path / "report.html").read_text()
  assert not re.search(r"http|<img|@import|url\(|(src|href)=(?!.data:)", page), "it works offline"
  assert not [name for name in os.listdir(tmp_path) if name.endswith(".part")]


def test_warnings_come_first_and_details_are_folded(made, tmp_path):
  results = made.ranks({1: [2.0, 2.1], 4: [1.5, 1.4]})
  failed = {"trial": "rank=8,seed=0", "settings": {"method.rank": 8, "seed": 0}, "method": "lora"}
  failed |= {"folder": str(tmp_path), "state": "failed", "detail": "out of memory"}
  failed |= {"final": {}, "base": {}}
  curve = {"rates": [0.1, 1.0], "losses": [2.0, 1.0], "chosen": 1.0, "at_edge": True}
  given = {"unfinished": [failed], "curves": {"rank=4": curve}}
  written = report.write(results, tmp_path, **given).read_text()
  first, folded, _ = written.partition("<details><summary>All columns</summary>")
  warnings, _, main = first.partition("| configuration |")
  assert warnings.startswith("# Sweep report\n\nBeware:\n\n- Failed (1 trials")
  assert "rank=8,seed=0 (out of memory)" in warnings and "an earlier one" not in warnings
  assert "optim.learning_rate is at an edge of the values that were tried: 1 for rank=4" in warnings
  assert "Fewer than 3 seeds" in warnings and "% of base" not in main
  assert folded and written.count("</details>") == 2
  assert "out of memory" in document(tmp_path / "report.html")["warnings"][0]
  assert (tmp_path / "results.csv").read_text().splitlines()[-1].endswith(",out of memory")
  assert (tmp_path / "results.parquet").read_bytes().startswith(b"PAR1")
  assert r"lora rank=4 & 4,000 & 1.450" in (tmp_path / "table.tex").read_text()


@pytest.mark.parametrize("reference", [None, "lora rank=1"])
def test_the_page_has_the_p_that_holds_for_its_reference(made, tmp_path, reference):
  results = made.ranks({1: [2.0, 2.1, 2.3], 2: [1.9, 2.0, 2.0], 4: [1.5, 1.4, 1.6]})
  report.write(results, tmp_path, reference=reference)
  shown = [pair["p"] for pair in document(tmp_path / "report.html")["pairs"]]
  expected = comparison.compare(results, reference=reference).pairs
  assert shown == pytest.approx([pair.p_adjusted for pair in expected])


def test_table_begins_with_the_base_and_goes_on_best_first(made):
  results = made.ranks({1: [2.0, 2.2], 2: [math.nan, 1.0], 4: [1.5, 1.5]})
  found = table.build(results, "test_loss")
  assert [row[0] for row in found.rows] == [
    "base (untuned)",
    "lora rank=4",
    "lora rank=1",
    "lora rank=2",
  ]
  assert found.rows[0][4] == "3.000" and found.rows[0][1] == "0"
  assert found.rows[1][1:4] == ["4,000", "10", "2"]
  # Two seeds 0.2 apart: t(0.975, 1) = 12.706, standard error 0.1.
  assert found.rows[2][4] == "2.100 ± 1.271"
  assert found.rows[3][4] == "diverged (1 of 2)"
  assert found.header[4] == "test loss ↓" and found.rows[2][6] == "-0.900 ± 1.271"


def test_each_row_is_a_share_of_its_own_base(made):
  results = [
    made.result({"model.path": name, "seed": 0}, 2.0, base_parameters=size)
    for name, size in (("small", 10_000), ("large", 40_000))
  ]
  found = table.build(results, "test_loss")
  assert {row[0]: row[2] for row in found.rows[2:]} == {
    "lora path=small": "10",
    "lora path=large": "2.5",
  }


@pytest.mark.parametrize(("metric", "says"), [("validation_loss", 1), ("test_loss", 0)])
def test_what_chose_the_weights_is_optimistic(made, tmp_path, metric, says):
  result = made.result({"seed": 0}, 2.0)
  result["final"]["validation_loss"] = 1.9
  written = report.write([result], tmp_path, metric=metric).read_text()
  assert written.count("these figures are optimistic") == says


def test_one_trial_has_no_interval(made, tmp_path):
  path = report.write([made.result({}, 2.0)], tmp_path)
  assert "| lora | 1,000 | 2.5 | 1 | 2.000 ± - |" in path.read_text()


def test_a_single_seed_has_its_interval_over_examples(made):
  one = made.result({"seed": 0}, 2.0, intervals={"test_loss": [1.75, 2.5]})
  assert table.build([one], "test_loss").rows[1][4] == "2.000 [1.750, 2.500]"
  odd = one | {"intervals": {"test_loss": [math.nan, math.nan]}}
  assert table.build([odd], "test_loss").rows[1][4] == "2.000 ± -"
  two = [one, one | {"settings": {"seed": 1}}]
  assert table.build(two, "test_loss").rows[1][4] == "2.000 ± 0.000"


@pytest.mark.parametrize(
  ("known", "chosen"),
  [
    ("general_loss test_bleu test_loss validation_loss", "test_loss"),
    ("general_loss train_loss validation_loss", "validation_loss"),
    ("general_loss train_loss", "general_loss"),
    ("", "test_loss"),
  ],
)
def test_without_a_metric_the_task_s_own_loss_decides(made, known, chosen):
  results = [made.result({}, 2.0) | {"base": {}, "final": dict.fromkeys(known.split(), 1.0)}]
  assert table.choose_metric(results, None) == chosen


def test_a_metric_that_some_seeds_lack_says_how_many_have_it(made):
  results = made.ranks({1: [2.0, 2.1, 2.2], 2: [2.0, 2.0, 2.0]})
  results[0]["final"]["test_bleu"], results[1]["final"]["test_bleu"] = 20.0, 22.0
  rows = table.build(results, "test_loss").rows
  column = table.build(results, "test_loss").header.index("test BLEU ↑")
  assert {row[0]: row[column] for row in rows} == {
    "base (untuned)": "-",
    "lora rank=1": "21.00 ± 12.71 (2 of 3)",
    "lora rank=2": "-",
  }


def test_csv_has_a_row_a_trial_with_all_that_is_known(made, tmp_path):
  results = made.ranks({1: [2.0, math.nan]}) + [
    made.result({"method": {"name": "prefix", "length": 10}, "seed": 0}, 1.5, method="prefix")
  ]
  report.write(results, tmp_path)
  with open(tmp_path / "results.csv", newline="") as stream:
    rows = list(csv.DictReader(stream))
  assert len(rows) == 3 and rows[1]["final.test_loss"] == "nan"
  assert rows[0]["method.rank"] == "1" and rows[0]["method.length"] == ""
  assert rows[2]["method.length"] == "10" and float(rows[2]["final.test_loss"]) == 1.5
  assert float(rows[0]["base.test_loss"]) == 3.0 and rows[0]["seconds"] == "2.0"
  assert "Diverged" in (tmp_path / "report.md").read_text()


def test_text_is_escaped(made, tmp_path):
  named = ("a|b", "<b>&lt;", r"cost: $\frac$ and $$", "two\n\nlines")
  results = [made.result({"data.template": text}, 2.0, flops=2**63) for text in named]
  written = report.write(results, tmp_path).read_text()
  assert "a\\|b" in written and "two lines" in written and "&lt;b>&amp;lt;" in written
  assert "<b>" not in written
  assert "two lines" in (tmp_path / "table.tex").read_text()
  page = (tmp_path / "report.html").read_text()
  assert "<b>" not in page
  shown = document(tmp_path / "report.html")["configurations"]
  assert [one["settings"]["data.template"] for one in shown] == list(named)


def test_answers_are_no_markup():
  said = r"\(x\) is __init__, a_b *c* ![p](https://e.example/x.png) a|b"
  *_, row = pages._markdown_table(table.Table(["answer"], [[said]])).splitlines()
  assert row == (r"| \\(x\\) is \_\_init\_\_, a_b \*c\* !\[p](https://e.example/x.png) a\|b |")


def test_only_the_mean_is_called_that():
  assert [table._task(name) for name in ("mean", "word_meaning")] == [
    "mean of tasks",
    "word_meaning",
  ]
  costs = [table._cost([{"tokens": size}], "tokens") for size in (999_936, 999_000, 1000, 0.5)]
  assert costs == ["1 M", "999 k", "1 k", "0.5"]


def test_small_numbers_keep_their_digits(made):
  results = made.ranks({1: [4.2e-4, 4.4e-4], 2: [1.1e-4, 1.2e-4]})
  shown = {row[0]: row[4] for row in table.build(results, "test_loss").rows}
  assert shown["lora rank=2"].startswith("0.000115 ± ") and shown["base (untuned)"] == "3.000000"


def test_costs_that_some_seeds_lack(made, tmp_path):
  results = [made.result({"seed": 0}, 2.0, memory=4), made.result({"seed": 1}, 2.0, flops=3)]
  report.write(results, tmp_path)
  (one,) = document(tmp_path / "report.html")["configurations"]
  assert (one["costs"]["memory"], one["costs"]["flops"]) == (4, 3)


def test_a_trial_of_two_sweeps_counts_once(made, tmp_path):
  results = made.ranks({1: [2.0, 2.5], 4: [1.5, 1.4]})
  twice = [results[0] | {"trial": "again"}]
  written = report.write(results + twice, tmp_path).read_text()
  assert "Trained more than once (1 trials" in written and "again" in written
  assert report.write(results, tmp_path).read_text().count("2.250 ±") == written.count("2.250 ±")


def test_mistakes_are_named(made, tmp_path):
  with pytest.raises(UserError, match="run the sweep first"):
    report.write([], tmp_path)
  with pytest.raises(UserError, match="no folder was given"):
    jaxtune.report([])
  with pytest.raises(UserError, match="'test_loss'"):
    report.write([made.result({}, 2.0)], tmp_path, metric="test_los")
  (tmp_path / "file").write_text("kept")
  with pytest.raises(UserError, match="cannot write"):
    report.write([made.result({}, 2.0)], tmp_path / "file")
  assert (tmp_path / "file").read_text() == "kept"


def test_a_failed_write_leaves_the_old_file(made, tmp_path, monkeypatch):
  results = [made.result({}, 2.0)]
  before = report.write(results, tmp_path).read_text()

  def full(*_):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(os, "replace", full)
  with pytest.raises(UserError, match="No space left"):
    report.write([made.result({}, 9.0)], tmp_path)
  assert (tmp_path / "report.md").read_text() == before
  assert not [name for name in os.listdir(tmp_path) if name.endswith(".part")]
