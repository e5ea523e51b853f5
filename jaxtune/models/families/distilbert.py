"""DistilBERT: BERT's layers without token types and pooler, under other names."""

from __future__ import annotations

from jaxtune.models import heads
from jaxtune.models.config import Config
from jaxtune.models.encoder import Encoder
from jaxtune.models.families import bert
from jaxtune.models.names import Tensor

MODEL = Encoder
ARCHITECTURES = heads.architectures("DistilBert", *heads.CLASSES)
KEYS = {
  "dim": "hidden_size",
  "n_layers": "num_hidden_layers",
  "n_heads": "num_attention_heads",
  "hidden_dim": "intermediate_size",
  "activation": "hidden_act",
}


def config(hf: dict, **overrides) -> Config:
  """Reads a `config.json` of `model_type` distilbert."""
  hf = {KEYS.get(key, key): value for key, value in hf.items()}
  fields = bert.fields(hf) | {"types": 0, "epsilon": 1e-12}
  return Config(**fields | bert.head(hf, overrides, hidden="relu"))


def names(c: Config) -> list[Tensor]:
  """Lists every weight: its path here and its name there."""
  base, layer = "distilbert.embeddings.", "distilbert.transformer.layer.{}."
  rows = [
    heads.scoring(
      c, Tensor("embed/embedding", f"{base}word_embeddings.weight"), ("vocab_projector.weight",)
    ),
    Tensor("trunk/positions/embedding", f"{base}position_embeddings.weight"),
  ]
  rows += heads.norm("trunk/embed_norm", f"{base}LayerNorm")
  rows += heads.norm("trunk/layers/attn_residual/norm", f"{layer}sa_layer_norm")
  rows += heads.norm("trunk/layers/mlp_residual/norm", f"{layer}output_layer_norm")
  linears = {f"attn/{p}_proj": f"attention.{p}_lin" for p in "qkv"}
  linears |= {"attn/o_proj": "attention.out_lin"}
  linears |= {"mlp/up_proj": "ffn.lin1", "mlp/down_proj": "ffn.lin2"}
  for ours, theirs in linears.items():
    rows += heads.linear(f"trunk/layers/{ours}", layer + theirs)
  if c.head is None:
    return rows
  if c.head.kind == "mlm":
    rows += heads.linear("head/dense", "vocab_transform")
    rows += heads.norm("head/norm", "vocab_layer_norm")
    return [*rows, Tensor("head/bias", "vocab_projector.bias")]
  if c.head.kind in heads.POOLED:
    rows += heads.linear("head/dense", "pre_classifier")
  return rows + heads.linear("head/out", "qa_outputs" if c.head.kind == "qa" else "classifier")
