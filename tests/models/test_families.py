"""What every decoder family must hold beyond its logits: decoding, gradients, files, refusals."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from support import tiny
from transformers import AutoConfig, AutoModelForCausalLM

from jaxtune import certify, peft, tree
from jaxtune.api.export import export
from jaxtune.errors import UserError
from jaxtune.formats import card
from jaxtune.models import hf
from jaxtune.models.decoder import Decoder

STACK = {
  "name": "stack",
  "lora": {"rank": 2, "targets": (".*_proj",)},
  "prefix": {"length": 3},
}
LORA = {"name": "lora", "rank": 2, "targets": (".*_proj",)}
PREFIX = {"name": "prefix", "length": 3}
families = pytest.mark.parametrize("name", tiny.DECODERS)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
  """Each family as PyTorch saved it."""
  folder = tmp_path_factory.mktemp("families")
  for name, fields in tiny.DECODERS.items():
    tiny.torch_twin(AutoConfig.for_model(**fields), folder / name)
  return {name: hf.load(str(folder / name)) for name in tiny.DECODERS}


@families
def test_decoding_equals_teacher_forcing(name, models):
  """With LoRA and a prefix, past the end of every window; prompts are padded on the left."""
  model, laid = models[name].model, tiny.lay(models[name], STACK, noise=0.1)
  tokens, mask = tiny.batch(length=11, side="left")
  call = lambda method: jax.jit(lambda *args: peft.apply(model, laid, *args, method=method))
  expected = tiny.forward(models[name], laid, tokens, mask)
  begin, decode = call(lambda model, *prompts: model.prefill(*prompts, 5)), call(model.decode)
  made, cache = begin(tokens[:, :7], jnp.asarray(mask[:, :7]))
  for stop in range(7, 11):
    np.testing.assert_allclose(made, expected[:, stop - 1], atol=2e-5, rtol=0)
    made, cache = decode(tokens[:, stop], cache)
  np.testing.assert_allclose(made, expected[:, -1], atol=2e-5, rtol=0)


def test_every_trained_leaf_has_a_gradient(models, name="gemma3_text"):
  """In every layer; and remat, where layers differ in numbers, changes no gradient.

  The gradients of the other families are in test_matrix.
  """
  methods, tuned, hyper, base = tiny.lay(models[name], STACK, noise=0.05)
  tokens, _ = tiny.batch(rows=1)

  def gradient(config):
    def loss(tuned):
      logits = peft.apply(Decoder(config), peft.Adapted(methods, tuned, hyper, base), tokens)
      return -jnp.sum(jax.nn.log_softmax(logits)[..., :2])

    return tree.flatten(jax.jit(jax.grad(loss))(tuned))

  config = models[name].model.config
  found = gradient(config)
  assert len(found) == 2 * (7 if config.gated else 6) + 2  # a, b of each linear; key, value
  for path, leaf in found.items():
    assert np.all(np.abs(leaf).reshape(leaf.shape[0], -1).max(1) > 1e-7), path
  assert config.local_rope
  again = gradient(dataclasses.replace(config, remat=True))
  for path, leaf in found.items():
    np.testing.assert_allclose(again[path], leaf, atol=1e-5, rtol=1e-4, err_msg=path)


@families
def test_files_are_those_of_transformers(name, models, tmp_path):
  """Every tensor that PyTorch saved is written back bit by bit, under its name."""
  ours = models[name]
  written = load_file(hf.save(ours, ours.params, tmp_path / "ours") / "model.safetensors")
  expected = load_file(ours.folder / "model.safetensors")
  assert written.keys() == expected.keys()
  for key, tensor in expected.items():
    np.testing.assert_array_equal(written[key], tensor, err_msg=key)
  _, info = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
  assert not any(info.values()), info


@families
def test_lora_in_files_is_the_change_of_weights(name, models, tmp_path):
  """alpha / r * B @ A of each module, fused ones too, is what merging adds to its weight."""
  laid = tiny.lay(models[name], LORA, noise=0.1)
  folder = export(models[name], peft.Adapted(*laid), tmp_path / "lora").folder
  merged = peft.merge(peft.Adapted(*laid))
  after = load_file(hf.save(models[name], merged, tmp_path / "after") / "model.safetensors")
  before = load_file(models[name].folder / "model.safetensors")
  config = json.loads((folder / "adapter_config.json").read_text())
  tensors = load_file(folder / "adapter_model.safetensors")
  modules = {key.removesuffix(".lora_A.weight") for key in tensors if "lora_A" in key}
  changed = {key for key in after if not np.array_equal(after[key], before[key])}
  assert {f"{m.removeprefix('base_model.model.')}.weight" for m in modules} == changed
  of = lambda table, module, default: next(
    (x for end, x in config[table].items() if module.endswith(f".{end}")), default
  )
  for module in modules:
    a, b = (tensors[f"{module}.lora_{x}.weight"] for x in "AB")
    rank, alpha = (
      of("rank_pattern", module, config["r"]),
      of("alpha_pattern", module, config["lora_alpha"]),
    )
    key = f"{module.removeprefix('base_model.model.')}.weight"
    assert rank == len(a)
    np.testing.assert_allclose(alpha / rank * b @ a, after[key] - before[key], atol=1e-5)


def test_prefix_equals_peft_up_to_the_window(tmp_path):
  """There the prefix leaves the window of far tokens; here they see it. The card says how far."""
  torch_peft = pytest.importorskip("peft")
  fields = tiny.DECODERS["mistral"] | dict(sliding_window=9)
  theirs = tiny.torch_twin(AutoConfig.for_model(**fields), tmp_path / "base")
  ours = hf.load(str(tmp_path / "base"))
  laid = tiny.lay(ours, PREFIX, noise=0.3)
  made = export(ours, peft.Adapted(*laid), tmp_path / "prefix")
  theirs = torch_peft.PeftModel.from_pretrained(theirs, made.folder)
  tokens, _ = tiny.batch(length=11)
  apart = np.abs(tiny.forward(ours, laid, tokens) - tiny.torch_logits(theirs, tokens)).max((0, 2))
  assert apart[:6].max() < 1e-4 < 1e-2 < apart[6]
  assert card.WINDOW.format(seen=6) in (made.folder / "README.md").read_text()
  with pytest.raises(UserError, match="sliding window of 9"):
    export(ours, peft.Adapted(*tiny.lay(ours, PREFIX | {"length": 9})), tmp_path / "long")


def test_certificates_stay_inside_the_window(models):
  """Where a prefix is certified: beyond, PyTorch computes another function."""
  config = dataclasses.replace(models["mistral"].model.config, window=9)
  lengths = [certify.make_batches(None, config, taken)[0][0].shape[1] for taken in (0, 3)]
  assert lengths == [24, 6]


def test_buffers_of_older_files_are_skipped(models, tmp_path):
  """Pythia's files hold the causal mask and the rotary frequencies."""
  model = models["gpt_neox"]
  folder = hf.save(model, model.params, tmp_path / "model")
  tensors = load_file(folder / "model.safetensors")
  for name in ("bias", "masked_bias", "rotary_emb.inv_freq"):
    tensors[f"gpt_neox.layers.0.attention.{name}"] = np.ones(2, np.float32)
  save_file(tensors, folder / "model.safetensors")
  jax.tree.map(np.testing.assert_array_equal, hf.load(str(folder)).params, model.params)


