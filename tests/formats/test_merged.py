"""Merged folders: what every weight delta becomes in PyTorch, and heads that are tied."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support import tiny

from jaxtune import peft
from jaxtune.api.export import export
from jaxtune.errors import UserError
from jaxtune.formats.facts import Facts
from jaxtune.models import hf

TIED = {
  "gpt2": tiny.ARCHITECTURES["gpt2"] | dict(n_layer=1),
  "llama3": tiny.ARCHITECTURES["llama3"] | dict(num_hidden_layers=1),
  "t5": tiny.ARCHITECTURES["t5"]
  | dict(num_layers=1, num_decoder_layers=1, tie_word_embeddings=True),
  "bart": tiny.ARCHITECTURES["bart"]
  | dict(encoder_layers=1, decoder_layers=1, forced_bos_token_id=5),
}
TABLES = {"gpt2": "transformer.wte.weight", "llama3": "model.embed_tokens.weight",
          "t5": "shared.weight", "bart": "model.shared.weight"}  # fmt: skip


@pytest.fixture(scope="module")
def tied(tmp_path_factory):
  """Models whose scores are their embeddings, in folders."""
  made, root = {}, tmp_path_factory.mktemp("bases")

  def base(name):
    if name not in made:
      model = tiny.random(TIED[name])
      made[name] = hf.load(str(hf.save(model, model.params, root / name)))
    return made[name]

  return base


def laid(model, section):
  methods, tuned, hyper, base = tiny.lay(model, section, noise=0.1)
  return methods, {"params": {}, "peft": {}} | tuned, hyper, base


@pytest.mark.parametrize("name", TIED)
def test_a_delta_on_the_lookup_alone_unties_the_head(tied, name, tmp_path, reload):
  model, lora = tied(name), dict(name="lora", rank=2, targets=("embed", "v_proj"))
  how = dict(format="merged", certify=True, reload=reload)
  made = export(model, peft.Adapted(*laid(model, lora)), tmp_path / "x", **how)
  assert made.certificate["largest_logit_difference"] < 1e-4
  assert made.certificate["change_from_base"] > 0.01
  assert json.loads((made.folder / "config.json").read_text())["tie_word_embeddings"] is False
  before = load_file(model.folder / "model.safetensors")[TABLES[name]]
  tensors = load_file(made.folder / "model.safetensors")
  scale = before.shape[1] ** -0.5 if name == "t5" else 1.0
  np.testing.assert_allclose(tensors["lm_head.weight"], before * scale, rtol=1e-6)
  assert np.abs(tensors[TABLES[name]] - before).max() > 0.01
  assert "head/kernel" not in made.rounding.tensors
  again = hf.load(str(made.folder))
  np.testing.assert_array_equal(again.params["embed"]["embedding"], tensors[TABLES[name]])
  np.testing.assert_array_equal(again.params["head"]["kernel"], tensors["lm_head.weight"].T)


def test_the_stacks_of_an_untied_bart_have_one_table(tied, tmp_path):
  """PyTorch reads a table of each, and jaxtune's model has one."""
  model, lora = tied("bart"), dict(name="lora", rank=2, targets=("embed",))
  made = export(model, peft.Adapted(*laid(model, lora)), tmp_path / "x", format="merged")
  path, copy = made.folder / "model.safetensors", "model.decoder.embed_tokens.weight"
  tensors = load_file(path)
  save_file(tensors | {copy: tensors[copy] + 1}, path)
  with pytest.raises(UserError, match=f"{copy} differs from model.shared.weight"):
    hf.outline(str(made.folder))


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_a_trained_table_stays_tied(tied, name, tmp_path, reload):
  model = tied(name)
  how = dict(format="merged", certify=True, reload=reload)
  made = export(model, peft.Adapted(*laid(model, dict(name="full"))), tmp_path / "x", **how)
  assert made.certificate["largest_logit_difference"] < 1e-4
  assert "lm_head.weight" not in load_file(made.folder / "model.safetensors")


def test_an_untied_merge_in_bfloat16(tied, tmp_path, reload):
  model, lora = tied("gpt2"), dict(name="lora", rank=2, targets=("embed",))
  how = dict(format="merged", dtype="bfloat16", certify=True, reload=reload)
  assert export(model, peft.Adapted(*laid(model, lora)), tmp_path / "x", **how).certificate[
    "passed"
  ]


@pytest.mark.parametrize(
  "section",
  [
    dict(name="lora", rank=2, dora=True, initialise="pissa"),
    dict(name="stack", a=dict(name="lora", rank=2), b=dict(name="bitfit")),
  ],
  ids=lambda s: s["name"],
)
def test_weight_deltas_together(gpt2, section, tmp_path, reload):
  how = dict(format="merged", certify=True, reload=reload)
  made = export(gpt2, peft.Adapted(*laid(gpt2, section)), tmp_path / "x", **how)
  assert made.certificate["largest_logit_difference"] < 1e-4
  assert made.certificate["change_from_base"] > 0.01


def test_ia3_without_biases(llama, tmp_path, reload):
  how = dict(format="merged", certify=True, reload=reload)
  assert export(
    llama, peft.Adapted(*laid(llama, dict(name="ia3"))), tmp_path / "x", **how
  ).certificate["passed"]


def test_a_masked_language_model_stays_tied(tmp_path):
  model = tiny.make("bert", head="mlm")
  lora = dict(name="lora", rank=2, targets=("embed",))
  with pytest.raises(UserError, match="leave 'embed' out"):
    export(model, peft.Adapted(*laid(model, lora)), tmp_path / "x", format="merged")


def test_a_lookup_s_delta_beside_trained_layers(tied, tmp_path, reload):
  last, lora = {"layers": 1}, {"rank": 2, "targets": ("embed",)}
  section = {"name": "stack", "lora": lora, "last_layers": last}
  model, how = tied("llama3"), dict(format="merged", certify=True, reload=reload)
  made = export(model, peft.Adapted(*laid(model, section)), tmp_path / "x", **how)
  assert made.certificate["largest_logit_difference"] < 1e-4
  assert {"embed/embedding", "trunk/layers/mlp/up_proj/kernel"} <= made.rounding.tensors.keys()


@pytest.mark.parametrize("stated", [{"eos_token_id": 0, "top_k": 7}, None])
@pytest.mark.parametrize("name", ["llama3", "t5", "bart"])
def test_pytorch_begins_and_stops_as_the_run_did(tied, name, stated, tmp_path):
  """A chat template's end of a turn is no token that the base stops at."""
  from transformers import GenerationConfig

  model = tied(name)
  if stated:
    model = model._replace(folder=tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps(stated))
  full = {"name": "full"}
  made = export(
    model, peft.Adapted(*laid(model, full)), tmp_path / "x", facts=Facts(stop_tokens=(3, 1))
  )
  found = GenerationConfig.from_pretrained(made.folder)
  assert found.eos_token_id == [3, 1]
  assert found.top_k == (stated or {}).get("top_k")
  begun = found.decoder_start_token_id, found.forced_bos_token_id
  assert tuple(x for x in begun if x is not None) == model.model.config.decoder_start
