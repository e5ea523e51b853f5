"""What `jaxtune analyse` writes of a sweep, and what the report shows of it."""

import json

import pytest
from support import made_trials

import jaxtune
from jaxtune.api import analyse, sweep, trials
from jaxtune.assets import TINY
from jaxtune.errors import UserError
from jaxtune.main import main
from jaxtune.runs import finished
from jaxtune.runs.trial import load_data, with_config
from jaxtune.sweeps import heat

RANKS = [{"name": "lora", "rank": 1}, {"name": "lora", "rank": 3}]
GRIDS = ({"method": RANKS, "seed": [0, 1]}, {"method": [{"name": "prompt", "length": 2}]})


@pytest.fixture(scope="module")
def swept(llama, tmp_path_factory):
  """A finished sweep, its results, and functions that find the made data and model again."""
  folder, setup = tmp_path_factory.mktemp("made") / "sweep", made_trials.make(llama)
  config = made_trials.complete({"name": "lora"}, {"train.steps": 3, "evaluate.resamples": 0})
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(trials, "prepare", lambda config, _: with_config(setup, config))
    patch.setattr(trials.gradients, "check", lambda *_: None)
    found = sweep.sweep(config | {"sweep": GRIDS}, folder)
    patch.setattr(analyse, "load_data", lambda config: setup.dataset)
    patch.setattr(analyse, "load_run", lambda at, _: finished.load_run(at, setup.pretrained))
    yield folder, {one["trial"]: one["final"] for one in found}


def test_finished_trials_are_measured_and_shown(swept, capsys):
  folder, finals = swept
  (folder / "analysis.json").write_text("of another version")
  assert main(["analyse", str(folder)]) == 0
  said = capsys.readouterr().out
  assert "What training changed" in said and "lora rank=3" in said
  measures = json.loads((folder / "analysis.json").read_text())
  assert measures["trials"].keys() == finals.keys() and measures["split"] == "validation"
  for name, entry in measures["trials"].items():
    assert bool(entry["weights"]) == bool(entry["truncated"]) == ("lora" in name)
    assert bool(entry["attention"]) == ("lora" not in name)
    assert bool(entry["prompt"]) == ("prompt" in name)
    if "lora" in name:
      # What was written of a trial that was padded in its group is what was judged.
      assert entry["truncated"]["loss"][-1] == pytest.approx(finals[name]["validation_loss"], 1e-4)
      assert entry["truncated"]["rank"] == ([0, 1] if "rank=1" in name else [0, 1, 2, 3])
  # The first cut is to the base, the same for all.
  first = {e["truncated"]["loss"][0] for e in measures["trials"].values() if e["truncated"]}
  assert len(first) == 1
  pairs = measures["similarity"]
  assert len(pairs) == 3 and {pair["seeds"] for pair in pairs} == {"different"}
  shown = (folder / "report.md").read_text()
  assert "What training changed" not in shown
  jaxtune.report([folder])
  shown = (folder / "report.md").read_text()
  assert all(title in shown for title in ("What training changed", "Shared subspaces"))
  page = (folder / "report.html").read_text()
  for group in (heat.WEIGHTS, heat.CUTS, heat.SHARED, heat.PAIRS, heat.ATTENTION, heat.STATES):
    assert group in page
  assert (folder / "plots" / "loss_with_changes_cut.png").stat().st_size > 10_000


@pytest.mark.parametrize("name", ["grpo", "ppo"])
def test_a_policy_is_run_on_its_prompts(name, tmp_path, monkeypatch):
  monkeypatch.setattr(analyse, "load_data", load_data)
  monkeypatch.setattr(analyse, "load_run", finished.load_run)
  (tmp_path / "prompts.jsonl").write_text("".join(f'{{"prompt": "word {i}"}}\n' for i in range(8)))
  config = {
    "model": {"path": str(TINY)},
    "data": {"train": str(tmp_path / "prompts.jsonl"), "validation": 2, "max_length": 16},
    "method": {"name": "lora", "rank": 2},
    "objective": {"name": name},
    "rollout": {"rewards": ("length",), "samples": 2, "max_new_tokens": 2},
    "train": {"steps": 1, "batch_size": 4},
    "evaluate": {"max_new_tokens": 2, "resamples": 0},
  }
  jaxtune.fit(config, tmp_path / "run")
  (entry,) = jaxtune.analyse(tmp_path / "run", examples=2).measures["trials"].values()
  assert len(entry["states"]) == 1 and entry["truncated"]["rank"] == [0, 1, 2]
  # What is run is what tuned.safetensors says, and code there is refused as in config.json.
  run = finished.load_run(tmp_path / "run")
  evil = run.config | {"rollout": run.config["rollout"] | {"rewards": (f"{tmp_path}/run/x.py:f",)}}
  monkeypatch.setattr(analyse, "load_run", lambda *_: run._replace(config=evil))
  with pytest.raises(UserError, match="a reward in its own folder, .*x.py, which is not run"):
    jaxtune.analyse(tmp_path / "run", examples=2)


def test_a_run_alone_and_trials_that_are_not_finished(swept, tmp_path):
  folder, finals = swept
  name = next(name for name in finals if "rank=3" in name)
  one = jaxtune.analyse(folder / "trials" / name, examples=4)
  assert one.measures["trials"].keys() == {name} and not one.measures["similarity"]
  (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
  with pytest.raises(UserError, match="no finished trial to analyse"):
    jaxtune.analyse(tmp_path)
  with pytest.raises(UserError, match="examples is 0"):
    jaxtune.analyse(folder, examples=0)
