"""A task's head is exported beside its method, and the two load together in PyTorch."""

import functools
import json
import types

import numpy as np
import pytest
from support import folders, tiny
from support.random_runs import card_lines
from transformers import PreTrainedTokenizerFast

import jaxtune
from jaxtune import peft
from jaxtune.api.export import export
from jaxtune.data import Split
from jaxtune.errors import UserError
from jaxtune.formats.facts import Facts
from jaxtune.formats.peft import write
from jaxtune.models import hf
from jaxtune.runs.finished import Run

LORA = dict(name="lora", rank=3, targets=(".*_proj",))
PREFIX = dict(name="prefix", length=4)
NAMES = ("low", "middle", "high")
TINY = {"num_hidden_layers": 2}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
  """PyTorch's tiny models, stored with the head named; gpt2's and llama's have no padding id."""
  made, root = {}, tmp_path_factory.mktemp("bases")

  def base(name, stored):
    if (name, stored) not in made:
      made[name, stored] = root / f"{name}-{stored}"
      layers = {} if name in ("gpt2", "distilbert") else TINY
      kind = hf.family_module(name).ARCHITECTURES[stored]
      tiny.torch_twin(tiny.torch_config(name, **layers), made[name, stored], kind)
    return str(made[name, stored])

  return base


def laid(model, section):
  """A method, the task's head, and regularisation, as a run lays them."""
  parts = {section["name"]: section, "head": {"name": "head", "paths": model.fresh}}
  noise = {"noise": {"name": "regularize", "dropout": 0.1}}
  return tiny.lay(model, {"name": "stack", **parts, **noise}, noise=0.1)


@pytest.mark.parametrize(
  ("name", "stored", "kind", "section"),
  [
    ("bert", "mlm", "classify", LORA),
    ("bert", "mlm", "classify", PREFIX),
    ("roberta", "mlm", "qa", LORA),
    ("distilbert", "mlm", "classify", LORA),
    ("modernbert", "mlm", "tokens", LORA),
    ("llama", "tokens", "classify", LORA),  # of two labels, also called score
    ("llama", "lm", "regression", PREFIX),
  ],
)
def test_head_and_method_load_in_peft(bases, name, stored, kind, section, tmp_path, reload):
  labels = 3 if kind in ("classify", "tokens") else None
  model = hf.load(bases(name, stored), head=kind, labels=labels)
  made = export(
    model, peft.Adapted(*laid(model, section)), tmp_path / "x", certify=True, reload=reload
  )
  assert made.format == "peft" and made.certificate["largest_logit_difference"] < 1e-4
  assert made.certificate["change_from_base"] > 0.01
  config = json.loads((made.folder / "adapter_config.json").read_text())
  task = {"tokens": "TOKEN_CLS", "qa": "QUESTION_ANS"}.get(kind, "SEQ_CLS")
  assert config["task_type"] == task
  if section == LORA:
    assert config["modules_to_save"] == SAVED[name]


SAVED = {
  "bert": ["classifier", "pooler"],
  "roberta": ["qa_outputs"],
  "distilbert": ["classifier", "pre_classifier"],
  "modernbert": ["classifier", "head"],
  "llama": ["score"],
}


@pytest.mark.parametrize(("name", "section", "how"), [
  ("bert", LORA, {}),
  ("gpt2", LORA, {}),
  ("bert", {"name": "bitfit"}, {"format": "merged"}),
  ("gpt2", {"name": "head"}, {}),
])  # fmt: skip
def test_the_card_loads_the_head_with_its_labels(bases, name, section, how, tmp_path):
  stored = "mlm" if name == "bert" else "lm"
  model = hf.load(bases(name, stored), head="classify", labels=3)
  head_alone = section["name"] == "head"
  adapted = tiny.lay(model, section, noise=0.1) if head_alone else laid(model, section)
  made = export(model, peft.Adapted(*adapted), tmp_path / "x", facts=Facts(labels=NAMES), **how)
  found = {}
  exec(card_lines(made.folder, model), found)
  assert found["model"].config.id2label == dict(enumerate(NAMES))
  tokens, mask = tiny.batch(side="right")
  tokens = np.where(mask, np.maximum(tokens, 1), 0).astype(np.int32)
  ours = tiny.forward(model, adapted, tokens, mask)
  theirs = tiny.torch_logits(found["model"].eval(), tokens, mask)
  np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)


