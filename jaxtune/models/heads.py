"""Defines task heads, which do not predict the next token, and their names in files.

The parameters of a head are under `head/`: `dense` and `norm` in families that have them, and
`out`. A masked language model has `bias` in place of `out`, as the embeddings compute its scores.
BERT's pooler, which is a part of the model, is at `pooler/dense`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxtune.errors import UserError
from jaxtune.models.layers import ACTIVATIONS, Linear, lift
from jaxtune.models.names import Tensor, tensors

CLASSES = {
  "lm": "ForCausalLM",
  "classify": "ForSequenceClassification",
  "regression": "ForSequenceClassification",
  "reward": "ForSequenceClassification",
  "tokens": "ForTokenClassification",
  "qa": "ForQuestionAnswering",
  "mlm": "ForMaskedLM",
}
ENCODERS = ("classify", "regression", "reward", "tokens", "qa", "mlm")
PROBLEMS = {
  "classify": "single_label_classification", "regression": "regression", "reward": "regression",
}  # fmt: skip
POOLED = ("classify", "regression", "reward")  # these score one vector for each row


def is_head(path: str, pooler: bool = True) -> bool:
  """Says whether a leaf belongs to a head or, if `pooler`, to BERT's pooler, which a head reads."""
  return path.startswith(("head/", "pooler/") if pooler else "head/")


@dataclass(frozen=True)
class Head:
  """Describes a head that replaces the language model's.

  The defaults are those of decoders, except `bias`, which `choose` sets.

  Attributes:
    kind: "classify", "tokens", "qa" (start and end), "regression", "reward", or "mlm" (masked
      language model, scored by the embeddings).
    outputs: number of scores: labels; 1 for regression and reward, 2 for qa, the vocabulary's size
      for mlm.
    pooling: which state represents a row for the kinds in POOLED: that of its "first" or "last"
      real token, or the "mean" of all.
    pooler: whether that state goes through tanh of a dense layer of the pretrained model (BERT).
    hidden: activation of a dense layer before the scores; None: no such layer.
    hidden_bias: whether that layer has a bias.
    norm: whether a norm follows that layer.
    bias: whether the scores have a bias.
  """

  kind: str
  outputs: int
  pooling: str = "last"
  pooler: bool = False
  hidden: str | None = None
  hidden_bias: bool = True
  norm: bool = False
  bias: bool = True


class Pooler(nn.Module):
  """Computes tanh(dense(x)) of a row's first state (Devlin et al. 2019)."""

  width: int
  dtype: jnp.dtype

  def setup(self):
    self.dense = Linear(self.width, self.width, True, self.dtype)

  def __call__(self, x_BD: Float[Array, "B D"]) -> Float[Array, "B D"]:
    return jnp.tanh(self.dense(x_BD))


class TaskHead(nn.Module):
  """Computes the scores of states as `config.head` describes, converted to fp32.

  Returns (B, outputs) for classify, (B,) for regression and reward, and (B, T, outputs) for tokens,
  qa and mlm. The model passes its `pooler`, and `attend`, which scores states by the embeddings.
  """

  config: Any

  def setup(self):
    c, head = self.config, self.config.head
    if head.hidden is not None:
      self.dense = Linear(c.width, c.width, head.hidden_bias, c.dtype)
    if head.norm:
      self.norm = c.norm()
    if head.kind != "mlm":
      self.out = Linear(c.width, head.outputs, head.bias, c.dtype)
    elif head.bias:
      self.bias = self.param("bias", nn.initializers.zeros, (head.outputs,))

  def __call__(
    self,
    x_BTD: Float[Array, "B T D"],
    mask_BT: Bool[Array, "B T"],
    pooler: Any = None,
    attend: Any = None,
  ) -> Float[Array, "B ..."]:
    head = self.config.head
    if head.kind in POOLED:
      x_BTD = pool(x_BTD, mask_BT, head.pooling)  # (B, D) from here on
    if head.pooler:
      x_BTD = pooler(x_BTD)
    if head.hidden is not None:
      x_BTD = ACTIVATIONS[head.hidden](self.dense(x_BTD))
    if head.norm:
      x_BTD = self.norm(x_BTD)
    if head.kind != "mlm":
      y_BTC = self.out(x_BTD).astype(jnp.float32)
      return y_BTC[..., 0] if head.kind in ("regression", "reward") else y_BTC
    y_BTV = attend(x_BTD).astype(jnp.float32)
    return y_BTV + lift(self.bias.astype(jnp.float32), y_BTV) if head.bias else y_BTV


