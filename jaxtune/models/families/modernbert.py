"""ModernBERT: rotary positions, local and global layers and a gated feed-forward in an encoder.

(Warner et al. 2024). The fused `Wqkv` is split into q, k and v, and `Wi` into gate and up, so that
a target means the same in every family.
"""

from __future__ import annotations

from dataclasses import replace

from jaxtune.models import heads
from jaxtune.models.config import Config
from jaxtune.models.encoder import Encoder
from jaxtune.models.fields import head_size, only, rope, ropes, sliding
from jaxtune.models.names import Tensor, parts

MODEL = Encoder
ARCHITECTURES = heads.architectures("ModernBert", *heads.CLASSES)
POOLINGS = {"cls": "first", "mean": "mean"}


def config(hf: dict, **overrides) -> Config:
  """Reads a `config.json` of `model_type` modernbert."""
  hf = dict(max_position_embeddings=8192) | hf
  both = hf.get("rope_scaling") or {}
  far, near = (numbers | both for numbers in ropes(hf))
  turned = rope(hf, far, theta=hf.get("global_rope_theta") or 160_000.0)
  every, count = hf.get("global_attn_every_n_layers", 3), hf["num_hidden_layers"]
  # Their window counts the neighbours on both sides, ours the distances that are below it.
  window = {"sliding_window": hf.get("local_attention", 128) // 2 + 1}
  fields = dict(
    vocabulary=hf["vocab_size"],
    width=hf["hidden_size"],
    layers=count,
    heads=hf["num_attention_heads"],
    kv_heads=hf["num_attention_heads"],
    head_size=head_size(hf),
    ffn=hf["intermediate_size"],
    positions=turned.reach(hf["max_position_embeddings"]),
    epsilon=hf.get("norm_eps", 1e-5),
    causal=False,
    rope=turned,
    local_rope=rope(hf, near, theta=hf.get("local_rope_theta") or 10_000.0),
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
  return Config(**fields | sliding(hf | window, [i % every != 0 for i in range(count)]) | overrides)


def _head(hf: dict, head: heads.Head) -> heads.Head:
  if head.kind == "mlm":
    only(hf, tie_word_embeddings=True)
  return replace(
    head,
    pooling=POOLINGS[hf.get("classifier_pooling", "cls")],
    hidden=hf.get("classifier_activation") or "gelu",
    hidden_bias=hf.get("classifier_bias", False),
    norm=True,
    bias=hf.get("decoder_bias", True) if head.kind == "mlm" else True,
  )


def names(c: Config) -> list[Tensor]:
  """Lists every weight: its path here and its name there."""
  embed = Tensor("embed/embedding", "model.embeddings.tok_embeddings.weight")
  rows, layer = [heads.scoring(c, embed, ("decoder.weight",))], "layers.{}."
  norms = {"embed_norm": "embeddings.norm", "norm": "final_norm", "layers/mlp_norm": "mlp_norm"}
  norms |= {"layers/attn_norm": "attn_norm"}
  for ours, theirs in norms.items():
    theirs = f"model.{layer if '/' in ours else ''}{theirs}"
    first = int(ours == "layers/attn_norm")  # the first layer has none
    made = heads.norm(f"trunk/{ours}", theirs, c.norm_bias)
    rows += [row._replace(first=first) for row in made]
  third = c.heads * c.head_size
  linears = [
    (f"attn/{p}_proj", "attn.Wqkv", part, c.qkv_bias)
    for p, part in zip("qkv", parts(third, third, third), strict=True)
  ]
  gate, up = parts(c.ffn, c.ffn)
  linears += [("attn/o_proj", "attn.Wo", None, c.o_bias)]
  linears += [("mlp/gate_proj", "mlp.Wi", gate, c.ffn_bias)]
  linears += [("mlp/up_proj", "mlp.Wi", up, c.ffn_bias)]
  linears += [("mlp/down_proj", "mlp.Wo", None, c.ffn_bias)]
  for ours, theirs, part, bias in linears:
    made = heads.linear(f"trunk/layers/{ours}", f"model.{layer}{theirs}", bias)
    rows += [row._replace(part=part) for row in made]
  if c.head is None:
    return rows
  rows += heads.linear("head/dense", "head.dense", c.head.hidden_bias)
  rows += heads.norm("head/norm", "head.norm", c.norm_bias)
  if c.head.kind == "mlm":
    return rows + [Tensor("head/bias", "decoder.bias")] * c.head.bias
  return rows + heads.linear("head/out", "classifier")
