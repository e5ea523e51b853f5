"""Gemma (1, CodeGemma): Llama with scaled embeddings, wide heads, and norms that scale by 1 + w."""

from __future__ import annotations

from jaxtune.models import heads
from jaxtune.models.config import Config
from jaxtune.models.families import llama
from jaxtune.models.fields import only

ARCHITECTURES = heads.architectures("Gemma", "lm", *heads.POOLED, "tokens")
names = llama.names


def config(hf: dict, **overrides) -> Config:
  """Reads a `config.json` of `model_type` gemma, and what Gemma 2 and 3 share with it."""
  if hf.get("use_bidirectional_attention"):
    only(hf, use_bidirectional_attention=False)
  hf = dict(
    num_key_value_heads=16, head_dim=256, max_position_embeddings=8192, tie_word_embeddings=True,
  ) | hf  # fmt: skip
  first = hf["model_type"] == "gemma"  # as in transformers, where later ones have another entry
  name = hf.get("hidden_act" if first else "hidden_activation") or "gelu_pytorch_tanh"
  fields = dict(
    # Gemma's files with "gelu" mean the approximation that the model was trained with.
    activation="gelu_pytorch_tanh" if first and name == "gelu" else name,
    embed_scale=hf["hidden_size"] ** 0.5,
    norm_offset=1.0,
    ffn_bias=False,
  )
  return llama.config(hf, **fields | overrides)
