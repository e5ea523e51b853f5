"""A run's folder is read back as it was written, and anything else ends in one line."""

import json

import numpy as np
import pytest
from safetensors.numpy import save
from support import made_trials, tiny

from jaxtune import tree
from jaxtune.api.complete import complete
from jaxtune.assets import TINY
from jaxtune.errors import UserError
from jaxtune.models import hf
from jaxtune.runs import finished, results, start_from
from jaxtune.runs.finished import Run
from jaxtune.runs.trial import make_methods, with_config

ARCHITECTURE = tiny.ARCHITECTURES["llama"] | {"num_hidden_layers": 1}
A = "peft/trunk/layers/attn/q_proj/lora/a"
SCALE = "hyper/trunk/layers/attn/q_proj/lora/scale"


@pytest.fixture(scope="module")
def made():
  """A run of a LoRA over a random base: (run, its arrays, its record)."""
  model = hf.load(architecture=ARCHITECTURE)
  config = made_trials.complete({"name": "lora", "rank": 2, "scale": 2}, model={"path": None})
  config["model"] |= {"architecture": ARCHITECTURE}
  adapted = tiny.lay(model, config["method"], noise=0.1)
  assert adapted.methods[0].kind == make_methods(config)[0].kind
  adapted = adapted._replace(tuned={"params": {}} | adapted.tuned)
  run = Run(None, config, model, adapted, (), (0,))
  trees = adapted.tuned | {"hyper": adapted.hyper}
  flat = {p: np.asarray(x) for p, x in tree.flatten(trees).items()}
  record = {"base": tree.fingerprint(model.params), "config": config, "labels": []}
  return run, flat, record | {"stop_tokens": [0]}


def written(made, folder, change=lambda flat, record: None, metadata=None):
  flat, record = dict(made[1]), json.loads(json.dumps(made[2], default=str))
  found = change(flat, record)
  record = found if isinstance(found, list) else record
  stated = {"jaxtune": json.dumps(record)} if metadata is None else metadata
  (folder / "tuned.safetensors").write_bytes(save(flat, stated))
  return folder


def test_a_run_comes_back_as_it_was(made, tmp_path):
  run, flat, _ = made
  finished.keep(run, tmp_path / "kept")
  for folder in (tmp_path / "kept", written(made, tmp_path)):
    found = finished.load_run(folder, run.pretrained)
    again = tree.flatten(found.adapted.tuned | {"hyper": found.adapted.hyper})
    assert again.keys() == flat.keys()
    assert json.dumps(found.config) == json.dumps(run.config)
    for path, x in flat.items():
      assert again[path].dtype == x.dtype
      np.testing.assert_array_equal(again[path], x)


def test_a_kernel_and_programs_are_those_of_this_device(made, tmp_path, monkeypatch):
  """A run on a TPU is loaded on a CPU too, and what is compiled for it is kept."""
  kept = []
  monkeypatch.setattr(finished.compilations, "keep", kept.append)
  for attention, found in {"splash": None, "plain": "plain"}.items():

    def trained(_, record, attention=attention):
      record["config"]["model"]["attention"] = attention
      record["config"]["train"]["compilation_cache"] = str(tmp_path)

    run = finished.load_run(written(made, tmp_path, trained), made[0].pretrained)
    assert run.config["model"]["attention"] == found
  # Not where the run says, which may be somebody else's.
  assert kept == [run.config["train"]["compilation_cache"]] * 2 == ["~/.cache/jaxtune"] * 2


def test_runs_of_equal_weights_have_their_own_config_and_tokenizer(made, tmp_path):
  def other(_, record):
    record["config"]["model"] |= {"architecture": ARCHITECTURE | {"rope_theta": 7.0}}
    record["config"]["model"] |= {"tokenizer": str(TINY)}

  first = made[0]._replace(stop_tokens=(0,))
  same = finished.load_beside(written(made, tmp_path), first)
  assert same.pretrained is first.pretrained
  run = finished.load_beside(written(made, tmp_path, other), first)
  assert run.pretrained.params is first.pretrained.params
  assert run.pretrained.model.config.rope.theta == 7 and run.pretrained.tokenizer is not None
  with pytest.raises(UserError, match="bases differ in config.json: complete them one by one"):
    complete([first, run], ["a"], which=[0])


