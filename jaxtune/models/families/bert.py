"""BERT: how its Hugging Face folder maps to `transformer.Config` and its weights."""

from __future__ import annotations

from dataclasses import replace

from jaxtune.models import heads
from jaxtune.models.config import Config
from jaxtune.models.encoder import Encoder
from jaxtune.models.fields import head_size, only
from jaxtune.models.names import Tensor

MODEL = Encoder
ARCHITECTURES = heads.architectures("Bert", *heads.CLASSES)


def config(hf: dict, **overrides) -> Config:
  """Reads a `config.json` of `model_type` bert."""
  return Config(**fields(hf) | head(hf, overrides))


def fields(hf: dict) -> dict:
  """Reads what BERT and its descendants share: layers as in Vaswani et al. 2017."""
  only(hf, position_embedding_type="absolute", is_decoder=False, add_cross_attention=False)
  return dict(
    vocabulary=hf["vocab_size"],
    width=hf["hidden_size"],
    layers=hf["num_hidden_layers"],
    heads=hf["num_attention_heads"],
    kv_heads=hf["num_attention_heads"],
    head_size=head_size(hf),
    ffn=hf["intermediate_size"],
    positions=hf.get("max_position_embeddings", 512),
    epsilon=hf.get("layer_norm_eps", 1e-12),
    causal=False,
    rope=None,
    order="post",
    embed_norm=True,
    centre_norm=True,
    activation=hf.get("hidden_act") or "gelu",
    gated=False,
    qkv_bias=True,
    o_bias=True,
    ffn_bias=True,
    types=hf.get("type_vocab_size", 2),
    tied=hf.get("tie_word_embeddings", True),
  )


def head(hf: dict, overrides: dict, **pooled) -> dict:
  """Completes the head among the overrides; `pooled` is what it has over one state of a row."""
  made = overrides.get("head")
  if made is None:
    return overrides
  if made.kind == "mlm":
    only(hf, tie_word_embeddings=True)
    made = replace(made, hidden=hf.get("hidden_act", "gelu"), norm=True)
  else:
    pooled = pooled or {"pooler": True}
    made = replace(made, pooling="first", bias=True, **pooled if made.kind in heads.POOLED else {})
  return overrides | {"head": made}


def names(c: Config) -> list[Tensor]:
  """Lists every weight: its path here and its name there."""
  copies = ("cls.predictions.decoder.weight",)
  rows = layers(c, "bert.", copies)
  if c.head is None:
    return rows
  if c.head.pooler:
    rows += heads.linear("pooler/dense", "bert.pooler.dense")
  if c.head.kind == "mlm":
    rows += heads.linear("head/dense", "cls.predictions.transform.dense")
    rows += heads.norm("head/norm", "cls.predictions.transform.LayerNorm")
    return [
      *rows,
      Tensor("head/bias", "cls.predictions.bias", also=("cls.predictions.decoder.bias",)),
    ]
  return rows + heads.linear("head/out", "qa_outputs" if c.head.kind == "qa" else "classifier")


def layers(c: Config, base: str, copies: tuple[str, ...]) -> list[Tensor]:
  """Lists the weights of BERT's embeddings and layers.

  Args:
    copies: names of the embeddings as the scores of a masked language model.
  """
  layer = base + "encoder.layer.{}."
  tables = {"embed": "word", "types": "token_type", "trunk/positions": "position"}
  rows = [
    Tensor(f"{ours}/embedding", f"{base}embeddings.{theirs}_embeddings.weight")
    for ours, theirs in tables.items()
  ]
  rows[0] = heads.scoring(c, rows[0], copies)
  norms = {
    "trunk/embed_norm": f"{base}embeddings.LayerNorm",
    "trunk/layers/attn_residual/norm": f"{layer}attention.output.LayerNorm",
    "trunk/layers/mlp_residual/norm": f"{layer}output.LayerNorm",
  }
  linears = {
    "attn/q_proj": "attention.self.query",
    "attn/k_proj": "attention.self.key",
    "attn/v_proj": "attention.self.value",
    "attn/o_proj": "attention.output.dense",
    "mlp/up_proj": "intermediate.dense",
    "mlp/down_proj": "output.dense",
  }
  for ours, theirs in norms.items():
    rows += heads.norm(ours, theirs)
  for ours, theirs in linears.items():
    rows += heads.linear(f"trunk/layers/{ours}", layer + theirs)
  return rows
