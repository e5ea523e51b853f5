"""RoBERTa: BERT's layers, with other positions and another head."""

from __future__ import annotations

from jaxtune import schema
from jaxtune.models import heads
from jaxtune.models.config import Config
from jaxtune.models.families import bert
from jaxtune.models.names import Tensor

ARCHITECTURES = heads.architectures("Roberta", *heads.ENCODERS)


def config(hf: dict, **overrides) -> Config:
  """Reads a `config.json` of `model_type` roberta."""
  fields = bert.fields(hf)
  padding = hf.get("pad_token_id", 1)
  schema.check("config.json: pad_token_id", padding, schema.Natural)
  offset = padding + 1  # fairseq counts positions from the padding's id + 1 on
  fields |= {"position_offset": offset, "positions": fields["positions"] - offset}
  return Config(**fields | bert.head(hf | {"hidden_act": "gelu"}, overrides, hidden="tanh"))


def names(c: Config) -> list[Tensor]:
  """Lists every weight, with its path in our tree and its tensor name."""
  return [
    *bert.layers(c, "roberta.", "lm_head.decoder.weight"),
    *bert.head_names(
      c,
      {"head/dense": "classifier.dense", "head/out": "classifier.out_proj"},
      {"head/dense": "lm_head.dense", "head/norm": "lm_head.layer_norm"},
      Tensor("head/bias", "lm_head.bias", also=("lm_head.decoder.bias",)),
    ),
  ]
