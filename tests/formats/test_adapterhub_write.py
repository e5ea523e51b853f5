"""AdapterHub's format: what its files hold, what it refuses, and that adapters computes it."""

import functools
import json

import numpy as np
import pytest
from safetensors.numpy import load_file
from support import tiny

from jaxtune import peft
from jaxtune.api.export import export
from jaxtune.errors import UserError
from jaxtune.formats import loading
from jaxtune.formats.facts import Facts
from jaxtune.models import hf

ADAPTER = dict(name="adapter", width=5)
PREFIX = dict(name="prefix", length=3, shift=False)
COMPACTER = dict(name="compacter", width=8, n=2)
MAM = dict(name="mam", prefix=dict(length=3, projection=4), adapter=dict(width=6))
OWN = {
  "bart": tiny.ARCHITECTURES["bart"] | dict(decoder_attention_heads=4),
  # as transformers 5 writes them, unlike the transformers 4 of adapters
  "t5 of 5": tiny.ARCHITECTURES["t5"] | dict(tie_word_embeddings=True, scale_decoder_outputs=False),
  "llama3 of 5": tiny.ARCHITECTURES["llama3"]
  | dict(rope_parameters=tiny.LLAMA3_ROPE | dict(rope_theta=500.0)),
}
NAMES = ("low", "middle", "high")


@functools.cache
def made(name):
  name, _, head = name.partition(":")
  how = dict(head=head) | (dict(labels=3) if head in ("classify", "tokens") else {}) if head else {}
  if name in OWN:
    return tiny.random(OWN[name])
  return tiny.make(name, **how)


def laid(model, section):
  parts = {"m": section} if section["name"] != "stack" else section
  if model.model.config.head is not None:
    parts |= {"head": {"name": "head", "paths": model.fresh}}
  return tiny.lay(model, {"name": "stack", **parts}, noise=0.1)


def files(folder, part="adapter"):
  names = {"adapter": "adapter.safetensors", "head": "model_head.safetensors"}
  config = json.loads((folder / f"{part}_config.json").read_text())
  return config, load_file(folder / names[part])


def test_layers_of_different_widths(tmp_path):
  methods, tuned, hyper, base = tiny.lay(made("gpt2"), ADAPTER | dict(width=(2, 8, 4)))
  config, tensors = files(
    export(made("gpt2"), peft.Adapted(methods, tuned, hyper, base), tmp_path / "x").folder
  )
  assert config["config"]["reduction_factor"] == {"0": 16, "1": 4, "2": 8}
  ours = peft.arrays_of(methods[0], tuned["peft"])["trunk/layers/mlp_residual"]
  for i, width in enumerate((2, 8, 4)):
    key = f"transformer.h.{i}.output_adapters.adapters.jaxtune.adapter_down.0.weight"
    np.testing.assert_array_equal(tensors[key], ours["down_kernel"][i, :, :width].T)


def test_a_compacter_shares_its_rule(tmp_path):
  config, tensors = files(
    export(made("gpt2"), peft.Adapted(*laid(made("gpt2"), COMPACTER)), tmp_path / "x").folder
  )
  assert tensors["transformer.shared_parameters.jaxtune.phm_rule"].shape == (2, 2, 2)
  key = "transformer.h.0.attention_adapters.adapters.jaxtune.adapter_down.0"
  assert tensors[f"{key}.W_left"].shape == (2, 16, 1) and tensors[f"{key}.b"].shape == (8,)
  assert {k: config["config"][k] for k in ("phm_layer", "phm_dim", "phm_rank", "mh_adapter")} == {
    "phm_layer": True, "phm_dim": 2, "phm_rank": 1, "mh_adapter": True
  }  # fmt: skip


def test_a_head_has_files_of_its_own(tmp_path):
  model = made("bert:classify")
  methods, tuned, hyper, base = laid(model, ADAPTER)
  adapted = peft.Adapted(methods, tuned, hyper, base)
  folder = export(model, adapted, tmp_path / "x", facts=Facts(labels=NAMES)).folder
  config, tensors = files(folder, "head")
  assert config["model_class"] == "BertForSequenceClassification" and config["config"] is None
  assert config["label2id"] == {"low": 0, "middle": 1, "high": 2} and config["num_labels"] == 3
  kernel = tuned["params"]["head"]["out"]["kernel"]
  np.testing.assert_array_equal(tensors["classifier.weight"], kernel.T)
  names = {f"bert.encoder.layer.{i}.output" for i in range(2)}
  assert {key.partition(".adapters.")[0] for key in files(folder)[1]} == names


