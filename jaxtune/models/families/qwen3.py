"""Qwen 3 (dense): Qwen 2 without biases, and with a norm over each head of q and k."""

from __future__ import annotations

from jaxtune.models import heads
from jaxtune.models.config import Config
from jaxtune.models.families import llama, qwen2
from jaxtune.models.families.llama import MODEL, names

__all__ = ["ARCHITECTURES", "MODEL", "config", "names"]
ARCHITECTURES = {"lm": "Qwen3ForCausalLM"} | heads.architectures("Qwen3")
DEFAULTS = qwen2.DEFAULTS | dict(head_dim=128)


def config(hf: dict, **overrides) -> Config:
  """Reads a `config.json` of `model_type` qwen3."""
  return llama.config(DEFAULTS | hf, **dict(qk_norm="head") | qwen2.windows(hf) | overrides)
