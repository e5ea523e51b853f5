"""What a sweep is made of: trials that differ, few enough, and files that are whole."""

import json

import pytest
from support import made_trials

from jaxtune import libraries
from jaxtune.api import fit, stages, trials
from jaxtune.api import sweep as sweeps
from jaxtune.errors import UserError
from jaxtune.runs.trial import with_config
from jaxtune.sweeps import grid

CONFIG = made_trials.complete({"name": "lora", "rank": 2})


def expand(*grids, **options):
  return sweeps.expand(CONFIG | {"sweep": grids}, **options)


@pytest.mark.parametrize(
  ("again", "name"),
  [
    ({"method.rank": [1]}, "rank=1"),
    ({"optim.weight_decay": [0.01], "method.rank": [1], "seed": [0]}, "weight_decay=0.01,"),
    ({"method": [{"name": "lora", "rank": 1}]}, "lora-rank=1"),
    ({"method.rank": [1], "method.alpha": [16]}, "rank=1,alpha=16"),
    ({"method.rank": [1], "search.places": [2]}, "rank=1,places=2"),  # changes no result
  ],
)
def test_a_trial_given_twice_is_one(capsys, again, name):
  """Otherwise it would count as two seeds that agree to the last digit."""
  names, settings, configs = expand({"method.rank": [1, 2], "seed": [0, 1]}, again)
  assert names == [grid.name(s, ["method.rank", "seed"]) for s in settings] and len(configs) == 4
  said = capsys.readouterr().out
  assert name in said and "is the same trial as rank=1,seed=0" in said


def test_trials_whose_parts_alone_differ_have_folders_and_rates_of_their_own():
  stacks = [{"name": "stack", "lora": {"rank": 8}, part: {"length": 3}}
            for part in ("prefix", "prompt")]  # fmt: skip
  names, settings, _ = expand({"method": stacks, "seed": [0, 1]})
  assert len(set(names)) == 4 and names[0] == "stack-lora.rank=8-prefix.length=3,seed=0"
  assert len(set(stages.configurations(settings))) == 2


@pytest.mark.parametrize("train", [sweeps.sweep, fit.fit])
def test_a_folder_whose_checkpoints_could_not_be_read(tmp_path, train):
  with pytest.raises(UserError, match=r"has a '\[' in its path, expected none: checkpoints"):
    train({}, tmp_path / "run[1]")
  assert not list(tmp_path.iterdir())


def test_trials_that_differ_stay():
  seeds = [0, 1, 2**30, 2**30 + 1]
  assert len(expand({"seed": seeds}, {"optim.learning_rate": [1, 2.0], "seed": [0]})[0]) == 6


@pytest.mark.parametrize("axis", ["sweep", "sweep.seed"])
def test_a_sweep_is_no_axis(axis):
  with pytest.raises(UserError, match=f"axis '{axis}' is not an option of a trial"):
    expand({axis: [1, 2]})


def test_an_axis_that_changes_no_trial_is_refused():
  """Its trials would count as several that agree to the last digit."""
  alphas = {"method.alpha": [8.0, 16.0]}
  assert len(expand(alphas | {"method.scale": [None, 2.0]})[0]) == 4
  swept = {"sweep": ({"method": [{"name": "lora"}]}, {"method.rank": [1]})}
  sweeps.check_overrides(swept, {"method.alpha": 3.0, "seed": 3})
  with pytest.raises(UserError, match="--config.method.rank changes no trial, .* axis 'method'"):
    sweeps.check_overrides(swept, {"method.rank": 2})
  with pytest.raises(UserError, match="axis 'method.alpha' changes no trial, as method.scale is"):
    expand(alphas | {"method.scale": [2.0]})


def test_a_large_sweep_is_counted_and_not_listed():
  axes = {f"data.rename.{name}": list(range(100)) for name in "abcd"}
  assert grid.count((axes, {"seed": [0, 1]})) == 10**8 + 2
  with pytest.raises(UserError, match="has 100,000,002 trials, more than 1,000: .*--most-trials"):
    expand(axes, {"seed": [0, 1]})
  with pytest.raises(UserError, match="has 3 trials, more than 2"):
    expand({"seed": [0, 1, 2]}, most_trials=2)
  assert len(expand({"seed": [0, 1, 2]}, most_trials=3)[0]) == 3


def test_a_finished_trial_is_read_back_whole(llama, tmp_path, monkeypatch):
  setup = made_trials.make(llama)
  config = made_trials.complete({"name": "lora"}, {"train.steps": 1}) | {"sweep": ({"seed": [0]},)}
  monkeypatch.setattr(trials, "prepare", lambda config, pretrained: with_config(setup, config))
  monkeypatch.setattr(trials.gradients, "check", lambda *_: None)
  (result,) = sweeps.sweep(config, tmp_path)
  assert result["data"] == setup.dataset.report
  folder = tmp_path / "trials" / "seed=0"
  for name in ("tuned.safetensors", "metrics.jsonl", "config.json", "result.json"):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:-9])
    with pytest.raises(UserError, match=name):
      sweeps.sweep(config, tmp_path)
    (folder / name).write_bytes(content)
  # Another commit, or none, changes nothing of what is done.
  monkeypatch.setattr(libraries, "commit", lambda: None)
  assert json.loads(json.dumps(sweeps.sweep(config, tmp_path)))[0]["final"] == result["final"]
