"""OLMo 2 (1B, 7B, 13B, 32B): Llama with norms after attention and feed-forward, and of q and k."""

from __future__ import annotations

from jaxtune.models import heads
from jaxtune.models.config import Config
from jaxtune.models.families import llama

ARCHITECTURES = heads.architectures("Olmo2", "lm", *heads.POOLED)
names = llama.names


def config(hf: dict, **overrides) -> Config:
  """Reads a `config.json` of `model_type` olmo2."""
  hf = dict(rms_norm_eps=1e-5) | hf
  return llama.config(hf, **dict(order="out", qk_norm="all", ffn_bias=False) | overrides)
