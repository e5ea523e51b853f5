"""GPT-NeoX (Pythia, GPT-NeoX-20B): how its folder maps to `Config` and its weights.

The fused `query_key_value`, in which q, k and v alternate by head, is split into the three.
"""

from __future__ import annotations

from jaxtune.models import heads
from jaxtune.models.config import Config
from jaxtune.models.decoder import Decoder
from jaxtune.models.fields import head_size, rope
from jaxtune.models.names import Tensor, parts

MODEL = Decoder
ARCHITECTURES = {"lm": "GPTNeoXForCausalLM"} | heads.architectures("GPTNeoX")


def config(hf: dict, **overrides) -> Config:
  """Reads a `config.json` of `model_type` gpt_neox."""
  hf = dict(max_position_embeddings=2048) | hf
  count, theta = hf["num_attention_heads"], hf.get("rotary_emb_base") or 10_000.0
  turned = rope(hf, theta=theta, share=hf.get("rotary_pct", 0.25))
  fields = dict(
    vocabulary=hf["vocab_size"],
    width=hf["hidden_size"],
    layers=hf["num_hidden_layers"],
    heads=count,
    kv_heads=count,
    head_size=head_size(hf),
    ffn=hf["intermediate_size"],
    positions=turned.reach(hf["max_position_embeddings"]),
    epsilon=hf.get("layer_norm_eps", 1e-5),
    rope=turned,
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
  """Lists every weight: its path here and its name there."""
  rows = [Tensor("embed/embedding", "gpt_neox.embed_in.weight")]
  norms = {
    "trunk/norm": "final_layer_norm",
    "trunk/layers/attn_norm": "layers.{}.input_layernorm",
    "trunk/layers/mlp_norm": "layers.{}.post_attention_layernorm",
  }
  for ours, theirs in norms.items():
    rows.append(Tensor(f"{ours}/scale", f"gpt_neox.{theirs}.weight"))
    rows.append(Tensor(f"{ours}/bias", f"gpt_neox.{theirs}.bias"))
  qkv = zip("qkv", parts(*[c.head_size] * 3, heads=c.heads), strict=True)
  linears = [(f"attn/{p}_proj", "attention.query_key_value", part, c.qkv_bias) for p, part in qkv]
  linears += [
    ("attn/o_proj", "attention.dense", None, c.o_bias),
    ("mlp/up_proj", "mlp.dense_h_to_4h", None, c.ffn_bias),
    ("mlp/down_proj", "mlp.dense_4h_to_h", None, c.ffn_bias),
  ]
  for ours, theirs, part, bias in linears:
    ours, theirs = f"trunk/layers/{ours}", f"gpt_neox.layers.{{}}.{theirs}"
    rows.append(Tensor(f"{ours}/kernel", f"{theirs}.weight", transpose=True, part=part))
    if bias:
      rows.append(Tensor(f"{ours}/bias", f"{theirs}.bias", part=part))
  return rows + heads.names(c, tokens="classifier", lm="embed_out")
