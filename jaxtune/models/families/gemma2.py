"""Gemma 2 (2B, 9B, 27B): Gemma with bounded scores and logits, local layers and more norms."""

from __future__ import annotations

from jaxtune.models import heads
from jaxtune.models.config import Config
from jaxtune.models.families import gemma, llama
from jaxtune.models.fields import sliding

ARCHITECTURES = heads.architectures("Gemma2", "lm", *heads.POOLED, "tokens")
names = llama.names


def config(hf: dict, **overrides) -> Config:
  """Reads a `config.json` of `model_type` gemma2."""
  hf = dict(
    num_key_value_heads=4, sliding_window=4096, query_pre_attn_scalar=256,
    attn_logit_softcapping=50.0, final_logit_softcapping=30.0,
  ) | hf  # fmt: skip
  fields = dict(
    order="sandwich",
    scale=hf["query_pre_attn_scalar"] ** -0.5,
    softcap=hf["attn_logit_softcapping"],
    logit_softcap=hf["final_logit_softcapping"],
  )
  return gemma.config(hf, **fields | sliding(hf, lambda i: i % 2 == 0) | overrides)
