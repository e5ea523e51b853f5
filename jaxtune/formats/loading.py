"""The class and the arguments with which transformers loads a base with a trained head."""

from __future__ import annotations

from jaxtune.formats import files
from jaxtune.models import heads, hf
from jaxtune.models.config import Config


def auto_class(config: Config) -> str:
  """Names the class of transformers whose `from_pretrained` makes a model with this head."""
  if config.head is not None:
    return f"AutoModel{heads.CLASSES[config.head.kind]}"
  return "AutoModelForCausalLM" if config.encoder is None else "AutoModelForSeq2SeqLM"


def options(pretrained: hf.Pretrained) -> dict:
  """Returns the arguments of `from_pretrained` for a base whose folder may lack the head."""
  head = pretrained.model.config.head
  if head is None or head.kind == "mlm":
    return {}
  arguments = {"num_labels": head.outputs}
  table = files.table(pretrained)
  if {row.theirs for row in table} & {*pretrained.dropped}:  # another head under the same names
    arguments["ignore_mismatched_sizes"] = True
  if reads_padding(pretrained) and pretrained.hf_config.get("pad_token_id") is None:
    arguments["pad_token_id"] = pad_token(pretrained)
  return arguments


def reads_padding(pretrained: hf.Pretrained) -> bool:
  """Says whether transformers finds the last real token by the id of the padding.

  A decoder's classifier does; without such an id it accepts only one row at a time.
  """
  head = pretrained.model.config.head
  return head is not None and head.kind in heads.POOLED and head.pooling == "last"


def pad_token(pretrained: hf.Pretrained) -> int:
  """Returns the id that fills short rows: the config's, else the tokenizer's, else 0."""
  stated = pretrained.hf_config.get("pad_token_id")
  if stated is None:
    stated = getattr(pretrained.tokenizer, "pad_token_id", None)
  return 0 if stated is None or stated < 0 else int(stated)
