"""BERT: how its Hugging Face folder maps to `Config` and its weights."""

from __future__ import annotations

from dataclasses import replace

from jaxtune.models import heads
from jaxtune.models.config import Config
from jaxtune.models.fields import CLASSIC, only, sizes
from jaxtune.models.names import Tensor, tensors

ARCHITECTURES = heads.architectures("Bert", *heads.ENCODERS)


def config(hf: dict, **overrides) -> Config:
  """Reads a `config.json` of `model_type` bert."""
  return Config(**fields(hf) | head(hf, overrides))


def fields(hf: dict) -> dict:
  """Reads what BERT and its descendants share: layers as in Vaswani et al. 2017."""
  only(hf, position_embedding_type="absolute", is_decoder=False, add_cross_attention=False)
  return (
    CLASSIC
    | sizes(hf)
    | dict(
      positions=hf.get("max_position_embeddings", 512),
      epsilon=hf.get("layer_norm_eps", 1e-12),
      causal=False,
      order="post",
      embed_norm=True,
      activation=hf.get("hidden_act") or "gelu",
      types=hf.get("type_vocab_size", 2),
      tied=hf.get("tie_word_embeddings", True),
    )
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
  scores = "cls.predictions"
  return [
    *layers(c, "bert.", f"{scores}.decoder.weight"),
    *head_names(
      c,
      {"pooler/dense": "bert.pooler.dense"},
      {"head/dense": f"{scores}.transform.dense", "head/norm": f"{scores}.transform.LayerNorm"},
      Tensor("head/bias", f"{scores}.bias", also=(f"{scores}.decoder.bias",)),
    ),
  ]


def layers(c: Config, base: str, scores: str) -> list[Tensor]:
  """Lists the weights of BERT's embeddings and layers.

  Args:
    scores: name of the embeddings as the scores of a masked language model.
  """
  top = {
    "embed": "word_embeddings",
    "types": "token_type_embeddings",
    "trunk/positions": "position_embeddings",
    "trunk/embed_norm": "LayerNorm",
  }
  layer = {
    "attn_residual/norm": "attention.output.LayerNorm",
    "mlp_residual/norm": "output.LayerNorm",
    "attn/q_proj": "attention.self.query",
    "attn/k_proj": "attention.self.key",
    "attn/v_proj": "attention.self.value",
    "attn/o_proj": "attention.output.dense",
    "mlp/up_proj": "intermediate.dense",
    "mlp/down_proj": "output.dense",
  }
  embed, *others = tensors(c, top, theirs=f"{base}embeddings.")
  return [
    embed._replace(also=(scores,) * (c.head_kind == "mlm")),
    *others,
    *tensors(c, layer, "trunk/layers/", f"{base}encoder.layer.{{}}."),
  ]


def head_names(
  c: Config, pooled: dict[str, str], mlm: dict[str, str], mlm_bias: Tensor
) -> list[Tensor]:
  """Lists the weights of a head of BERT or of one of its descendants, if there is one.

  Args:
    pooled: modules of a head over one state of a row, beside or in place of "head/out".
    mlm: modules of a masked language model's head.
    mlm_bias: the bias of its scores.
  """
  if c.head is None:
    return []
  if c.head.kind == "mlm":
    return [*tensors(c, mlm), mlm_bias]
  out = {"head/out": "qa_outputs" if c.head.kind == "qa" else "classifier"}
  return tensors(c, out | pooled if c.head.kind in heads.POOLED else out)
