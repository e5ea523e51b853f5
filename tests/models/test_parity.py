"""Logits, loading and text equal those of PyTorch transformers."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import tiny
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GPT2Config, LlamaConfig

from jaxtune.models import hf
from jaxtune.models.layers import ACTIVATIONS

LLAMA = {k: v for k, v in tiny.ARCHITECTURES["llama"].items() if k != "model_type"}
GPT2 = {k: v for k, v in tiny.ARCHITECTURES["gpt2"].items() if k != "model_type"}
LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 5_000.0, "factor": 3.0}


def other(name, **changes):
  return AutoConfig.for_model(**tiny.DECODERS[name] | changes)


CONFIGS = {
  "mha": lambda: LlamaConfig(**LLAMA | {"num_key_value_heads": 4}),
  "gqa": lambda: LlamaConfig(**LLAMA),
  "tied": lambda: LlamaConfig(**LLAMA | {"tie_word_embeddings": True}),
  "biases": lambda: LlamaConfig(**LLAMA, attention_bias=True, mlp_bias=True),
  "head_dim": lambda: LlamaConfig(**LLAMA, head_dim=12),
  "gelu": lambda: LlamaConfig(**LLAMA, hidden_act="gelu_pytorch_tanh"),
  "rope-linear": lambda: LlamaConfig(**LLAMA, rope_parameters=LINEAR_ROPE),
  "rope-llama3": lambda: LlamaConfig(**LLAMA, rope_parameters=tiny.LLAMA3_ROPE),
  **{name: partial(AutoConfig.for_model, **fields) for name, fields in tiny.DECODERS.items()},
  "mistral-open": lambda: other("mistral", sliding_window=None),
  "qwen2-open": lambda: other("qwen2", use_sliding_window=False),
  "gemma-untied": lambda: other("gemma", tie_word_embeddings=False),
  "gemma2-no-caps": lambda: other(
    "gemma2", attn_logit_softcapping=None, final_logit_softcapping=None
  ),
  "gemma3-caps": lambda: other("gemma3_text", final_logit_softcapping=3.0),
  "neox-sequential": lambda: other("gpt_neox", use_parallel_residual=False, attention_bias=False),
  "neox-tied": lambda: other("gpt_neox", tie_word_embeddings=True, hidden_act="gelu_new"),
  "gpt2": lambda: GPT2Config(**GPT2),
  "gpt2-inner": lambda: GPT2Config(**GPT2, n_inner=40),
  "gpt2-untied": lambda: GPT2Config(**GPT2, tie_word_embeddings=False),
}


def logits(pretrained, tokens):
  return np.asarray(jax.jit(pretrained.model.apply)({"params": pretrained.params}, tokens))


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_pytorch(name, tmp_path):
  theirs = tiny.torch_twin(CONFIGS[name](), tmp_path)
  ours = hf.load(str(tmp_path))
  run = jax.jit(ours.model.apply)
  for side in (None, "left", "right"):
    tokens, mask = tiny.batch(side=side, length=24)
    expected = tiny.torch_logits(theirs, tokens, mask, tiny.positions_of(mask))
    made = np.asarray(run({"params": ours.params}, tokens, mask))
    np.testing.assert_allclose(made[mask], expected[mask], atol=1e-4, rtol=0)
  made = logits(ours, tokens)  # no mask given, on either side
  np.testing.assert_allclose(made, tiny.torch_logits(theirs, tokens), atol=1e-4, rtol=0)


def test_activations_equal_pytorch():
  import torch
  from transformers.activations import ACT2FN

  x = np.linspace(-6, 6, 101, dtype=np.float32)
  for name, ours in ACTIVATIONS.items():
    np.testing.assert_allclose(ours(x), ACT2FN[name](torch.tensor(x)), atol=2e-6, err_msg=name)


@pytest.mark.parametrize("name", ["gqa", "gpt2", "gemma2", "phi3", "gpt_neox", "neox-tied"])
def test_sharded_equals_single(name, tmp_path):
  theirs = tiny.torch_twin(CONFIGS[name](), tmp_path / "single")
  theirs.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
  assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
  single, sharded = (hf.load(str(tmp_path / kind)).params for kind in ("single", "sharded"))
  jax.tree.map(np.testing.assert_array_equal, single, sharded)


@pytest.mark.parametrize("name", ["gqa", "gpt2"])
def test_bf16_files(name, tmp_path):
  """A bf16 file in fp32 is exact; computing in bf16 stays within 3 % of the logits' spread."""
  import torch

  theirs = tiny.torch_twin(CONFIGS[name](), tmp_path / "32")
  theirs.to(torch.bfloat16).save_pretrained(tmp_path / "16")
  theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "16", dtype=torch.float32)
  tokens, mask = tiny.batch()
  exact, low = (hf.load(str(tmp_path / "16"), dtype=d) for d in ("float32", "bfloat16"))
  assert {str(x.dtype) for x in jax.tree.leaves(low.params)} == {"bfloat16"}
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(a.astype(jnp.float32), b),
               low.params, exact.params)  # fmt: skip
  expected = tiny.torch_logits(theirs, tokens)
  np.testing.assert_allclose(logits(exact, tokens), expected, atol=1e-4, rtol=0)
  difference = logits(low, tokens) - expected
  assert logits(low, tokens).dtype == np.float32
  assert np.sqrt(np.mean(difference**2)) < 0.03 * expected.std()


def test_rope_keys_of_transformers_4(tmp_path):
  """`rope_theta` and `rope_scaling` at the top level mean the same as `rope_parameters`."""
  new = hf.family_module("llama").config(LLAMA | {"rope_parameters": tiny.LLAMA3_ROPE})
  scaling = {k: v for k, v in tiny.LLAMA3_ROPE.items() if k != "rope_theta"}
  old = LLAMA | {"rope_theta": 10_000.0, "rope_scaling": scaling}
  assert hf.family_module("llama").config(old) == new
  old["rope_scaling"] = {"type": scaling.pop("rope_type"), **scaling}
  assert hf.family_module("llama").config(old) == new


@pytest.mark.full
def test_stories_continue_as_in_transformers(shared):
  folder = shared / "models" / "stories260K"
  if not folder.is_dir():
    pytest.skip("needs stories260K")
  ours, theirs = hf.load(str(folder)), AutoModelForCausalLM.from_pretrained(folder)
  tokenizer = AutoTokenizer.from_pretrained(folder)
  tokens, _ = tiny.batch()
  np.testing.assert_allclose(
    logits(ours, tokens), tiny.torch_logits(theirs, tokens), atol=1e-4, rtol=0
  )
  start = {"input_ids": tokenizer.encode("Once upon a time, Lily", return_tensors="pt")}
  made = theirs.generate(**start, do_sample=False, max_new_tokens=60)[0].tolist()
  ids = start["input_ids"][0].tolist()
  run = jax.jit(ours.model.apply)
  while len(ids) < len(made):
    row = np.zeros((1, len(made)), np.int32)
    row[0, : len(ids)] = ids
    ids.append(int(run({"params": ours.params}, row)[0, len(ids) - 1].argmax()))
  assert ours.tokenizer.decode(ids) == tokenizer.decode(made)
  assert len(ids) > 40
