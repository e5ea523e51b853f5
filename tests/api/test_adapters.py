"""Finished runs as a user handles them: imported, trained on, composed, cut and taken apart."""

import json
import os
import socket

import jax
import numpy as np
import pytest
from support import folders

import jaxtune
from jaxtune import compose, peft, tree
from jaxtune.api import compose as composes
from jaxtune.compose import deltas, knockout
from jaxtune.errors import UserError
from jaxtune.models import hf
from jaxtune.runs import finished
from jaxtune.sweeps import tuning

pytestmark = pytest.mark.full  # three runs are trained first
HOST = socket.gethostname()
LORA = {"name": "lora", "rank": 3, "targets": ["q_proj"]}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """Two LoRAs and a stack, each trained for two steps over one base; and their config."""
  folder = tmp_path_factory.mktemp("adapters")
  rows = [{"prompt": f"a{i % 10} :", "completion": f"b{i % 10}"} for i in range(8)]
  files = {name: folders.write(folder, f"{name}.jsonl", rows) for name in ("train", "test")}
  model = folders.base(folder, "llama")
  make = lambda **sections: folders.config(model, files | {"overlap": "allow"}, **sections)
  jaxtune.fit(make(method=LORA), folder / "one")
  jaxtune.fit(make(method=LORA, seed=1), folder / "two")
  stack = {"name": "stack", "lora": LORA, "prefix": {"length": 2}}
  jaxtune.fit(make(method=stack), folder / "stack")
  return folder, make


def arrays(run):
  return {path: np.asarray(x) for path, x in tree.flatten(run.adapted.tuned).items()}


def test_runs_over_one_base_share_it(place):
  one, two = jaxtune.load_runs([place[0] / "one", place[0] / "two"])
  assert one.pretrained is two.pretrained
  assert one.config["seed"] == 0 and two.config["seed"] == 1


