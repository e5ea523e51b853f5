"""Tiny random models, ours and PyTorch's, for the tests."""

from __future__ import annotations

import functools
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxtune import peft, tree
from jaxtune.models import hf, quantize

ROOT = Path(__file__).resolve().parents[2]
VOCABULARY = 61
_LLAMA = dict(
  model_type="llama", vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=3,
  num_attention_heads=4, num_key_value_heads=2, intermediate_size=48,
  max_position_embeddings=64, rms_norm_eps=1e-5, tie_word_embeddings=False,
)  # fmt: skip
LLAMA3_ROPE = dict(
  rope_type="llama3", rope_theta=10_000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
  original_max_position_embeddings=16,
)  # fmt: skip
ARCHITECTURES = {
  "llama": _LLAMA,
  "llama3": _LLAMA | dict(
    num_hidden_layers=2, num_key_value_heads=1, head_dim=16, tie_word_embeddings=True,
    rope_parameters=LLAMA3_ROPE,
  ),
  "gpt2": dict(
    model_type="gpt2", vocab_size=VOCABULARY, n_embd=32, n_layer=3, n_head=4, n_positions=64,
  ),
  "t5": dict(
    model_type="t5", vocab_size=VOCABULARY, d_model=24, d_kv=5, d_ff=28, num_layers=2,
    num_decoder_layers=3, num_heads=4, relative_attention_num_buckets=8,
    relative_attention_max_distance=12, feed_forward_proj="gated-gelu", tie_word_embeddings=False,
    decoder_start_token_id=0,
  ),
  "bart": dict(
    model_type="bart", vocab_size=VOCABULARY, d_model=24, max_position_embeddings=40,
    encoder_layers=2, decoder_layers=3, encoder_attention_heads=4, decoder_attention_heads=2,
    encoder_ffn_dim=28, decoder_ffn_dim=20, scale_embedding=True, forced_bos_token_id=3,
  ),
}  # fmt: skip
_NEW = _LLAMA | dict(pad_token_id=0, rms_norm_eps=1e-6)
# One of every further decoder; windows are shorter than the tests' rows.
DECODERS = {
  "mistral": _NEW | dict(model_type="mistral", sliding_window=5),
  "qwen2": _NEW | dict(
    model_type="qwen2", use_sliding_window=True, sliding_window=4, max_window_layers=1,
  ),
  "qwen3": _NEW | dict(model_type="qwen3", head_dim=12, attention_bias=True),
  "gemma": _NEW | dict(model_type="gemma", head_dim=16, tie_word_embeddings=True),
  "gemma2": _NEW | dict(
    model_type="gemma2", head_dim=16, sliding_window=4, query_pre_attn_scalar=20,
    attn_logit_softcapping=2.0, final_logit_softcapping=5.0, tie_word_embeddings=True,
  ),
  "gemma3_text": _NEW | dict(
    model_type="gemma3_text", head_dim=16, sliding_window=4, query_pre_attn_scalar=20,
    layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    rope_parameters=dict(
      full_attention=dict(rope_type="linear", factor=4.0, rope_theta=1e6),
      sliding_attention=dict(rope_type="default", rope_theta=1e4),
    ),
    tie_word_embeddings=True,
  ),
  "phi3": _NEW | dict(model_type="phi3", sliding_window=5, partial_rotary_factor=0.5),
  "olmo2": _NEW | dict(model_type="olmo2"),
  "gpt_neox": _NEW | dict(model_type="gpt_neox", num_key_value_heads=4, rotary_pct=0.5),
}  # fmt: skip
_BERT = dict(
  vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
  intermediate_size=48, max_position_embeddings=64,
)  # fmt: skip
ENCODERS = {
  "bert": dict(model_type="bert") | _BERT,
  "roberta": dict(model_type="roberta", pad_token_id=1, type_vocab_size=1) | _BERT,
  "distilbert": dict(
    model_type="distilbert", vocab_size=VOCABULARY, dim=32, n_layers=2, n_heads=4, hidden_dim=48,
    max_position_embeddings=64,
  ),
  "modernbert": dict(model_type="modernbert", local_attention=8) | _BERT | dict(
    num_hidden_layers=4, pad_token_id=0, classifier_pooling="mean",
    bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2,
  ),
}  # fmt: skip


@functools.cache
def make(name: str, **changes) -> hf.Pretrained:
  """Makes a tiny model of one of the architectures above; `changes` are options of `hf.load`."""
  return random((ARCHITECTURES | DECODERS | ENCODERS)[name], **changes)


