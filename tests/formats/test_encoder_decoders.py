"""Exports of encoder-decoders: LoRA as PEFT reads it, adapters by the names that adapters has."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file
from support import tiny

from jaxtune import peft
from jaxtune.api.export import export
from jaxtune.errors import UserError
from jaxtune.models import hf

PLACES = {
  "t5": {
    "encoder/layers/attn_residual": "encoder.block.{}.layer.0",
    "encoder/layers/mlp_residual": "encoder.block.{}.layer.1",
    "decoder/layers/attn_residual": "decoder.block.{}.layer.0",
    "decoder/layers/cross_residual": "decoder.block.{}.layer.1",
    "decoder/layers/mlp_residual": "decoder.block.{}.layer.2",
  },
  "bart": {
    "encoder/layers/attn_residual": "model.encoder.layers.{}.attention_adapters",
    "encoder/layers/mlp_residual": "model.encoder.layers.{}.output_adapters",
    "decoder/layers/attn_residual": "model.decoder.layers.{}.attention_adapters",
    "decoder/layers/cross_residual": "model.decoder.layers.{}.cross_attention_adapters",
    "decoder/layers/mlp_residual": "model.decoder.layers.{}.output_adapters",
  },
}


@pytest.fixture(scope="module", params=["t5", "bart"])
def model(request, tmp_path_factory):
  made = tiny.make(request.param)
  return hf.load(str(hf.save(made, made.params, tmp_path_factory.mktemp("base") / "base")))


@pytest.mark.full
def test_lora_loads_in_peft(model, tmp_path, reload):
  targets = ("cross/q_proj", "encoder/.*/v_proj", "decoder/.*/attn/o_proj", "down_proj")
  laid = tiny.lay(model, {"name": "lora", "rank": 2, "targets": targets}, noise=0.2)
  made = export(model, peft.Adapted(*laid), tmp_path / "out", certify=True, reload=reload)
  config = json.loads((tmp_path / "out/adapter_config.json").read_text())
  assert config["task_type"] == "SEQ_2_SEQ_LM"
  assert made.certificate["largest_logit_difference"] < 1e-4
  assert made.certificate["change_from_base"] > 0.01
  assert "import AutoModelForSeq2SeqLM" in (tmp_path / "out/README.md").read_text()


def test_a_prefix_is_refused(model, tmp_path):
  laid = tiny.lay(model, {"name": "prefix", "length": 2})
  with pytest.raises(UserError, match="PEFT cannot express a prefix of an encoder-decoder"):
    export(model, peft.Adapted(*laid), tmp_path / "out")
  assert not (tmp_path / "out").exists()


def test_adapters_have_their_names(model, tmp_path):
  """Of the half that has none, zeros are written: their config asks for both halves at once."""
  targets = ("encoder/.*/attn_residual", "(cross|mlp)_residual")
  section = {"name": "adapter", "width": 4, "placement": "houlsby", "targets": targets}
  methods, tuned, hyper, base = tiny.lay(model, section, noise=0.2)
  export(model, peft.Adapted(methods, tuned, hyper, base), tmp_path / "out")
  tensors = load_file(tmp_path / "out/adapter.safetensors")
  c, trained = model.model.config, peft.arrays_of(methods[0], tuned["peft"])
  names = ("adapter_down.0.weight", "adapter_down.0.bias", "adapter_up.weight", "adapter_up.bias")
  seen = set()
  for site, place in PLACES[model.family].items():
    for i in range(c.encoder.layers if "encoder" in site else c.layers):
      keys = [f"{place.format(i)}.adapters.jaxtune.{name}" for name in names]
      seen |= set(keys)
      if site in trained:
        np.testing.assert_array_equal(tensors[keys[0]], trained[site]["down_kernel"][i].T)
        np.testing.assert_array_equal(tensors[keys[3]], trained[site]["up_bias"][i])
      else:
        assert site == "decoder/layers/attn_residual"
        assert not any(tensors[key].any() for key in keys)
  assert tensors.keys() == seen
  config = json.loads((tmp_path / "out/adapter_config.json").read_text())
  assert config["model_class"] == hf.family_module(model.family).ARCHITECTURES["lm"]
  asked = {k: config["config"][k] for k in ("mh_adapter", "cross_adapter", "output_adapter")}
  assert all(asked.values()) and config["hidden_size"] == c.width