@pytest.mark.parametrize("written", ["config.json", f".tuned.safetensors.{HOST}.99999999.a0.new"])
def test_what_a_kill_left_of_a_run_that_was_kept_is_written_anew(place, tmp_path, written):
  run = jaxtune.load_run(place[0] / "one")
  finished.keep(run, tmp_path / "whole")
  (tmp_path / "killed").mkdir()
  for name in ("config.json", written):
    (path := tmp_path / "killed" / name).write_text('{"model": {}}')
    os.utime(path, (0, 0))
  finished.keep(run, tmp_path / "killed")
  read = lambda name: {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
  assert read("killed") == read("whole")


@pytest.mark.full
def test_an_export_comes_back_by_import_and_is_trained_on(place):
  folder, make = place
  run = jaxtune.load_run(folder / "one")
  jaxtune.export_run(run, folder / "exported")
  modes = {path.stat().st_mode for path in (folder / "exported").iterdir()}
  assert len(modes) == 1, "whoever can read one file can read all"
  rate = {"learning_rate": tuning.tune([1e-3, 1e-2])}  # of which importing needs none
  back = jaxtune.import_adapter(make(optim=rate), folder / "exported", folder / "imported")
  loaded = jaxtune.load_run(folder / "imported")
  for found in (back, loaded):
    assert arrays(found).keys() == arrays(run).keys()
    jax.tree.map(np.testing.assert_array_equal, arrays(found), arrays(run))
  for start in ("one", "exported"):
    method = LORA | {"start": str(folder / start)}
    config = make(method=method, optim={"learning_rate": 0.0})
    jaxtune.fit(config, folder / f"from {start}")
    again = jaxtune.load_run(folder / f"from {start}")
    jax.tree.map(np.testing.assert_array_equal, arrays(again), arrays(run))
  with pytest.raises(UserError, match="give another folder"):
    jaxtune.import_adapter(make(), folder / "exported", folder / "imported")
  with pytest.raises(UserError, match="holds a run already"):
    jaxtune.fit(make(method=LORA), folder / "imported")
  was = arrays(run)
  jaxtune.fit(make(method=LORA), folder / "one")  # of which nothing is left to do but to judge
  jax.tree.map(np.testing.assert_array_equal, arrays(jaxtune.load_run(folder / "one")), was)


@pytest.mark.parametrize(
  ("method", "words"),
  [
    (LORA | {"rank": 2}, "give the adapter's own rank"),
    (LORA | {"targets": ["q_proj", "v_proj"]}, "v_proj.* is in the config alone"),
    ({"name": "prefix"}, "holds lora, expected one prefix"),
  ],
)
def test_a_start_that_does_not_fit_is_refused(place, method, words):
  folder, make = place
  config = make(method=method | {"start": str(folder / "one")})
  with pytest.raises(UserError, match=words):
    jaxtune.fit(config, folder / "never")


@pytest.mark.parametrize("how", ["stack", "average", "cat", "linear", "ties", "dare", "dare_ties"])
def test_composed_runs_are_runs(place, how):
  folder, _ = place
  runs = jaxtune.load_runs([folder / "one", folder / "two"])
  rank = 6 if how in deltas.WAYS else None
  kept = jaxtune.compose_runs(runs, folder / f"by {how}", how, rank=rank)
  run = jaxtune.load_run(folder / f"by {how}")
  found = compose.sections(run)
  assert list(found) == (["lora", "lora_2"] if how == "stack" else ["lora"])
  if how in ("linear", "ties"):
    assert kept and all(0 < share <= 1.0001 for share in kept.values())
  if how == "linear":
    assert min(kept.values()) == pytest.approx(1, abs=1e-5)  # 3 + 3 is all the rank there is


def test_what_cannot_be_composed_is_said(place):
  runs = jaxtune.load_runs([place[0] / "one", place[0] / "two"])
  with pytest.raises(UserError, match="'tie'.*ties"):
    jaxtune.compose_runs(runs, place[0] / "x", "tie")
  with pytest.raises(UserError, match="needs a rank"):
    jaxtune.compose_runs(runs, place[0] / "x", "linear")
  with pytest.raises(UserError, match="'cat' takes no rank"):
    jaxtune.compose_runs(runs, place[0] / "x", "cat", rank=2)
  with pytest.raises(UserError, match="takes no weights"):
    jaxtune.compose_runs(runs, place[0] / "x", "stack", weights=[1, 1])
  with pytest.raises(
    UserError, match="'average' takes no density: it is for ties, dare, dare_ties"
  ):
    jaxtune.compose_runs(runs, place[0] / "x", "average", density=0.2)
  for count, how, weights, says in (
    (1, "stack", None, "1 adapters given"), (2, "cat", [0.5], "1 weights for 2 adapters"),
    (2, "average", [1, 1], "whose sum is 2: expected 1"),
  ):  # fmt: skip
    with pytest.raises(UserError, match=says):
      composes.check_options(how, count, weights, rank=None, density=None, seed=None)
  with pytest.raises(UserError, match="holds a run already"):
    jaxtune.compose_runs(runs, place[0] / "one", "cat")
  with pytest.raises(UserError, match="checkpoint is 'nowhere', expected the folder of a fine"):
    jaxtune.extract(place[1](method=LORA), "nowhere", 2, place[0] / "x")
  with pytest.raises(
    UserError, match="llama is not the folder of a run, and its config.json would be"
  ):
    jaxtune.compose_runs(runs, runs[0].pretrained.folder, "cat")
  prompt = {"name": "prompt", "length": 2}
  two = compose.with_method(
    runs[0], {"name": "stack", "a": prompt, "b": prompt}, peft.Overlay({}, {})
  )
  with pytest.raises(UserError, match="two prompts"):
    finished.keep(two, place[0] / "x")
  assert not (place[0] / "x").exists()


def test_a_merged_folder_has_the_chat_template_of_training(place, tmp_path, capsys):
  run = jaxtune.load_run(place[0] / "one")
  template = tmp_path / "chat.jinja"
  template.write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
  data = run.config["data"] | {"chat_template": str(template)}
  run = run._replace(config=run.config | {"data": data})
  merged = jaxtune.export_run(run, tmp_path / "merged", format="merged").folder
  tokenizer = hf.load(merged).tokenizer
  turns = [{"role": "user", "content": "a1 b2"}]
  assert tokenizer.apply_chat_template(turns, tokenize=False) == "a1 b2"
  assert run.pretrained.tokenizer.chat_template != tokenizer.chat_template
  template.unlink()
  jaxtune.export_run(run, tmp_path / "other", format="merged")
  assert "the export has the base's chat template" in capsys.readouterr().err


def test_an_export_replaces_nothing_but_an_export(place, monkeypatch, tmp_path):
  folder, _ = place
  run = jaxtune.load_run(folder / "two")
  before = sorted(path.name for path in run.folder.iterdir())
  for place_ in (run.folder, folder):
    with pytest.raises(UserError, match="which no export wrote"):
      jaxtune.export_run(run, place_)
  with pytest.raises(UserError, match="the base's own folder"):
    jaxtune.export_run(run, run.pretrained.folder)
  assert sorted(path.name for path in run.folder.iterdir()) == before
  for _ in range(2):
    jaxtune.export_run(run, folder / "again")
  assert "trained with jaxtune" in (folder / "again" / "README.md").read_text()
  (folder / "again" / "notes.txt").write_text("mine")
  with pytest.raises(UserError, match="notes.txt.*would be lost"):
    jaxtune.export_run(run, folder / "again")
  assert (folder / "again" / "notes.txt").read_text() == "mine"
  monkeypatch.chdir(tmp_path)
  assert jaxtune.export_run(run, ".").folder == tmp_path


def test_the_card_of_a_composed_run_tells_of_no_training(place):
  folder, _ = place
  runs = jaxtune.load_runs([folder / "one", folder / "two"])
  jaxtune.compose_runs(runs, folder / "mean", "average")
  kept = jaxtune.load_run(folder / "mean")
  knocked_out = knockout.without(jaxtune.load_run(folder / "stack"), "lora")
  for run in (kept, compose.average(runs), knocked_out):
    jaxtune.export_run(run, folder / "mean export")
    card = (folder / "mean export" / "README.md").read_text()
    assert "made with jaxtune" in card and "trained with" not in card and "adamw" not in card


@pytest.mark.full
def test_another_base_is_said_of_both_runs(place):
  folder, make = place
  other = folders.base(folder, "gpt2")
  with_other = make(method={"name": "lora", "targets": ["q_proj"]})
  with_other["model"]["path"] = str(other)
  jaxtune.fit(with_other, folder / "over gpt2")
  with pytest.raises(UserError, match="other base weights than the run before it"):
    jaxtune.load_runs([folder / "one", folder / "over gpt2"])


@pytest.mark.full
def test_a_start_finds_its_part_of_a_stack_by_name(place):
  folder, make = place
  runs = jaxtune.load_runs([folder / "one", folder / "two"])
  jaxtune.compose_runs(runs, folder / "both", "stack")
  start = {"start": str(folder / "both")}
  stack = {"name": "stack", "lora": LORA | start, "lora_2": LORA | start}
  jaxtune.fit(make(method=stack, optim={"learning_rate": 0.0}), folder / "on from both")
  one, two = (arrays(jaxtune.load_run(folder / name)) for name in ("both", "on from both"))
  jax.tree.map(np.testing.assert_array_equal, one, two)


def test_quality_against_rank_from_one_run(place):
  folder, _ = place
  run = jaxtune.load_run(folder / "one")
  found = jaxtune.judge_ranks(run, [3, 1], folder=folder / "cut")
  whole = jaxtune.evaluate(run)["final"]["test_loss"]
  assert found[3]["test_loss"] == pytest.approx(whole, abs=1e-5)
  assert found[1]["kept_norm"] < found[3]["kept_norm"] == pytest.approx(1, abs=1e-5)
  assert jaxtune.load_run(folder / "cut" / "rank=1").config["method"]["rank"] == 1


def test_a_stack_is_knocked_out_part_by_part(place):
  run = jaxtune.load_run(place[0] / "stack")
  found = jaxtune.knock_out(run)
  assert list(found) == ["all", "without lora", "without prefix", "base"]
  losses = [row["test_loss"] for row in found.values()]
  assert len(set(losses)) == 4
  assert found["all"]["test_loss"] == pytest.approx(
    json.loads((place[0] / "stack" / "result.json").read_text())["final"]["test_loss"], abs=1e-5
  )


@pytest.mark.full
def test_one_batch_answers_each_prompt_by_its_own_run(place):
  runs = jaxtune.load_runs([place[0] / "one", place[0] / "two"])
  prompts, which = ["a1 :", "a2 a3 :", "a4"], [1, 0, 1]
  mixed = jaxtune.complete(runs, prompts, which=which, max_new_tokens=5)
  alone = [
    jaxtune.complete(runs[i], [prompt], max_new_tokens=5)[0]
    for prompt, i in zip(prompts, which, strict=True)
  ]
  assert mixed == alone
  drawn = jaxtune.complete(runs, ["a1 :"] * 6, which=[0] * 6, max_new_tokens=5, temperature=9.0)
  assert len(set(drawn)) > 1  # every row has a draw of its own
  with pytest.raises(UserError, match="which is None"):
    jaxtune.complete(runs, prompts)
