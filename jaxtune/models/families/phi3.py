"""Phi-3 (mini, medium; 4k and 128k): Llama with fused weights, split into q, k, v, gate and up."""

from __future__ import annotations

from jaxtune.models import heads
from jaxtune.models.config import Config
from jaxtune.models.families import llama
from jaxtune.models.families.llama import MODEL
from jaxtune.models.fields import rope, sliding
from jaxtune.models.names import Tensor, parts

__all__ = ["ARCHITECTURES", "MODEL", "config", "names"]
ARCHITECTURES = {"lm": "Phi3ForCausalLM"} | heads.architectures("Phi3", *heads.POOLED, "tokens")
DEFAULTS = dict(
  rms_norm_eps=1e-5, max_position_embeddings=4096, original_max_position_embeddings=4096,
  sliding_window=None,
)  # fmt: skip
KINDS = {"default": "default", "yarn": "longrope", "longrope": "longrope"}  # by either name


def config(hf: dict, **overrides) -> Config:
  """Reads a `config.json` of `model_type` phi3."""
  hf = DEFAULTS | hf
  share = hf.get("partial_rotary_factor", 1.0)
  theta = hf.get("rope_theta") or 10_000.0
  fields = dict(rope=rope(hf, theta=theta, share=share, kinds=KINDS))
  local = [hf["sliding_window"] is not None] * hf["num_hidden_layers"]
  return llama.config(hf, **fields | sliding(hf, local) | overrides)


def names(c: Config) -> list[Tensor]:
  """Lists every weight: its path here and its name there."""
  few = c.kv_heads * c.head_size
  qkv, gate_up = parts(c.heads * c.head_size, few, few), parts(c.ffn, c.ffn)
  fused = {
    f"attn/{p}_proj": ("self_attn.qkv_proj", part) for p, part in zip("qkv", qkv, strict=True)
  }
  fused |= {"mlp/gate_proj": ("mlp.gate_up_proj", gate_up[0])}
  fused |= {"mlp/up_proj": ("mlp.gate_up_proj", gate_up[1])}
  rows = {row.ours: row for row in llama.names(c)}
  for ours, (theirs, part) in fused.items():
    path = f"trunk/layers/{ours}/kernel"
    rows[path] = rows[path]._replace(theirs=f"model.layers.{{}}.{theirs}.weight", part=part)
  return list(rows.values())
