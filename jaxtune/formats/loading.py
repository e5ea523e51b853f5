"""The class and the arguments with which transformers loads a base with a trained head."""

from __future__ import annotations

import copy

import numpy as np

from jaxtune.formats import files
from jaxtune.models import heads, hf
from jaxtune.models.config import Config


def auto_class(config: Config) -> str:
  """Names the class of transformers whose `from_pretrained` makes a model with this head."""
  if config.head is not None:
    return f"AutoModel{heads.CLASSES[config.head.kind]}"
  return "AutoModelForCausalLM" if config.encoder is None else "AutoModelForSeq2SeqLM"


def options(pretrained: hf.Pretrained, form: str) -> dict:
  """Returns the arguments of `from_pretrained` for a base whose folder may lack the head.

  Args:
    form: the format of the export, as `adapters` has an older transformers than the others.
  """
  head = pretrained.model.config.head
  arguments = _older_names(pretrained) if form == "adapterhub" else {}
  if head is None or head.kind == "mlm":
    return arguments
  arguments["num_labels"] = head.outputs
  table = files.table(pretrained)
  if {row.theirs for row in table} & {*pretrained.dropped}:  # another head under the same names
    arguments["ignore_mismatched_sizes"] = True
  if reads_padding(pretrained):
    pad = pad_token(pretrained)
    if pretrained.hf_config.get("pad_token_id") != pad:
      arguments["pad_token_id"] = pad
  return arguments


def _older_names(pretrained: hf.Pretrained) -> dict:
  """Returns what transformers 4.57 does not find in a config.json that transformers 5 wrote.

  It knows no `rope_parameters`, and ties every head that `tie_word_embeddings` says is tied.
  """
  c, stated, arguments = pretrained.model.config, pretrained.hf_config, {}
  if c.rope is not None and c.rope.theta != (stated.get("rope_theta") or 10_000.0):
    arguments["rope_theta"] = c.rope.theta
  if c.rope is not None and c.rope.kind != "default" and not stated.get("rope_scaling"):
    numbers = stated["rope_parameters"]
    arguments["rope_scaling"] = {name: x for name, x in numbers.items() if name != "rope_theta"}
  if c.head is None and not c.tied:
    arguments["tie_word_embeddings"] = False
  return arguments


def reads_padding(pretrained: hf.Pretrained) -> bool:
  """Says whether transformers finds the last real token by the id of the padding.

  A decoder's classifier does; without such an id it accepts only one row at a time.
  """
  head = pretrained.model.config.head
  return head is not None and head.kind in heads.POOLED and head.pooling == "last"


def pad_token(pretrained: hf.Pretrained) -> int:
  """Returns the id that fills short rows: the config's, else a special one, else the first of all.

  It may be in a text. But where the last token is found by it (`reads_padding`), it is not the one
  that ends each text: transformers would take that for padding, and read the token before it.
  """
  stated, tokenizer = pretrained.hf_config, pretrained.tokenizer
  own = lambda name: getattr(tokenizer, f"{name}_token_id", None)
  ends = stated.get("eos_token_id") if tokenizer is None else [own("eos"), own("sep")]
  ends = np.atleast_1d(ends).tolist() if reads_padding(pretrained) else []
  known = range(pretrained.model.config.vocabulary)
  choices = (stated.get("pad_token_id"), *map(own, ("pad", "unk", "bos")), *known)
  return next(int(token) for token in choices if token in known and token not in ends)


def padding_token(pretrained: hf.Pretrained) -> str | None:
  """Returns the token with which the tokenizer has to pad in place of its own, if any.

  None also where `pad_token` is no special token, since one that is made special is split off from
  the words that it is a part of.
  """
  tokenizer, pad = pretrained.tokenizer, pad_token(pretrained)
  if tokenizer is None or tokenizer.pad_token_id == pad or pad not in tokenizer.all_special_ids:
    return None
  return tokenizer.convert_ids_to_tokens(pad)


def with_padding(pretrained: hf.Pretrained) -> hf.Pretrained:
  """Returns a model whose config.json and tokenizer fill short rows with `pad_token`."""
  stated = {"pad_token_id": pad_token(pretrained)}
  if token := padding_token(pretrained):
    tokenizer = copy.deepcopy(pretrained.tokenizer)
    tokenizer.pad_token = token
    pretrained = pretrained._replace(tokenizer=tokenizer)
  return pretrained._replace(hf_config=pretrained.hf_config | stated)
