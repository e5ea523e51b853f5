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
  """Reads the fields of `Config` that BERT and its descendants share."""
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
  """Completes the head in `overrides`, if there is one.

  Args:
    pooled: fields of a head that scores one state of a row; by default it reads BERT's pooler.
  """
  task = overrides.get("head")
  if task is None:
    return overrides
  if task.kind == "mlm":
    only(hf, tie_word_embeddings=True)
    task = replace(task, hidden=hf.get("hidden_act", "gelu"), norm=True)
  else:
    pooled = pooled or {"pooler": True}
    task = replace(task, pooling="first", bias=True, **pooled if task.kind in heads.POOLED else {})
  return overrides | {"head": task}


def names(c: Config) -> list[Tensor]:
  """Lists every weight, with its path in our tree and its tensor name."""
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
    base: prefix of the tensor names.
    scores: name of a copy of the embeddings, which scores tokens in a masked language model.
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
  """Lists the weights of the head of BERT or of one of its descendants, if there is one.

  Args:
    pooled: {path: name} of modules of a head that scores one state of a row. "head/out" is
      "classifier" unless it is among them.
    mlm: {path: name} of the modules of a masked language model's head.
    mlm_bias: the bias of that head's scores.
  """
  if c.head is None:
    return []
  if c.head.kind == "mlm":
    return [*tensors(c, mlm), mlm_bias]
  out = {"head/out": "qa_outputs" if c.head.kind == "qa" else "classifier"}
  return tensors(c, out | pooled if c.head.kind in heads.POOLED else out)
