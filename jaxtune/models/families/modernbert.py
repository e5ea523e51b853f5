"""ModernBERT: an encoder with rotary positions, local and global layers and a gated feed-forward.

Warner et al. 2024. The fused `Wqkv` is split into q, k and v, and `Wi` into gate and up, so that a
target means the same in every family.
"""

from __future__ import annotations

from dataclasses import replace

from jaxtune.models import heads
from jaxtune.models.config import Config
from jaxtune.models.fields import only, rope, ropes, sizes, sliding
from jaxtune.models.names import Tensor, tensors

ARCHITECTURES = heads.architectures("ModernBert", *heads.ENCODERS)


def config(hf: dict, **overrides) -> Config:
  """Reads a `config.json` of `model_type` modernbert."""
  hf = dict(max_position_embeddings=8192) | hf
  scaling = hf.get("rope_scaling") or {}
  full, local = (numbers | scaling for numbers in ropes(hf))
  theta = hf.get("global_rope_theta") or 160_000.0
  rotary = rope(hf, full, theta=theta)
  # As in transformers 4, null stands for the other layers' theta.
  local_rope = rope(hf, local, theta=hf.get("local_rope_theta", 10_000.0) or theta)
  period = hf.get("global_attn_every_n_layers", 3)
  # local_attention counts the keys on both sides; our window is the first distance beyond one side.
  window = {"sliding_window": hf.get("local_attention", 128) // 2 + 1}
  windows = sliding(hf | window, lambda i: i % period != 0)
  fields = sizes(hf) | dict(
    positions=rotary.reach(hf["max_position_embeddings"]),
    epsilon=hf.get("norm_eps", 1e-5),
    causal=False,
    rope=rotary,
    local_rope=local_rope if windows else None,
    first_norm=False,
    embed_norm=True,
    centre_norm=True,
    norm_bias=hf.get("norm_bias", False),
    activation=hf.get("hidden_activation") or "gelu",
    qkv_bias=hf.get("attention_bias", False),
    o_bias=hf.get("attention_bias", False),
    ffn_bias=hf.get("mlp_bias", False),
    tied=hf.get("tie_word_embeddings", True),
  )
  if overrides.get("head") is not None:
    overrides |= {"head": _head(hf, overrides["head"])}
  return Config(**fields | windows | overrides)


def _head(hf: dict, head: heads.Head) -> heads.Head:
  """Completes the head as config.json describes it."""
  if head.kind == "mlm":
    only(hf, tie_word_embeddings=True)
  return replace(
    head,
    pooling="mean" if hf.get("classifier_pooling") == "mean" else "first",
    hidden=hf.get("classifier_activation") or "gelu",
    hidden_bias=hf.get("classifier_bias", False),
    norm=True,
    bias=hf.get("decoder_bias", True) if head.kind == "mlm" else True,
  )


def names(c: Config) -> list[Tensor]:
  """Lists every weight, with its path in our tree and its tensor name."""
  top = {"embed": "embeddings.tok_embeddings", "trunk/embed_norm": "embeddings.norm"}
  layer = {f"attn/{p}_proj": "attn.Wqkv" for p in "qkv"} | {"attn/o_proj": "attn.Wo"}
  layer |= {"mlp_norm": "mlp_norm", "mlp/gate_proj": "mlp.Wi", "mlp/up_proj": "mlp.Wi"}
  layer |= {"mlp/down_proj": "mlp.Wo"}
  embed, *others = tensors(c, top | {"trunk/norm": "final_norm"}, theirs="model.")
  first_norm = tensors(c, {"attn_norm": "attn_norm"}, "trunk/layers/", "model.layers.{}.")
  rows = [
    embed._replace(also=("decoder.weight",) * (c.head_kind == "mlm")),
    *others,
    *tensors(c, layer, "trunk/layers/", "model.layers.{}."),
    *(row._replace(first=1) for row in first_norm),  # the first layer has no norm
  ]
  if c.head is None:
    return rows
  rows += tensors(c, {"head/dense": "head.dense", "head/norm": "head.norm"})
  if c.head.kind == "mlm":
    return rows + [Tensor("head/bias", "decoder.bias")] * c.head.bias
  return rows + tensors(c, {"head/out": "classifier"})
