"""Scores that are the embeddings: said by config.json, and stored once more or otherwise."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support import tiny
from transformers import AutoModelForCausalLM

from jaxtune.errors import UserError
from jaxtune.models import hf

WEIGHTS = "model.safetensors"


EMBEDDINGS = {
  "llama3": ("model.embed_tokens.weight", "lm_head.weight"),
  "gpt2": ("transformer.wte.weight", "lm_head.weight"),
  "gpt_neox": ("gpt_neox.embed_in.weight", "embed_out.weight"),
}


@pytest.mark.parametrize("name", EMBEDDINGS)
def test_tied_embeddings_go_by_either_name_or_both(name, tmp_path):
  ours = tiny.random((tiny.ARCHITECTURES | tiny.DECODERS)[name] | {"tie_word_embeddings": True})
  folder, (embed, head) = hf.save(ours, ours.params, tmp_path / "model"), EMBEDDINGS[name]
  tensors = load_file(folder / WEIGHTS)
  both = tensors | {head: tensors[embed] + 0}
  for stored in (both, {name: x for name, x in both.items() if name != embed}):
    save_file(stored, folder / WEIGHTS)
    jax.tree.map(np.testing.assert_array_equal, hf.load(str(folder)).params, ours.params)


@pytest.mark.parametrize("name", ["llama3", "gpt2", "gpt_neox"])
def test_another_head_than_the_tied_embeddings_is_used(name, tmp_path):
  """As transformers 5 does, whatever config.json says; and what we write says so."""
  import torch

  theirs = tiny.torch_twin(tiny.torch_config(name, tie_word_embeddings=False), tmp_path / "model")
  path = tmp_path / "model" / "config.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | {"tie_word_embeddings": True}))
  ours = hf.load(str(tmp_path / "model"))
  hf.save(ours, ours.params, tmp_path / "saved")
  written = json.loads((tmp_path / "saved" / "config.json").read_text())
  assert written["tie_word_embeddings"] is False
  tokens, _ = tiny.batch()
  made = jax.jit(ours.model.apply)({"params": ours.params}, tokens)
  for folder in ("model", "saved"):
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / folder, dtype=torch.float32)
    expected = tiny.torch_logits(theirs.eval(), tokens)
    np.testing.assert_allclose(made, expected, atol=1e-4, rtol=0)


COPIES = {
  "bert": {
    "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
  },
  "roberta": {
    "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
    "lm_head.decoder.bias": "lm_head.bias",
  },
  "distilbert": {"vocab_projector.weight": "distilbert.embeddings.word_embeddings.weight"},
  "modernbert": {"decoder.weight": "model.embeddings.tok_embeddings.weight"},
}


@pytest.mark.parametrize("name", COPIES)
def test_scores_of_masked_models_are_copies(name, tmp_path):
  """Equal ones are left out, others refused; another head scores nothing by them."""
  ours = tiny.make(name, head="mlm")
  folder = hf.save(ours, ours.params, tmp_path / "model")
  tensors = load_file(folder / WEIGHTS)
  copies = {copy: tensors[original] + 0 for copy, original in COPIES[name].items()}
  save_file(tensors | copies, folder / WEIGHTS)
  assert not hf.outline(str(folder), head="mlm").fresh
  for copy, original in COPIES[name].items():
    save_file(tensors | {copy: tensors[original] + 1}, folder / WEIGHTS)
    with pytest.raises(UserError, match=f"{copy} differs from {original}"):
      hf.outline(str(folder), head="mlm")
  assert copy in hf.outline(str(folder), head="tokens", labels=2).dropped