REFUSED = [
  ("llama", {"no_rope_layers": [1, 0, 1]}, "no_rope_layers"),
  ("llama", {"model_type": "smollm3"}, "smollm3"),
  ("llama", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor=0.5"),
  ("mistral", {"layer_types": ["full_attention"] * 3}, "layer_types"),
  ("qwen2", {"layer_types": ["chunked_attention"] * 3}, "chunked_attention"),
  ("qwen2", {"layer_types": ["full_attention"]}, "1 layer_types for 3 layers"),
  ("gemma2", {"sliding_window": None}, "no sliding_window"),
  ("phi3", {"layer_types": ["full_attention"] * 3}, "layer_types"),
  ("llama", {"is_causal": False}, "is_causal=False"),
  ("t5", {"is_causal": None}, "is_causal=None"),
  ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
  ("gemma3_text", {"attn_logit_softcapping": 2.0}, "attn_logit_softcapping"),
  ("gemma3_text", {"rope_parameters": {"rope_theta": 2.0}}, "rope_theta"),
  ("gemma", {"hidden_activation": "gelu_tanh"}, "gelu_pytorch_tanh"),
  ("phi3", {"rope_parameters": {"rope_type": "longrope"}}, "short_factor"),
  ("roberta", {"pad_token_id": None}, "pad_token_id"),
  ("roberta", {"pad_token_id": 80}, "positions"),
  ("t5", {"relative_attention_max_distance": 2**40}, "relative_attention_max_distance"),
  ("t5", {"relative_attention_max_distance": 4}, "relative_attention_max_distance"),
  ("t5", {"decoder_start_token_id": 61}, "61"),
  ("t5", {"feed_forward_proj": "gated-sillu"}, "sillu"),
  ("phi3", {"partial_rotary_factor": 0.4}, "even"),
  ("gpt_neox", {"rotary_pct": 1.5}, "1.5"),
]


@pytest.mark.parametrize("name, change, word", REFUSED)
def test_config_refused(name, change, word):
  with pytest.raises(UserError) as caught:
    hf.language(architecture=(tiny.ARCHITECTURES | tiny.DECODERS | tiny.ENCODERS)[name] | change)
  assert word in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name, change, read", [
  ("t5", {"feed_forward_proj": "gated-gelu", "dense_act_fn": "silu"}, "dense_act_fn"),
  ("gemma", {"hidden_act": "gelu", "hidden_activation": "relu"}, "hidden_act"),
  ("gemma2", {"hidden_act": "relu", "hidden_activation": "gelu"}, "hidden_activation"),
  ("gemma3_text", {"hidden_act": "relu"}, "hidden_activation"),
])  # fmt: skip
def test_activations_are_those_that_transformers_reads(name, change, read):
  architecture = (tiny.ARCHITECTURES | tiny.DECODERS)[name] | change
  ours = hf.family_module(name).config(architecture).activation
  assert ours == getattr(AutoConfig.for_model(**architecture), read)


