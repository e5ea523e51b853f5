"""Llama (1, 2, 3, SmolLM, TinyLlama): how a Hugging Face folder maps to `Config` and its weights.

Most decoders since name their weights as Llama does; their files state what differs.
"""

from __future__ import annotations

from jaxtune.models import heads
from jaxtune.models.config import Config
from jaxtune.models.decoder import Decoder
from jaxtune.models.fields import head_size, only, rope
from jaxtune.models.names import Tensor

MODEL = Decoder
ARCHITECTURES = {"lm": "LlamaForCausalLM"} | heads.architectures("Llama")
# By the order of a layer's norms: their names of it.
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
  count, turned = hf["num_attention_heads"], overrides.get("rope")
  turned = turned or rope(hf, theta=hf.get("rope_theta") or 10_000.0)
  fields = dict(
    vocabulary=hf["vocab_size"],
    width=hf["hidden_size"],
    layers=hf["num_hidden_layers"],
    heads=count,
    kv_heads=hf.get("num_key_value_heads") or count,
    head_size=hf.get("head_dim") or head_size(hf),
    ffn=hf["intermediate_size"],
    positions=turned.reach(hf["max_position_embeddings"]),
    epsilon=hf.get("rms_norm_eps", 1e-6),
    rope=turned,
    activation=hf.get("hidden_act") or "silu",
    qkv_bias=hf.get("attention_bias", False),
    o_bias=hf.get("attention_bias", False),
    ffn_bias=hf.get("mlp_bias", False),
    tied=hf.get("tie_word_embeddings", False),
  )
  return Config(**fields | overrides)


def names(c: Config, qa_base: str = "transformer") -> list[Tensor]:
  """Lists every weight: its path here and its name there; `qa_base` begins those of a qa model."""
  base = qa_base if c.head is not None and c.head.kind == "qa" else "model"
  rows = [
    Tensor("embed/embedding", f"{base}.embed_tokens.weight"),
    Tensor("trunk/norm/scale", f"{base}.norm.weight"),
  ]
  layer = lambda ours, theirs, **how: rows.append(
    Tensor(f"trunk/layers/{ours}", f"{base}.layers.{{}}.{theirs}", **how)
  )
  norms = {f"attn/{p}_norm": f"self_attn.{p}_norm" for p in "qk"} if c.qk_norm else {}
  for ours, theirs in (NORMS[c.order] | norms).items():
    layer(f"{ours}/scale", f"{theirs}.weight")
  linears = [("attn", "self_attn", p, c.o_bias if p == "o" else c.qkv_bias) for p in "qkvo"]
  linears += [("mlp", "mlp", p, c.ffn_bias) for p in ("gate", "up", "down")]
  for group, theirs, p, bias in linears:
    layer(f"{group}/{p}_proj/kernel", f"{theirs}.{p}_proj.weight", transpose=True)
    if bias:
      layer(f"{group}/{p}_proj/bias", f"{theirs}.{p}_proj.bias")
  return rows + heads.names(c)