def random(architecture: dict, **changes) -> hf.Pretrained:
  """Makes a model of normal weights, scales around one; in numpy, as jax would compile a program.

  No leaf is at a special value, so that biases and norms count.
  """
  pretrained = hf.outline(architecture=architecture, **changes)
  shapes, dtype = hf.abstract(pretrained.model), pretrained.model.config.dtype
  start = lambda path, x: np.full(x.shape, float(path.endswith("scale")), dtype)
  flat = {path: start(path, leaf) for path, leaf in tree.flatten(shapes).items()}
  params = perturb(tree.unflatten(flat), 0, 0.1)
  return pretrained._replace(params=quantize.quantised(params, changes.get("quantize")))


def perturb(arrays, seed: int, deviation: float = 0.05):
  """Adds normal noise to every floating leaf; a leaf's noise depends on its path alone."""

  def moved(path: str, leaf):
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
      return leaf
    rng = np.random.default_rng([seed, zlib.crc32(path.encode())])
    noise = (deviation * rng.standard_normal(leaf.shape)).astype(leaf.dtype)
    return jax.device_put(np.asarray(leaf) + noise)  # `jnp.asarray` compiles for every shape

  return tree.unflatten({path: moved(path, leaf) for path, leaf in tree.flatten(arrays).items()})


find_sites = functools.cache(peft.find_sites)
_METHODS = {}  # by what their section is written as


def build(section: dict) -> tuple[peft.Method, ...]:
  """Makes the methods of a section once, so that all that lay it over a model share `forward`."""
  key = repr(section)
  if key not in _METHODS:
    _METHODS[key] = peft.build(section)
  return _METHODS[key]


def lay(
  pretrained: hf.Pretrained, section: dict, seed: int = 0, noise: float = 0.0
) -> peft.Adapted:
  """Lays a method over a model, what is trained moved off its start by `noise`."""
  methods = build(section)
  sites = find_sites(pretrained.model)
  adapted = peft.init(jax.random.key(seed), methods, sites, pretrained.params)
  if noise:
    tuned = {"params": {}, "peft": {}} | perturb(adapted.tuned, seed + 1, noise)
    adapted = adapted._replace(tuned=tuned)
  return adapted


_PROGRAMS = {}  # by id, beside the objects themselves so that no id is used twice


def forward(pretrained, laid, tokens, mask=None, rng=None):
  """Logits of a model with a method laid over it; compiled once for each section and shape."""
  methods, tuned, hyper, base = laid
  model = pretrained.model

  @jax.jit
  def run(base, tuned, hyper, rng, *args):
    return peft.apply(model, peft.Adapted(methods, tuned, hyper, base), *args, rng=rng)

  key = id(model), id(methods)
  program, *_ = _PROGRAMS.setdefault(key, (run, model, methods))
  return program(base, tuned, hyper, rng, tokens, mask)


def batch(rows: int = 3, length: int = 11, seed: int = 0, side: str | None = None):
  """Makes tokens (B, T) and a mask of rows of different lengths, padded on a side."""
  tokens = np.random.default_rng(seed).integers(0, VOCABULARY, (rows, length)).astype(np.int32)
  mask = np.ones((rows, length), bool)
  for i in range(rows if side else 0):
    mask[i, : 2 * i] = False
  return tokens, mask[:, ::-1].copy() if side == "right" else mask


def torch_twin(config, folder: Path, architecture: str | None = None, **save):
  """Saves a random PyTorch model in a folder and returns it; no parameter keeps its plain start."""
  import torch
  import transformers

  torch.manual_seed(0)
  if architecture is None:
    kind = "Seq2SeqLM" if config.is_encoder_decoder else "CausalLM"
    make = getattr(transformers, f"AutoModelFor{kind}").from_config
  else:
    make = getattr(transformers, architecture)._from_config
  model = make(config, attn_implementation="eager").eval()
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.add_(0.1 * torch.randn_like(parameter))
  model.save_pretrained(folder, **save)
  return model


def torch_config(name: str, **changes):
  """Makes the configuration of a tiny model as transformers has it."""
  from transformers import AutoConfig

  fields = (ARCHITECTURES | DECODERS | ENCODERS)[name] | changes
  return AutoConfig.for_model(**fields)


def torch_logits(model, tokens, mask=None, positions=None, **kwargs):
  """Logits of a PyTorch model, as a numpy array."""
  import torch

  extra = {} if mask is None else {"attention_mask": torch.tensor(np.asarray(mask)).long()}
  if positions is not None:
    extra["position_ids"] = torch.tensor(np.asarray(positions))
  with torch.no_grad():
    return model(input_ids=torch.tensor(tokens).long(), **extra, **kwargs).logits.float().numpy()


def positions_of(mask):
  return np.maximum(np.cumsum(mask, 1) - 1, 0)