def pool(
  x_BTD: Float[Array, "B T D"], mask_BT: Bool[Array, "B T"], pooling: str
) -> Float[Array, "B D"]:
  """Returns the first or last real state of each row, or the mean of its real states.

  Padding may be on either side.
  """
  if pooling == "mean":
    weights_BT1 = mask_BT[..., None].astype(jnp.float32)
    total_BD = (x_BTD.astype(jnp.float32) * weights_BT1).sum(1)
    return (total_BD / jnp.maximum(weights_BT1.sum(1), 1.0)).astype(x_BTD.dtype)
  last_B = mask_BT.shape[1] - 1 - mask_BT[:, ::-1].argmax(1)
  index_B = mask_BT.argmax(1) if pooling == "first" else last_B
  return jnp.take_along_axis(x_BTD, index_B[:, None, None], 1)[:, 0]


def architectures(family: str, *kinds: str) -> dict[str, str]:
  """Maps kinds of heads, by default all but "mlm", to classes such as GPT2ForQuestionAnswering."""
  kinds = kinds or tuple(kind for kind in CLASSES if kind != "mlm")
  return {kind: family + CLASSES[kind] for kind in kinds}


def choose(known: dict, hf: dict, kind: str, labels: int | None, random: bool) -> Head | None:
  """Makes a head of a kind, which the family then completes; returns None for "lm".

  Args:
    known: the family's ARCHITECTURES.
    hf: config.json.
    labels: the number of labels; None for the one in config.json.
    random: whether the model is made without a folder, so that config.json describes this head.

  Raises:
    UserError: for a kind that the family or the folder does not have, and for a number of labels
      that contradicts them.
  """
  if kind not in known:
    raise UserError(
      f"a {hf.get('model_type')} model has no head {kind!r}, which objective.name asks for; it has "
      f"{', '.join(known)}"
    )
  architectures = hf.get("architectures") or []
  endings = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
  # Where the table of the embeddings is the head, a folder of the bare model has all of it.
  stem = re.sub(f"({'|'.join(endings)})$", "", known["lm"]) if kind == "lm" else None
  for name in architectures if kind == "lm" else ():
    whole = name in (f"{stem}Model", f"{stem}TextModel") and hf.get("tie_word_embeddings", True)
    if not whole and not name.endswith(endings):
      raise UserError(f"architecture {name!r} has no language model's head, expected {known['lm']}")
  if kind == "lm" and labels is None:
    return None
  stored = hf.get("num_labels") or len(hf.get("id2label") or ()) or None
  same_head = random or known[kind] in architectures
  stored = stored if same_head and kind in ("tokens", *POOLED) else None
  if same_head and kind == "classify":
    _check_problem(hf.get("problem_type"))
  fixed = {"lm": 0, "mlm": hf.get("vocab_size"), "qa": 2, "regression": 1, "reward": 1}.get(kind)
  every = (
    "name in data.labels every label that the head has, or train from a model without this head"
  )
  for count, owner, fix in (
    (fixed, f"a head {kind!r}", "leave data.labels out"),
    (stored, "the head of the checkpoint", every),
  ):
    if None not in (count, labels) and labels != count:
      raise UserError(f"the data has {labels} labels, expected {count}, as {owner} has: {fix}")
  outputs = next((n for n in (fixed, labels, stored) if n is not None), None)
  if outputs is None or outputs < 1:
    raise UserError(f"a head {kind!r} has {outputs} labels, expected their names in data.labels")
  if stored not in (None, outputs):
    raise UserError(
      f"the head of the checkpoint has {stored} labels, but a head {kind!r} {outputs}"
    )
  return Head(kind, outputs, bias=kind not in POOLED)


