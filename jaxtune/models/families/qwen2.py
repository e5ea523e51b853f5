"""Qwen 2 (2, 2.5): Llama with biases of q, k and v; upper layers may have a sliding window."""

from __future__ import annotations

from jaxtune.models import heads
from jaxtune.models.config import Config
from jaxtune.models.families import llama
from jaxtune.models.fields import sliding

ARCHITECTURES = heads.architectures("Qwen2")
DEFAULTS = dict(
  num_key_value_heads=32, max_position_embeddings=32_768, use_sliding_window=False,
  sliding_window=4096, max_window_layers=28,
)  # fmt: skip
names = llama.names


def config(hf: dict, **overrides) -> Config:
  """Reads a `config.json` of `model_type` qwen2."""
  fields = dict(qkv_bias=True, o_bias=False, ffn_bias=False) | windows(hf)
  return llama.config(DEFAULTS | hf, **fields | overrides)


def windows(hf: dict) -> dict:
  """Reads which layers are local, if any: by default those from `max_window_layers` on."""
  hf = DEFAULTS | hf
  return sliding(hf, lambda i: i >= hf["max_window_layers"]) if hf["use_sliding_window"] else {}
