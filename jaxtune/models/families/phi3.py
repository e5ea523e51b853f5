"""Phi-3 (mini, medium; 4k and 128k): Llama with fused weights, split into q, k, v, gate and up."""

from __future__ import annotations

from functools import partial

from jaxtune.models import heads
from jaxtune.models.config import Config
from jaxtune.models.families import llama
from jaxtune.models.fields import only, rope, sliding

ARCHITECTURES = heads.architectures("Phi3", "lm", *heads.POOLED, "tokens")
FUSED = {f"attn/{p}_proj": "self_attn.qkv_proj" for p in "qkv"}
FUSED |= {f"mlp/{p}_proj": "mlp.gate_up_proj" for p in ("gate", "up")}
names = partial(llama.names, fused=FUSED)


def config(hf: dict, **overrides) -> Config:
  """Reads a `config.json` of `model_type` phi3."""
  only(hf, layer_types=None)  # which transformers does not read here
  hf = dict(
    rms_norm_eps=1e-5, max_position_embeddings=4096, original_max_position_embeddings=4096,
    sliding_window=None,
  ) | hf  # fmt: skip
  share = hf.get("partial_rotary_factor", 1.0)
  theta = hf.get("rope_theta") or 10_000.0
  kinds = {"default": "default", "yarn": "longrope", "longrope": "longrope"}  # files use both names
  fields = dict(rope=rope(hf, theta=theta, share=share, kinds=kinds))
  fields |= dict(qkv_bias=False, o_bias=False, ffn_bias=False)
  fields |= sliding(hf, lambda i: hf["sliding_window"] is not None)
  return llama.config(hf, **fields | overrides)