def test_a_run_is_certified_on_its_texts(made, tmp_path, monkeypatch):
  model = made("bert")
  run = Run(tmp_path, {"model": {"path": None}}, model, peft.Adapted(*laid(model, LORA)), NAMES)
  tokens, mask = tiny.batch(side="right")
  texts = Split({"tokens": tokens, "mask": mask}, [[]] * 3, [[]] * 3, [{}] * 3, [""] * 3)
  monkeypatch.setattr(
    "jaxtune.runs.trial.load_data", lambda config: types.SimpleNamespace(test=texts)
  )
  given = {}
  monkeypatch.setattr("jaxtune.api.export.export", lambda *args, **how: given.update(how))
  jaxtune.export_run(run, tmp_path / "x", certify=True)
  assert given["facts"].labels == NAMES
  assert given["prompts"] == [row[real].tolist() for row, real in zip(tokens, mask, strict=True)]


@pytest.mark.parametrize(
  ("name", "section", "format", "message"),
  [
    ("distilbert", PREFIX, "auto", "prefix of distilbert"),
    ("modernbert", PREFIX, "auto", "train LoRA"),
    ("modernbert", {"name": "adapter", "width": 2}, "auto", "knows no modernbert"),
    ("bert", LORA | {"targets": ("q_proj", "head/out")}, "auto", "lies over head/out"),
    ("bert", {"name": "head"}, "peft", "use format='merged'"),
    ("bert", {"name": "bitfit"}, "peft", "use format='merged'"),
  ],
)
def test_refuses_what_no_format_holds(made, name, section, format, message, tmp_path):
  """Whether it is to be certified or not, before anything is written."""
  model = made(name)
  parts = {"own": section}
  if section["name"] != "head":
    parts["probe"] = {"name": "head"}
  laid = tiny.lay(model, {"name": "stack", **parts})
  for how in ({}, {"certify": True}):
    with pytest.raises(UserError, match=message):
      export(model, peft.Adapted(*laid), tmp_path / "x", format=format, **how)
  assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def made():
  return functools.cache(lambda name: tiny.make(name, head="classify", labels=3))


def test_a_masked_language_model_has_no_task_in_peft():
  config = hf.outline(architecture=tiny.ENCODERS["bert"], head="mlm").model.config
  with pytest.raises(UserError, match="merge it"):
    write.task_type(config)


@pytest.mark.parametrize("form", ["peft", "merged"])
@pytest.mark.parametrize(
  ("special", "stated", "pad"),
  [
    ({"pad_token": "</s>", "bos_token": "<s>"}, {"pad_token_id": 1}, 3),  # padding is eos
    ({"pad_token": "<pad>"}, {}, 0),
    ({"bos_token": "<s>"}, {"pad_token_id": None}, 3),
    ({}, {"pad_token_id": -1}, 0),  # no special token but eos: a word is as good, behind eos
  ],
)
def test_pytorch_reads_the_last_token_of_each_text(special, stated, pad, form, tmp_path):
  """As the card loads and calls it, and in a batch: eos, behind which there is padding."""
  pytest.importorskip("peft")
  backend = folders.tokenizer("llama").backend_tokenizer
  words = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", **special)
  fields = tiny.ARCHITECTURES["llama"] | TINY | {"eos_token_id": 1} | stated
  made = tiny.random(fields, head="classify", labels=3)._replace(tokenizer=words)
  model = hf.load(str(hf.save(made, made.params, tmp_path / "base")), head="classify", labels=3)
  trees = laid(model, LORA)
  export(model, peft.Adapted(*trees), tmp_path / "x", format=form, facts=Facts(labels=NAMES))
  found = {}
  exec(card_lines(tmp_path / "x", model), found)
  assert found["inputs"].input_ids[0, -1] == 1 and found["model"].config.pad_token_id == pad
  rows = [words(text).input_ids + [1] for text in ("a1 <unk> a2 a3", "b1", "c1 d1 <s> <pad>")]
  ids, mask = np.full((3, 6), pad), np.zeros((3, 6), bool)
  for row, its, kept in zip(rows, ids, mask, strict=True):
    its[: len(row)], kept[: len(row)] = row, True
  if special:
    padded = found["tokenizer"].pad({"input_ids": rows}, return_tensors="np")
    np.testing.assert_array_equal(padded.input_ids, ids[:, :5])
  ours = tiny.forward(model, trees, ids.astype(np.int32), mask)
  theirs = tiny.torch_logits(found["model"].eval(), ids, mask)
  np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)
