"""Writes and reads prefixes and prompts, which stand before the text, in PEFT's format."""

from __future__ import annotations

import numpy as np

from jaxtune.errors import UserError
from jaxtune.formats import files, prefixes
from jaxtune.formats.peft import layout
from jaxtune.models import hf
from jaxtune.models.config import Config

KEY = "prompt_embeddings"


def write_prefix(pretrained: hf.Pretrained, trained: dict, fixed: dict) -> tuple[dict, dict]:
  """Returns the config and the keys and values (L, P, K, H) as PEFT's (P, L * 2 * K * H).

  Raises:
    UserError: for a prefix of an encoder-decoder, or of an encoder that takes no keys and values
      in PyTorch; for one that leaves the real tokens at position 0 (shift=False), whose lengths
      differ between layers, that is gated, or that a sliding window would hide from every token.
  """
  c = pretrained.model.config
  check_family(pretrained)
  (site,) = trained
  mask_LP = np.asarray(fixed[site]["mask"])
  kept = mask_LP[0]
  if (mask_LP != kept).any():
    raise UserError(
      "the prefix has another length in each layer, which PEFT cannot express: train one length "
      "(method.length) to use it in PyTorch; jaxtune evaluates and generates with the prefix"
    )
  if extra := trained[site].keys() - {"key", "value"}:
    raise UserError(f"the prefix has {sorted(extra)[0]}, which PEFT cannot express")
  offset = int(next(x["offset"] for x in fixed.values() if "offset" in x))
  if offset != kept.sum():
    raise UserError(
      f"PEFT starts real tokens at position {kept.sum()}, after the prefix; this one was trained "
      f"with them at {offset} (shift=False), as in AdapterHub: train with shift=True"
    )
  _check_window(c, int(kept.sum()))
  flat = prefixes.pack(trained[site], kept).reshape(int(kept.sum()), -1)
  width = c.kv_heads * c.head_size
  config = _virtual("prefix", c, flat, c.kv_heads, width) | {
    "encoder_hidden_size": width,
    "prefix_projection": False,
    "init_weights": None,
  }
  return config, {KEY: flat}


def _check_window(c: Config, length: int) -> None:
  """Raises UserError for a prefix that fills a sliding window in PyTorch."""
  if seen_for(c, length) == 0:
    raise UserError(
      f"in PyTorch a prefix of {length} takes the room of the model's sliding window of "
      f"{c.window} tokens; train one that is well shorter"
    )


def check_family(pretrained: hf.Pretrained) -> None:
  """Raises UserError for a model that has no prefix, or another one, in PyTorch."""
  c = pretrained.model.config
  if c.encoder is not None:
    raise UserError(
      "PEFT cannot express a prefix of an encoder-decoder: it has none in the encoder and for the "
      "encoder's states, and its decoder's layer i reads the keys and values of layer 2i; train "
      "LoRA to use it in PyTorch (jaxtune evaluates and generates with the prefix)"
    )
  if not c.causal and pretrained.family not in ("bert", "roberta"):
    raise UserError(
      f"PEFT cannot express a prefix of {pretrained.family}, whose attention takes no keys and "
      "values from outside in transformers; train LoRA to use it in PyTorch (jaxtune "
      "evaluates with the prefix)"
    )


def seen_for(c: Config, length: int) -> int | None:
  """Returns how many tokens see all of a prefix of `length` in PyTorch; None for any number.

  Here every token does. There the prefix fills the first slots of the cache, and local layers see
  the last `window` slots: beyond this length of text the two differ.
  """
  return max(0, c.window - length) if length and c.window is not None else None


def write_prompt(
  kind: str, pretrained: hf.Pretrained, trained: dict, fixed: dict
) -> tuple[dict, dict]:
  """Returns the config and the vectors (P, D) that stand before the embedded tokens.

  Raises:
    UserError: for a model that scores a whole row: PEFT reads its first or last state, which is
      that of a virtual token.
  """
  c = pretrained.model.config
  check_head(c)
  (site,) = trained
  kept = np.asarray(fixed[site]["mask"]).astype(bool)
  flat = np.asarray(trained[site]["prompt"])[kept]
  config = _virtual(kind, c, flat, c.heads, c.width)
  if kind == "prompt":
    return config | {"prompt_tuning_init": "RANDOM"}, {KEY: flat}
  # PEFT builds an encoder of prompts even where it reads their output alone.
  network = {"encoder_reparameterization_type": "MLP", "encoder_hidden_size": 1}
  return config | network, {KEY: flat}


def check_head(c: Config) -> None:
  """Raises UserError for a head that reads one state of a row."""
  if c.head is not None and c.head.kind not in ("tokens", "qa"):
    raise UserError(
      f"PEFT cannot express a prompt before a head {c.head.kind!r}: it pools a virtual token, or "
      "cannot tell the last real one, where jaxtune pools a real token; train LoRA or a prefix to "
      "use it in PyTorch (jaxtune evaluates with the prompt)"
    )


def _virtual(kind: str, c: Config, flat: np.ndarray, heads: int, width: int) -> dict:
  """States the type and the sizes of virtual tokens (P, ...)."""
  return {
    "peft_type": layout.TYPES[kind],
    "num_virtual_tokens": flat.shape[0],
    "num_layers": c.layers,
    "num_attention_heads": heads,
    "token_dim": width,
    "num_transformer_submodules": 1,
  }


def read(kind: str, config: dict, rest: dict, pretrained: hf.Pretrained) -> tuple[dict, dict, dict]:
  """Returns (section, trained, fixed) of a prefix or a prompt.

  The files hold its vectors alone, also where a network made them in PyTorch: of P-tuning a prompt
  is left.
  """
  files.refuse_foreign(rest.keys() - {KEY}, {KEY})
  files.refuse_missing({KEY} - rest.keys())
  length = config.get("num_virtual_tokens")
  if not isinstance(length, int) or length < 1:
    raise UserError(f"num_virtual_tokens is {length!r}, expected how long {KEY} is")
  name, reader = ("prefix", _read_prefix) if kind == "prefix" else ("prompt", _read_prompt)
  return {"name": name, "length": length}, *reader(length, config, rest[KEY], pretrained)


def _read_prefix(
  length: int, config: dict, flat: np.ndarray, pretrained: hf.Pretrained
) -> tuple[dict, dict]:
  c = pretrained.model.config
  check_family(pretrained)
  _check_window(c, length)
  files.check_shape(KEY, flat.shape, (length, c.layers * 2 * c.kv_heads * c.head_size))
  site = "trunk/layers/attn/attend"
  mask = np.ones((c.layers, length), bool)
  fixed = {site: {"mask": mask}, "trunk": {"offset": np.asarray(length, np.int32)}}
  packed = flat.reshape(length, c.layers, 2, c.kv_heads, c.head_size)
  return {site: prefixes.unpack(packed)}, fixed


def _read_prompt(
  length: int, config: dict, flat: np.ndarray, pretrained: hf.Pretrained
) -> tuple[dict, dict]:
  c = pretrained.model.config
  check_head(c)
  # Of an encoder-decoder, a second half would stand before the decoder's tokens, and is not read.
  halves = config.get("num_transformer_submodules") or (1 if c.encoder is None else 2)
  files.check_shape(KEY, flat.shape, (length * halves, c.width))
  trunks = ("trunk",) if c.encoder is None else ("encoder", "decoder")
  masks = {trunk: {"mask": np.ones(length, bool)} for trunk in trunks}
  return {trunks[0]: {"prompt": flat[:length]}}, masks
