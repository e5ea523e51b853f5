"""The model card: what it states, and that its own lines of PyTorch load the export."""

import copy
import os
import subprocess
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from support import made_trials, tiny
from support.random_runs import card_lines

from jaxtune import certify, peft, tree
from jaxtune.api.export import export
from jaxtune.formats import card, references
from jaxtune.formats.facts import NO_FACTS, Facts
from jaxtune.models import hf
from jaxtune.runs import trial

NAMES = ("low", "middle", "high")
LORA, FULL = dict(name="lora", rank=2), dict(name="full")
PREFIX = dict(name="prefix", length=3)
FLAT = PREFIX | dict(shift=False)
ADAPTER = dict(name="adapter", width=4)
RECIPE = {
  "config": {
    "seed": 3,
    "objective": {"name": "sft"},
    "method": {"name": "lora", "rank": 2, "dropout": 0.0, "targets": ["q_proj"], "start": None},
    "optim": {"name": "lion", "learning_rate": 0.002, "schedule": "cosine", "clip": None},
    "train": {"steps": 120, "batch_size": 16},
    "data": {"train": "x.jsonl", "text": "{{ a | b }}", "limit": None},
  },
  "result": {
    "trained_parameters": 1234,
    "base_parameters": 56789,
    "best_step": 100,
    "base": {"test_loss": 3.14159, "test_accuracy": 0.25},
    "final": {"test_loss": 1.5, "test_accuracy": 0.75, "note": "no number"},
    "data": {
      "files": {"x.jsonl": "ab12", "owner/set:plain": "cd34"},
      "tokenizer": "ef56",
      "splits": {"train": {"kept": 40}, "test": {"kept": 8}},
      "format": {"train": {"templates": [{"prompt": "Q: {{ a | upper }}"}]}},
    },
    "versions": {"jax": "0.1.2"},
  },
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  """Tiny models in folders, as (name, head) asks for."""
  root, found = tmp_path_factory.mktemp("bases"), {}

  def load(name, head=None):
    if (name, head) not in found:
      how = dict(head=head, labels=3) if head else {}
      made = tiny.make(name, **how)
      folder = hf.save(made, made.params, root / f"{name}-{head}")
      found[name, head] = hf.load(str(folder), **how)
    return found[name, head]

  return load


def written(model, section, folder, facts=NO_FACTS, **how):
  """Exports a method, with the head where the model has one: returns (the folder, its trees)."""
  if model.model.config.head is not None:
    head = {"name": "head", "paths": model.fresh}
    section = {"name": "stack", section["name"]: section, "head": head}
    facts = facts._replace(labels=NAMES)
  methods, tuned, hyper, base = tiny.lay(model, section, noise=0.1)
  trees = methods, {"params": {}, "peft": {}} | tuned, hyper, base
  return export(model, peft.Adapted(*trees), folder, facts=facts, **how).folder, trees


def tokens():
  ids, mask = tiny.batch(side="right")
  return np.where(mask, np.maximum(ids, 1), 0).astype(np.int32), mask


CASES = [
  ("gpt2", None, LORA, {}),
  ("gpt2", None, PREFIX, {}),
  ("bert", "classify", LORA, {}),
  ("gpt2", None, FULL, {}),
  ("bert", "classify", LORA, dict(format="merged")),
]


@pytest.mark.parametrize(("name", "head", "section", "how"), CASES)
def test_its_lines_load_the_export(model, name, head, section, how, tmp_path):
  pytest.importorskip("peft")
  folder, trees = written(model(name, head), section, tmp_path / "x", **how)
  found = {}
  exec(card_lines(folder, model(name, head)), found)
  if head:
    assert found["model"].config.id2label == dict(enumerate(NAMES))
  ids, mask = tokens()
  ours = tiny.forward(model(name, head), trees, ids, mask)
  theirs = tiny.torch_logits(found["model"].eval(), ids, mask)
  compare(ours, theirs, mask)


def compare(ours, theirs, mask):
  pick = (lambda x: x) if theirs.ndim == 2 else (lambda x: np.asarray(x)[mask])
  np.testing.assert_allclose(pick(ours), pick(theirs), atol=1e-4, rtol=0)


LOGITS = """
import sys, numpy, torch
ids, mask = (torch.from_numpy(numpy.load(sys.argv[i])).long() for i in (1, 2))
with torch.no_grad():
  numpy.save(sys.argv[3], model.eval()(input_ids=ids, attention_mask=mask).logits.numpy())
"""


@pytest.mark.full
@pytest.mark.skipif(not os.environ.get(certify.VARIABLE), reason=f"needs {certify.VARIABLE}")
def test_its_lines_load_adapterhubs(model, tmp_path):
  """All in one process of adapters, which takes long to start."""
  ids, mask = tokens()
  np.save(tmp_path / "ids.npy", ids)
  np.save(tmp_path / "mask.npy", mask)
  exports = {}
  for name, head, section in (
    ("gpt2", None, ADAPTER), ("llama", None, FLAT), ("bert", "classify", ADAPTER),
  ):  # fmt: skip
    folder, trees = written(model(name, head), section, tmp_path / name)
    exports[name] = tiny.forward(model(name, head), trees, ids, mask)
    lines = card_lines(folder, model(name, head)) + LOGITS
    (tmp_path / f"{name}.py").write_text(lines.replace("sys.argv[3]", f"'{name}.npy'"))
  run = "import runpy, sys\nfor name in sys.argv[3:]: runpy.run_path(name + '.py')"
  command = [certify.adapters_interpreter(), "-c", run, "ids.npy", "mask.npy", *exports]
  subprocess.run(command, check=True, cwd=tmp_path)
  for name, logits in exports.items():
    compare(logits, np.load(tmp_path / f"{name}.npy"), mask)


def test_it_states_the_recipe_the_data_and_the_metrics(gpt2, tmp_path):
  folder, _ = written(gpt2, LORA, tmp_path / "x", facts=Facts("owner/gpt", recipe=RECIPE))
  text = (folder / "README.md").read_text()
  for line in (
    "# lora for gpt",
    "| trained parameters | 1,234 of 56,789 |",
    "| optimizer | lion |",
    "| learning rate | 0.002 |",
    "| schedule | cosine |",
    "| steps | 120, of which step 100 is kept |",
    "| batch size | 16 |",
    "pip install torch 'transformers<5.24' peft",
    "| seed | 3 |",
    "| test_loss | 3.142 | 1.5 |",
    "| test_accuracy | 0.25 | 0.75 |",
    "| x.jsonl | `ab12` |",
    "| jax | 0.1.2 |",
    r'| of the data | text `"{{ a \| b }}"` |',
    "| examples | train 40, test 8 |",
    '| method | lora: rank 2, dropout 0.0, targets `["q_proj"]` |',
    "Q: {{ a | upper }}",
  ):
    assert line in text.splitlines(), line
  assert "no number" not in text


@pytest.mark.parametrize(
  ("name", "objective", "method", "named"),
  [
    ("bert", "classify", "lora", "lora"),
    ("bert", "classify", "head", "head"),
    ("gpt2", "dpo", "lora", "lora"),
  ],
)
def test_it_names_what_is_loaded_and_no_help_of_training(
  model, name, objective, method, named, tmp_path
):
  config = made_trials.complete(
    {"name": method}, objective={"name": objective}, regularize={"dropout": 0.1}
  )
  base = model(name, objective if objective == "classify" else None)
  methods = trial.make_methods(config, base.fresh)
  adapted = peft.init(jax.random.key(0), methods, tiny.find_sites(base.model), base.params)
  text = (export(base, adapted, tmp_path / "x").folder / "README.md").read_text()
  assert f"# {named} for {Path(base.folder).name}" in text.splitlines()
  assert f'tags: ["jaxtune", "{named}"]' in text.splitlines()


def test_its_head_is_what_the_hub_reads(gpt2, tmp_path):
  import yaml

  folder, _ = written(gpt2, LORA, tmp_path / "x", facts=Facts("owner/gpt", recipe=RECIPE))
  front = yaml.safe_load((folder / "README.md").read_text().split("---")[1])
  assert front == {
    "library_name": "peft",
    "base_model": "owner/gpt",
    "base_model_relation": "adapter",
    "pipeline_tag": "text-generation",
    "tags": ["jaxtune", "lora"],
    "datasets": ["owner/set"],
  }
  folder, _ = written(gpt2, LORA, tmp_path / "y", Facts(str(tmp_path)))
  assert "base_model:" not in (folder / "README.md").read_text()


def test_with_a_tokenizer_its_lines_make_text(gpt2, tmp_path):
  methods = tiny.lay(gpt2, LORA)[0]
  lines = card.snippet("peft", gpt2._replace(tokenizer=object()), methods, Facts("owner/base"))
  assert "AutoModelForCausalLM, AutoTokenizer" in lines and 'BASE = "owner/base"' in lines
  assert lines.splitlines()[-2] == "answers = model.generate(**inputs, max_new_tokens=32)"
  given = (gpt2._replace(tokenizer=object()), methods, Facts("owner/base", stop_tokens=(3, 1)))
  assert "max_new_tokens=32, eos_token_id=[3, 1])" in card.snippet("peft", *given)
  assert "eos_token_id" not in card.snippet("merged", *given)  # its generation_config.json has it


@pytest.mark.full
@pytest.mark.parametrize(
  ("name", "section", "how"),
  [("gpt2", LORA, {}), ("gpt2", ADAPTER, {}), ("gpt2", LORA, dict(format="merged"))],
)
def test_no_file_tells_of_the_machine(model, reload, tmp_path, name, section, how):
  """Not where the base, the data, a start or the export lay; and it is certified all the same."""
  recipe = copy.deepcopy(RECIPE)
  data = str(tmp_path / "secret" / "train.jsonl")
  recipe["result"]["data"]["files"] = {data: "ab12"}
  recipe["config"]["method"] |= {"start": str(tmp_path / "secret" / "before")}
  base = model(name)
  stored = base._replace(hf_config=base.hf_config | {"_name_or_path": str(base.folder)})
  certify_ = section is not ADAPTER  # whose library needs an environment of its own
  export_again = partial(written, stored, section, tmp_path / "x", Facts(recipe=recipe), **how)
  folder, _ = export_again(certify=certify_, reload=reload)
  export_again()  # replaces it, certificate and all
  for path in folder.iterdir():
    text = path.read_bytes()
    for place in (tmp_path, base.folder.parent):
      assert str(place).encode() not in text, path
  card = (folder / "README.md").read_text()
  assert "train.jsonl" in card and f"`{tree.fingerprint(base.params)}`" in card
  assert how or '"./gpt2-None"' in card


@pytest.mark.parametrize(
  ("name", "expected"),
  [
    ("owner/gpt", "owner/gpt"),
    ("{tmp}/models--owner--gpt/snapshots/ab12", "owner/gpt"),
    ("{tmp}/gpt", "./gpt"),
    ("{tmp}/gpt/", "./gpt"),
    (None, None),
  ],
)
def test_bases_are_named_without_their_place(tmp_path, name, expected):
  assert references.base_reference(name and name.format(tmp=tmp_path)) == expected
