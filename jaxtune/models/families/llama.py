"""Llama (1, 2, 3, SmolLM, TinyLlama): how a Hugging Face folder maps to `Config` and its weights.

Most later decoders name their weights as Llama does; their own files state what differs.
"""

from __future__ import annotations

from jaxtune.models import heads
from jaxtune.models.config import Config
from jaxtune.models.fields import only, rope, sizes
from jaxtune.models.names import Tensor, tensors

ARCHITECTURES = heads.architectures("Llama")
# {`Config.order`: {our name of a norm: its name in the folder}}
NORMS = {
  "pre": {"attn_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"},
  "out": {
    "attn_out_norm": "post_attention_layernorm",
    "mlp_out_norm": "post_feedforward_layernorm",
  },
  "sandwich": {
    "attn_norm": "input_layernorm",
    "attn_out_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp_out_norm": "post_feedforward_layernorm",
  },
}


def config(hf: dict, **overrides) -> Config:
  """Reads a `config.json` of `model_type` llama; `overrides` are fields of `Config`."""
  only(hf, no_rope_layers=None)
  hf = dict(max_position_embeddings=2048) | hf
  rotary = overrides.get("rope") or rope(hf, theta=hf.get("rope_theta") or 10_000.0)
  fields = sizes(hf, head_size=hf.get("head_dim")) | dict(
    kv_heads=hf.get("num_key_value_heads") or hf["num_attention_heads"],
    positions=rotary.reach(hf["max_position_embeddings"]),
    epsilon=hf.get("rms_norm_eps", 1e-6),
    rope=rotary,
    activation=hf.get("hidden_act") or "silu",
    qkv_bias=hf.get("attention_bias", False),
    o_bias=hf.get("attention_bias", False),
    ffn_bias=hf.get("mlp_bias", False),
    tied=hf.get("tie_word_embeddings", False),
  )
  return Config(**fields | overrides)


def names(
  c: Config, fused: dict[str, str] | None = None, qa_base: str = "transformer"
) -> list[Tensor]:
  """Lists every weight, with its path in our tree and its tensor name.

  Args:
    fused: {path: name} of modules that the family stores as one, under other names than Llama's.
    qa_base: prefix of the names in a model for question answering.
  """
  base = qa_base if c.head_kind == "qa" else "model"
  layer = NORMS[c.order] | {f"attn/{p}_norm": f"self_attn.{p}_norm" for p in "qk" if c.qk_norm}
  layer |= {f"attn/{p}_proj": f"self_attn.{p}_proj" for p in "qkvo"}
  layer |= {f"mlp/{p}_proj": f"mlp.{p}_proj" for p in ("gate", "up", "down")}
  embed, norm = tensors(c, {"embed": "embed_tokens", "trunk/norm": "norm"}, theirs=f"{base}.")
  return [
    embed._replace(also=heads.copies(c)),
    norm,
    *tensors(c, layer | (fused or {}), "trunk/layers/", f"{base}.layers.{{}}."),
    *heads.names(c),
  ]