def _check_problem(stated: Any) -> None:
  """Raises UserError for a checkpoint's classifier that gives a text several labels or numbers."""
  expected = PROBLEMS["classify"]
  if stated not in (None, expected):
    raise UserError(
      f"config.json: problem_type is {stated!r}, expected {expected!r}, as a head 'classify' gives "
      "a text one label: train from a model without this head"
    )


def classes(known: dict, hf: dict, kind: str) -> tuple[str, ...]:
  """Returns what the outputs of a folder's own head of a kind are called, () without names.

  Args:
    known, hf: as for `choose`.
  """
  own = kind in known and known[kind] in (hf.get("architectures") or ())
  named = {str(number): str(name) for number, name in (hf.get("id2label") or {}).items()}
  listed = tuple(named.get(str(number), "") for number in range(len(named)))
  return named_labels(listed) if own and kind in ("classify", "tokens") else ()


def check_order(labels: Sequence[str], classes: Sequence[str], where: str | Path) -> None:
  """Raises UserError where labels have a name of a head's classes in another place.

  Labels by other names are what the data call the classes, in their order.

  Args:
    where: the folder of the head, for the error.
  """
  places = {name: number for number, name in enumerate(classes)}
  if any(places.get(name, number) != number for number, name in enumerate(labels)):
    raise UserError(
      f"data.labels is {', '.join(labels)}, expected the order of the head in {where}, "
      f"{', '.join(classes)}"
    )


def named_labels(listed: tuple[str, ...]) -> tuple[str, ...]:
  """Returns the names of labels; () for LABEL_0, ..., which transformers makes up."""
  made_up = all(name == f"LABEL_{number}" for number, name in enumerate(listed))
  return () if made_up else listed


def names(c: Any, tokens: str = "score", lm: str = "lm_head") -> list[Tensor]:
  """Lists the weights of a decoder's head; `tokens` and `lm` name the modules of these kinds."""
  if c.head is None:
    return [] if c.tied else tensors(c, {"head": lm})
  return tensors(c, {"head/out": {"tokens": tokens, "qa": "qa_outputs"}.get(c.head.kind, "score")})


def copies(c: Any, lm: str = "lm_head") -> tuple[str, ...]:
  """Returns the other name of a decoder's embeddings: that of its head, where they are tied."""
  return (f"{lm}.weight",) if c.tied and c.head is None else ()


def write(hf: dict, head: Head | None, labels: tuple[str, ...] | None = None) -> dict:
  """Returns config.json with the names of a head's labels and its problem_type.

  Args:
    labels: the names; None for those of config.json if their number fits, else LABEL_0, ...

  Raises:
    UserError: if the number of names is not that of the head's outputs.
  """
  if head is None or head.kind == "mlm":
    return hf
  if labels is not None and len(labels) != head.outputs:
    raise UserError(f"{len(labels)} names for the {head.outputs} labels of the head {head.kind!r}")
  stored = list((hf.get("id2label") or {}).values())
  if labels is None:
    default = [f"LABEL_{i}" for i in range(head.outputs)]
    labels = stored if len(stored) == head.outputs else default
  hf = {key: value for key, value in hf.items() if key not in ("num_labels", "problem_type")}
  hf |= {"id2label": {str(i): name for i, name in enumerate(labels)}}
  hf |= {"label2id": {name: i for i, name in enumerate(labels)}}
  return hf | ({"problem_type": PROBLEMS[head.kind]} if head.kind in PROBLEMS else {})
