"""Methods that stand before the text: prefixes, and prompts of vectors."""

from __future__ import annotations

import numpy as np

from jaxtune.errors import UserError
from jaxtune.formats import files
from jaxtune.formats.peft import write_prompts

KEY = "prompt_embeddings"


def read(kind: str, config: dict, rest: dict, pretrained) -> tuple[dict, dict, dict]:
  """Returns (section, trained, fixed) of what stands before the text.

  A network that made it in PyTorch is not in the files: its output is, and is trained on.
  """
  files.refuse_foreign(rest.keys() - {KEY}, {KEY})
  files.refuse_missing({KEY} - rest.keys())
  length = config.get("num_virtual_tokens")
  if not isinstance(length, int) or length < 1:
    raise UserError(f"num_virtual_tokens is {length!r}, expected how long {KEY} is")
  made = (_prefix if kind == "prefix" else _prompt)(length, config, rest[KEY], pretrained)
  return {"name": kind, "length": length}, *made


def _prefix(length: int, config: dict, flat: np.ndarray, pretrained) -> tuple[dict, dict]:
  c = pretrained.model.config
  write_prompts.check_family(pretrained)
  files.check_shape(KEY, flat, (length, c.layers * 2 * c.kv_heads * c.head_size))
  pair = flat.reshape(length, c.layers, 2, c.kv_heads, c.head_size).transpose(2, 1, 0, 3, 4)
  site = "trunk/layers/attn/attend"
  key, value = map(np.ascontiguousarray, pair)
  mask = np.ones((c.layers, length), bool)
  fixed = {site: {"mask": mask}, "trunk": {"offset": np.asarray(length, np.int32)}}
  return {site: {"key": key, "value": value}}, fixed


def _prompt(length: int, config: dict, flat: np.ndarray, pretrained) -> tuple[dict, dict]:
  c = pretrained.model.config
  write_prompts.check_head(c)
  # Of an encoder-decoder, a second half would stand before the decoder's tokens, and is not read.
  halves = config.get("num_transformer_submodules") or (1 if c.encoder is None else 2)
  files.check_shape(KEY, flat, (length * halves, c.width))
  trunks = ("trunk",) if c.encoder is None else ("encoder", "decoder")
  masks = {trunk: {"mask": np.ones(length, bool)} for trunk in trunks}
  return {trunks[0]: {"prompt": flat[:length]}}, masks
