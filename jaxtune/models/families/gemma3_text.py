"""Gemma 3 (270M, 1B; text alone): local layers with a RoPE of their own, and norms of q and k."""

from __future__ import annotations

from jaxtune.models import heads
from jaxtune.models.config import Config
from jaxtune.models.families import gemma, llama
from jaxtune.models.fields import only, rope, ropes, sliding

ARCHITECTURES = heads.architectures("Gemma3Text", "lm", *heads.POOLED) | {"lm": "Gemma3ForCausalLM"}
names = llama.names


def config(hf: dict, **overrides) -> Config:
  """Reads a `config.json` of `model_type` gemma3_text."""
  only(hf, attn_logit_softcapping=None)
  hf = dict(
    num_key_value_heads=4, sliding_window=4096, query_pre_attn_scalar=256,
    max_position_embeddings=131_072, sliding_window_pattern=6, final_logit_softcapping=None,
  ) | hf  # fmt: skip
  full, local = ropes(hf)
  full = full | (hf.get("rope_scaling") or {})
  local_rope = rope(hf, local, theta=hf.get("rope_local_base_freq") or 10_000.0)
  period = hf["sliding_window_pattern"]
  windows = sliding(hf, lambda i: (i + 1) % period != 0)
  fields = dict(
    order="sandwich",
    qk_norm="head",
    scale=hf["query_pre_attn_scalar"] ** -0.5,
    logit_softcap=hf["final_logit_softcapping"],
    rope=rope(hf, full, theta=hf.get("rope_theta") or 1_000_000.0),
    local_rope=local_rope if windows else None,
    positions=hf["max_position_embeddings"],  # the factor is in it, in all of these files
  )
  return gemma.config(hf, **fields | windows | overrides)