WRONG = {
  "a rank of its own": (lambda f, r: f.update({A: np.zeros((1, 32, 4), np.float32)}), "expected"),
  "fewer axes": (lambda f, r: f.update({A: np.zeros(2, np.float32)}), "expected float32"),
  "integers": (lambda f, r: f.update({A: f[A].astype(np.int32)}), "is int32 .*expected float32"),
  "halves": (lambda f, r: f.update({SCALE: f[SCALE].astype(np.float16)}), "expected float32"),
  "NaN": (lambda f, r: f.update({A: f[A] * np.float32("nan")}), "a holds NaN or infinity"),
  "infinity": (lambda f, r: f.update({SCALE: f[SCALE] * np.float32("inf")}), "scale holds NaN"),
  "another rank": (lambda f, r: r["config"]["method"].update(rank=3), "expected float32 .1, 32, 3"),
  "a rank of no number": (lambda f, r: r["config"]["method"].update(rank="2"), "rank is '2'"),
  "an array less": (lambda f, r: f.pop(A) is None, "is missing"),
  "an array more": (lambda f, r: f.update({"peft/x/y/z": f[A]}), "none that it trains"),
  "a list": (lambda f, r: ["config"], "record is .'config'. .list., expected"),
  "a config that is a list": (lambda f, r: r.update(config=[]), "config is .* expected dict"),
  "an empty config": (lambda f, r: r.update(config={}), "data.train is required"),
  "a section of a list": (lambda f, r: r["config"].update(method=[]), "method needs a name"),
  "an unknown option": (lambda f, r: r["config"]["method"].update(rnk=2), "method.rnk"),
  "labels of numbers": (lambda f, r: r.update(labels=[1]), r"labels\[0\] is 1"),
  "stops of text": (lambda f, r: r.update(stop_tokens=["a"]), r"stop_tokens\[0\] is 'a'"),
  "no stops": (lambda f, r: r.pop("stop_tokens") and None, "stop_tokens is missing"),
  "another base": (lambda f, r: r.update(base="x"), "other base weights"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_with_a_run_is_named(made, tmp_path, case):
  change, message = WRONG[case]
  with pytest.raises(UserError, match=message):
    finished.load_run(written(made, tmp_path, change), made[0].pretrained)


@pytest.mark.parametrize("stated", [{"x": "{}"}, {"jaxtune": "{"}, {"jaxtune": "[" * 10**5}])
def test_metadata_that_lies(made, tmp_path, stated):
  with pytest.raises(UserError, match="tuned.safetensors"):
    finished.load_run(written(made, tmp_path, metadata=stated), made[0].pretrained)


def test_files_that_are_none(made, tmp_path):
  (tmp_path / "tuned.safetensors").mkdir()
  with pytest.raises(UserError, match="damaged or missing"):
    finished.load_run(tmp_path)
  (tmp_path / "tuned.safetensors").rmdir()
  whole = (written(made, tmp_path) / "tuned.safetensors").read_bytes()
  for content in (b"", whole[:100], whole[:-1], b"\xff" * 40):
    (tmp_path / "tuned.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="damaged or missing"):
      finished.load_run(tmp_path)


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("[]", "expected dict"),
    ("{}", "final is missing"),
    ('{"final": 3}', "final is 3"),
    ('{"final": {}, "data": {"files": ["x"]}}', "files is"),
    ("[" * 10**5, "nested too deeply"),
    ('{"final": {}', "malformed JSON"),
  ],
)
def test_a_damaged_result(tmp_path, text, message):
  (tmp_path / "trials" / "a").mkdir(parents=True)
  (tmp_path / "trials" / "a" / "result.json").write_text(text)
  for read in (
    lambda: results.read(tmp_path / "trials" / "a"),
    lambda: finished.load_run(tmp_path),
  ):
    with pytest.raises(UserError, match=message):
      read()


def test_nothing_that_is_not_finite_is_kept_or_started_from(made, tmp_path):
  run, flat, _ = made
  tuned = tree.combine(run.adapted.tuned, tree.unflatten({A: flat[A] * np.inf}))
  broken = run._replace(adapted=run.adapted._replace(tuned=tuned))
  with pytest.raises(UserError, match="a holds NaN or infinity"):
    finished.keep(broken, tmp_path / "kept")
  assert not (tmp_path / "kept").exists()
  folder = written(made, tmp_path, lambda f, r: f.update({A: f[A] * np.float32("inf")}))
  method = run.config["method"] | {"start": str(folder)}
  trial = with_config(made_trials.make(run.pretrained), run.config | {"method": method})
  with pytest.raises(UserError, match="method.start: .*a holds NaN or infinity"):
    start_from.continued(trial, run.adapted.overlay)
