"""DistilBERT: BERT's layers without token types and pooler, under other names."""

from __future__ import annotations

from jaxtune.models import heads
from jaxtune.models.config import Config
from jaxtune.models.families import bert
from jaxtune.models.names import Tensor, tensors

ARCHITECTURES = heads.architectures("DistilBert", *heads.ENCODERS)
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
  """Lists every weight, with its path in our tree and its tensor name."""
  top = {
    "embed": "word_embeddings",
    "trunk/positions": "position_embeddings",
    "trunk/embed_norm": "LayerNorm",
  }
  layer = {"attn_residual/norm": "sa_layer_norm", "mlp_residual/norm": "output_layer_norm"}
  layer |= {f"attn/{p}_proj": f"attention.{p}_lin" for p in "qkv"}
  layer |= {"attn/o_proj": "attention.out_lin"}
  layer |= {"mlp/up_proj": "ffn.lin1", "mlp/down_proj": "ffn.lin2"}
  embed, *others = tensors(c, top, theirs="distilbert.embeddings.")
  return [
    embed._replace(also=("vocab_projector.weight",) * (c.head_kind == "mlm")),
    *others,
    *tensors(c, layer, "trunk/layers/", "distilbert.transformer.layer.{}."),
    *bert.head_names(
      c,
      {"head/dense": "pre_classifier"},
      {"head/dense": "vocab_transform", "head/norm": "vocab_layer_norm"},
      Tensor("head/bias", "vocab_projector.bias"),
    ),
  ]
