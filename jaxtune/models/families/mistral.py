"""Mistral (7B, Nemo): Llama, in which a token attends only to the last `sliding_window` keys."""

from __future__ import annotations

from functools import partial

from jaxtune.models import heads
from jaxtune.models.config import Config
from jaxtune.models.families import llama
from jaxtune.models.fields import only, sliding

ARCHITECTURES = heads.architectures("Mistral")
names = partial(llama.names, qa_base="model")


def config(hf: dict, **overrides) -> Config:
  """Reads a `config.json` of `model_type` mistral."""
  only(hf, layer_types=None)  # Ministral has several kinds of layers
  hf = dict(num_key_value_heads=8, max_position_embeddings=131_072, sliding_window=4096) | hf
  fields = dict(qkv_bias=False, o_bias=False, ffn_bias=False)
  fields |= sliding(hf, lambda i: hf["sliding_window"] is not None)
  return llama.config(hf, **fields | overrides)
