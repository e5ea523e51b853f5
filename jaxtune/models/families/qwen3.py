"""Qwen 3 (dense): Qwen 2 without biases, and with a norm over each head of q and k."""

from __future__ import annotations

from jaxtune.models import heads
from jaxtune.models.config import Config
from jaxtune.models.families import llama, qwen2

ARCHITECTURES = heads.architectures("Qwen3")
names = llama.names


def config(hf: dict, **overrides) -> Config:
  """Reads a `config.json` of `model_type` qwen3."""
  hf = qwen2.DEFAULTS | dict(head_dim=128) | hf
  fields = dict(qk_norm="head", ffn_bias=False) | qwen2.windows(hf)
  return llama.config(hf, **fields | overrides)