def test_a_prefix_and_an_adapter_are_a_union(tmp_path):
  model = made("gpt2")
  methods, tuned, hyper, base = tiny.lay(model, MAM, noise=0.1)
  config, tensors = files(
    export(model, peft.Adapted(methods, tuned, hyper, base), tmp_path / "x").folder
  )
  kinds = [part.get("architecture") for part in config["config"]["configs"]]
  assert (config["config"]["architecture"], kinds) == ("union", ["prefix_tuning", None])
  key = "transformer.prefix_tuning.prefix_tunings.jaxtune.self_prefix.control_trans"
  read = peft.reparametrise(methods, tuned["peft"])["trunk"]["layers"]["attn"]["attend"]["prefix"]
  theirs = tensors[key].reshape(3, 3, 2, 4, 8)  # P, L, key or value, K, H
  np.testing.assert_array_equal(theirs[:, :, 1], np.asarray(read["value"]).swapaxes(0, 1))


@pytest.mark.parametrize(
  ("name", "section", "how", "message"),
  [
    ("qwen2", ADAPTER, {}, "knows no qwen2 models"),
    ("modernbert:classify", ADAPTER, {}, "knows no modernbert models"),
    ("gpt2", ADAPTER | dict(gate=True), {}, "averaged over all tokens"),
    ("t5", PREFIX, {}, "shifts the position biases"),
    ("llama3", PREFIX, {}, "gives every attention .* shift=True"),
    ("gpt2", PREFIX | dict(shift=True), dict(format="adapterhub"), "use format='peft'"),
    ("gpt2", PREFIX, dict(format="peft"), "use format='adapterhub'"),
    ("gpt2", dict(name="prefix", lengths=(1, 2, 3), shift=False), {}, "another length in each"),
    ("bart", PREFIX | dict(decoder=False), {}, "decoders always have a prefix"),
    ("gpt2", MAM | dict(prefix=dict(length=2, shift=True)), {}, "no PyTorch format"),
  ],
)
def test_refuses_what_it_cannot_express(name, section, how, message, tmp_path):
  model = made(name)
  with pytest.raises(UserError, match=message):
    export(model, peft.Adapted(*laid(model, section)), tmp_path / "x", **how)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ("name", "section"),
  [
    ("gpt2", ADAPTER | dict(width=(2, 8, 4), placement="houlsby", ln_before=True)),
    ("gpt2", PREFIX),
    ("gpt2", COMPACTER | dict(shared=False)),
    ("llama", MAM),
    ("llama:tokens", ADAPTER | dict(placement="plus")),
    ("mistral", PREFIX),
    ("bert:classify", ADAPTER | dict(placement="plus", scale=2.0, ln_after=True)),
    ("bert:qa", ADAPTER | dict(placement="houlsby")),
    ("roberta:classify", COMPACTER),
    ("distilbert:tokens", PREFIX | dict(projection=4)),
    ("bart", PREFIX | dict(cross=False)),
    ("bart", ADAPTER | dict(placement="parallel")),
    ("t5 of 5", COMPACTER | dict(placement="pfeiffer")),
    ("llama3 of 5", ADAPTER),
  ],
)
def test_adapters_equal_ours(name, section, tmp_path, reload_in_adapters):
  how = dict(certify=True, reload=reload_in_adapters)
  certificate = export(
    made(name), peft.Adapted(*laid(made(name), section)), tmp_path / "x", **how
  ).certificate
  assert certificate["largest_logit_difference"] < 1e-4
  assert certificate["change_from_base"] > 0.01


def test_an_older_transformers_is_told_what_it_does_not_read():
  numbers = {name: x for name, x in tiny.LLAMA3_ROPE.items() if name != "rope_theta"}
  told = {"rope_theta": 500.0, "rope_scaling": numbers}
  assert loading.options(made("llama3 of 5"), "adapterhub") == told
  assert loading.options(made("t5 of 5"), "adapterhub") == {"tie_word_embeddings": False}
  assert loading.options(made("llama3 of 5"), "peft") == {}


def test_a_pooler_that_the_base_lacks(tmp_path, reload_in_adapters):
  base = made("bert:mlm")
  folder = hf.save(base, base.params, tmp_path / "base")
  model = hf.load(str(folder), head="classify", labels=3)
  assert any(path.startswith("pooler/") for path in model.fresh)
  how = dict(certify=True, reload=reload_in_adapters)
  certificate = export(
    model, peft.Adapted(*laid(model, ADAPTER)), tmp_path / "x", **how
  ).certificate
  assert certificate["largest_logit_difference"] < 1e-4