@pytest.mark.parametrize("name", ["llama", *tiny.DECODERS])
def test_biases_are_those_that_transformers_has(name):
  """Whatever config.json says of them: several families have no such choice."""
  flags = dict(attention_bias=True, mlp_bias=True)
  architecture = (tiny.ARCHITECTURES | tiny.DECODERS)[name] | flags
  ours = hf.outline(architecture=architecture)
  shapes = {path: leaf.shape for path, leaf in tree.flatten(ours.params).items()}
  rows = hf.family_module(name).names(ours.model.config)
  made = {n for row in rows for n in row.their_names(shapes[row.ours]) if n.endswith(".bias")}
  with torch.device("meta"):
    theirs = AutoModelForCausalLM.from_config(AutoConfig.for_model(**architecture))
  assert made == {n for n in theirs.state_dict() if n.endswith(".bias")}


@pytest.mark.parametrize("read", [hf.language, hf.outline, hf.load])
@pytest.mark.parametrize("name, word", [
  ("gemma2", "bound"), ("llama", "on a GPU"), ("t5", "on a GPU"),
])  # fmt: skip
def test_the_fused_kernel_is_refused_where_it_cannot_be(name, word, read):
  """Bounds of scores it does not know, and numbers of 32 bits. Before data are read."""
  with pytest.raises(UserError, match=word) as caught:
    read(architecture=(tiny.DECODERS | tiny.ARCHITECTURES)[name], attention="cudnn")
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", [{}, {"sliding_window": None}])
def test_no_window_where_none_is_used(change):
  """Published files list the types of layers beside `use_sliding_window: false`."""
  kinds = ["full_attention", "sliding_attention", "sliding_attention"]
  change |= dict(use_sliding_window=False, layer_types=kinds)
  family = hf.family_module("qwen2")
  config = family.config(tiny.DECODERS["qwen2"] | change)
  assert config.window is None and config.local is None


LINEAR = {"rope_type": "linear", "factor": 4.0}


@pytest.mark.parametrize("name, old, new", [
  ("gemma3_text", {"rope_theta": 1e6, "rope_local_base_freq": 1e4, "rope_scaling": LINEAR,
                   "sliding_window_pattern": 2}, {}),
  ("gpt_neox", {"rotary_emb_base": 500.0, "rotary_pct": 0.25},
   {"rope_parameters": {"rope_theta": 500.0, "partial_rotary_factor": 0.25}}),
  ("phi3", {"rope_theta": 500.0}, {"rope_parameters": {
    "rope_theta": 500.0, "partial_rotary_factor": 0.5, "rope_type": "default"}}),
])  # fmt: skip
def test_keys_of_transformers_4(name, old, new):
  """The same numbers under older names give the same model."""
  fields = tiny.DECODERS[name]
  plain = {k: v for k, v in fields.items() if k not in ("rope_parameters", "layer_types")}
  family = hf.family_module(name)
  assert family.config(plain | old) == family.config(fields | new)


def test_smollm_is_a_llama():
  """As its checkpoints' config.json says: 9 heads to 3, tied."""
  config = tiny.ARCHITECTURES["llama"] | dict(
    hidden_size=36, num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True,
    rope_interleaved=False, rope_scaling=None, rope_theta=100_000, is_llama_config=True,
    architectures=["LlamaForCausalLM"], attention_bias=False, mlp_bias=False, pretraining_tp=1,
  )  # fmt: skip
  made = tiny.random(config)
  assert made.model.config.rope.theta == 100_000 and "head" not in made.params
