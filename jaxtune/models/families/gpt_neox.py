"""GPT-NeoX (Pythia, GPT-NeoX-20B): how its folder maps to `Config` and its weights.

The fused `query_key_value`, in which q, k and v alternate by head, is split into the three.
"""

from __future__ import annotations

from jaxtune.models import heads
from jaxtune.models.config import Config
from jaxtune.models.fields import rope, sizes
from jaxtune.models.names import Tensor, tensors

ARCHITECTURES = heads.architectures("GPTNeoX")


def config(hf: dict, **overrides) -> Config:
  """Reads a `config.json` of `model_type` gpt_neox."""
  hf = dict(max_position_embeddings=2048) | hf
  theta = hf.get("rotary_emb_base") or 10_000.0
  rotary = rope(hf, theta=theta, share=hf.get("rotary_pct", 0.25))
  fields = sizes(hf) | dict(
    positions=rotary.reach(hf["max_position_embeddings"]),
    epsilon=hf.get("layer_norm_eps", 1e-5),
    rope=rotary,
    order="parallel" if hf.get("use_parallel_residual", True) else "pre",
    centre_norm=True,
    activation=hf.get("hidden_act") or "gelu",
    gated=False,
    qkv_bias=hf.get("attention_bias", True),
    o_bias=hf.get("attention_bias", True),
    ffn_bias=True,
    tied=hf.get("tie_word_embeddings", False),
  )
  return Config(**fields | overrides)


def names(c: Config) -> list[Tensor]:
  """Lists every weight, with its path in our tree and its tensor name."""
  top = {"embed": "embed_in", "trunk/norm": "final_layer_norm"}
  layer = {
    "attn_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
    "attn/q_proj": "attention.query_key_value",
    "attn/k_proj": "attention.query_key_value",
    "attn/v_proj": "attention.query_key_value",
    "attn/o_proj": "attention.dense",
    "mlp/up_proj": "mlp.dense_h_to_4h",
    "mlp/down_proj": "mlp.dense_4h_to_h",
  }
  embed, *others = tensors(c, top, theirs="gpt_neox.")
  return [
    embed._replace(also=heads.copies(c, lm="embed_out")),
    *others,
    *tensors(c, layer, "trunk/layers/", "gpt_neox.layers.{}.", by_head=True),
    *heads.names(c, tokens="classifier", lm="embed_out"),
  ]
