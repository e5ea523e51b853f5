"""RoBERTa: BERT's layers, with positions behind the padding's and a head of its own."""

from __future__ import annotations

from jaxtune import schema
from jaxtune.models import heads
from jaxtune.models.config import Config
from jaxtune.models.encoder import Encoder
from jaxtune.models.families import bert
from jaxtune.models.names import Tensor

MODEL = Encoder
ARCHITECTURES = heads.architectures("Roberta", *heads.CLASSES)


def config(hf: dict, **overrides) -> Config:
  """Reads a `config.json` of `model_type` roberta."""
  fields = bert.fields(hf)
  padding = hf.get("pad_token_id", 1)
  schema.check("config.json: pad_token_id", padding, schema.Natural)
  offset = padding + 1  # fairseq counts from the id of the padding on
  fields |= {"position_offset": offset, "positions": fields["positions"] - offset}
  return Config(**fields | bert.head(hf | {"hidden_act": "gelu"}, overrides, hidden="tanh"))


def names(c: Config) -> list[Tensor]:
  """Lists every weight: its path here and its name there."""
  rows = bert.layers(c, "roberta.", ("lm_head.decoder.weight",))
  if c.head is None:
    return rows
  if c.head.kind == "mlm":
    rows += heads.linear("head/dense", "lm_head.dense")
    rows += heads.norm("head/norm", "lm_head.layer_norm")
    return [*rows, Tensor("head/bias", "lm_head.bias", also=("lm_head.decoder.bias",))]
  if c.head.kind in heads.POOLED:
    rows += heads.linear("head/dense", "classifier.dense")
    return rows + heads.linear("head/out", "classifier.out_proj")
  return rows + heads.linear("head/out", "qa_outputs" if c.head.kind == "qa" else "classifier")
