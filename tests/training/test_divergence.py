"""A trial whose training became not finite is one that diverged, whatever weights it kept."""

import json
import math

import numpy as np
import pytest
from support import made_trials

from jaxtune import tree
from jaxtune.errors import UserError
from jaxtune.evaluation import judge
from jaxtune.runs import group
from jaxtune.runs.folder import read
from jaxtune.runs.results import best_trial, diverged, write
from jaxtune.sweeps import report, table
from jaxtune.training.options import TrainOptions
from jaxtune.training.progress import Progress

SGD = {"optim.name": "sgd", "optim.clip": None, "optim.warmup": 6, "train.steps": 8}
FULL = {"name": "full"}


def go(folder, setup, rates, **changes):
  """Trains a group of trials with other learning rates; returns their results."""
  configs = [made_trials.complete(FULL, SGD | changes | {"optim.learning_rate": r}) for r in rates]
  folders = [folder / "trials" / str(i) for i in range(len(rates))]
  return made_trials.run(configs, folders, setup, folder / "checkpoints")


@pytest.fixture(scope="module")
def grouped(llama, tmp_path_factory):
  """A trial that learns, one that breaks down long after its first step and one at once."""
  folder = tmp_path_factory.mktemp("grouped")
  changes = {"train.eval_every": 1, "train.log_every": 3}
  return go(folder, made_trials.make(llama), [0.01, 100.0, 1e30], **changes), folder


@pytest.mark.full
def test_the_step_at_which_a_trial_diverged(grouped, llama, tmp_path):
  results, folder = grouped
  broke = results[1]["diverged_at"]
  assert [result["diverged_at"] for result in results] == [None, broke, 1] and 3 < broke < 9
  for e, result in enumerate(results):
    lines = (folder / "trials" / str(e) / "metrics.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if "validation_loss" in row]
    lost = [row["step"] for row in rows if not math.isfinite(row["validation_loss"])]
    assert (result["diverged_at"] or math.inf) <= min(lost, default=math.inf)
    assert json.loads((folder / "trials" / str(e) / "result.json").read_text()) == result
    assert all(map(math.isfinite, result["final"].values())), "the kept weights are older"
  assert 0 < results[1]["best_step"] < broke
  (alone,) = go(tmp_path, made_trials.make(llama), [100.0], **{"train.eval_every": 1})
  assert alone["diverged_at"] == broke and alone["best_step"] == results[1]["best_step"]


@pytest.mark.full
def test_tables_remarks_and_order_say_so(grouped, tmp_path):
  results, _ = grouped
  shown = [
    {"trial": f"rate={rate}", "settings": {"optim.learning_rate": rate}} | result
    for rate, result in zip((0.01, 100.0, 1e30), results, strict=True)
  ]
  assert [diverged(result) for result in shown] == [False, True, True]
  rows = table.build(shown[::-1], "test_loss").rows
  assert [row[0] for row in rows][1:] == [f"full learning_rate={r}" for r in (0.01, "1e+30", 100)]
  assert all("diverged (1 of 1)" in row[4] for row in rows[2:])
  written = report.write(shown, tmp_path).read_text()
  assert "Diverged (2 of 3 trials)" in written and "rate=100.0 (at step " in written
  assert "rate=1e+30 (at step 1, best step 1)" in written
  assert "diverged_at" in (tmp_path / "results.csv").read_text()


@pytest.mark.full
def test_a_diverged_trial_does_not_speak_for_its_sweep(grouped, tmp_path):
  results, folder = grouped
  assert best_trial(folder).name == "0"
  (tmp_path / "trials" / "a").mkdir(parents=True)
  path = tmp_path / "trials" / "a" / "result.json"
  path.write_text(json.dumps(results[1] | {"sha256": "0", "files": {}}))
  with pytest.raises(UserError, match="damaged"):
    best_trial(tmp_path)
  write(path.parent, results[1])
  with pytest.raises(UserError, match="all trials of .* diverged"):
    best_trial(tmp_path)


def test_without_validation(llama, tmp_path):
  changes = {"optim.warmup": 0, "train.steps": 3}
  (result,) = go(tmp_path, made_trials.make(llama, False), [1e30], **changes)
  assert result["diverged_at"] == 1


def test_final_metrics_that_are_not_finite(llama, tmp_path):
  """Of weights that are: the loss of a perplexity that is too large for a float, say."""
  counts = {"best_step": [3], "stopped": [4], "exited": [0], "sums": {"diverged": [0]}}
  progress = Progress(*[None] * 9)._replace(**counts)
  steps = lambda **metrics: group.step_counts(progress, TrainOptions(), 0, metrics)["diverged_at"]
  assert steps(test_loss=800.0, test_perplexity=math.inf) == 4 and steps(test_loss=2.0) is None


@pytest.mark.full
def test_a_validation_loss_that_is_not_finite(llama, monkeypatch, tmp_path):
  """Where training itself goes on."""
  real, done = judge.measure, []

  def broken(*judged):
    found = real(*judged)
    if not done:
      done.append(True)
      found[0]["loss"] = found[0]["loss"] * np.nan
    return found

  monkeypatch.setattr(judge, "measure", broken)
  (result,) = go(tmp_path, made_trials.make(llama), [0.01], **{"train.eval_every": 4})
  assert result["diverged_at"] == 4 and result["best_step"] == 8


@pytest.mark.parametrize("judged", [[True, False], [False, False]])
def test_an_evaluation_without_weights_is_none(llama, monkeypatch, tmp_path, judged):
  """As of pairs that tie, or of a reward that hangs: it says nothing of the training."""
  real, setup, calls = judge.measure, made_trials.make(llama), iter(judged)

  def unjudged(evaluator, pairs, base, splits, seeds):
    found = real(evaluator, pairs, base, splits, seeds)
    if splits[0] is setup.dataset.validation and not next(calls, judged[-1]):
      found = [{name: x * 0 for name, x in rows.items()} for rows in found]
    return found

  monkeypatch.setattr(judge, "measure", unjudged)
  changes = {"train.steps": 4, "train.eval_every": 2, "optim.warmup": 0}
  (result,) = go(tmp_path, setup, [0.01], **changes)
  lines = (tmp_path / "trials" / "0" / "metrics.jsonl").read_text().splitlines()
  rows = [row for row in map(json.loads, lines) if "train_loss" not in row]
  assert ["validation_loss" in row for row in rows] == judged
  assert result["best_step"] == (2 * judged.index(True) + 2 if any(judged) else 0)
  assert ("validation_loss" in result["final"]) == judged[-1] and not diverged(result)
  *_, tuned = read(tmp_path / "trials" / "0")
  before = tree.flatten(llama.params)
  moved = [np.abs(x - before[path.removeprefix("params/")]).max() for path, x in tuned.items()]
  assert max(moved) > 0, "where none was the best, the last weights are kept"


@pytest.mark.full
def test_patience_says_where_it_stopped(llama, tmp_path):
  changes = {"train.patience": 2, "train.eval_every": 1, "train.steps": 8}
  results = go(tmp_path, made_trials.make(llama), [0.01, 1e30], **changes)
  assert [result["stopped_at"] for result in results] == [8, 3]
  assert [result["steps"] for result in results] == [8, 8]
