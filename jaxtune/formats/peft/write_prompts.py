"""Methods that stand before the text: prefixes, and prompts of vectors."""

from __future__ import annotations

import numpy as np

from jaxtune.errors import UserError
from jaxtune.formats.peft import layout

CACHED = ("bert", "roberta")  # the encoders that take keys and values in PyTorch


def prefix(pretrained, trained: dict, fixed: dict) -> tuple[dict, dict]:
  """Lays keys and values (L, P, K, H) out as PEFT's (P, L * 2 * K * H).

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
      f"with them at {offset} (shift=False), as in AdapterHub. Train with shift=True"
    )
  if seen_for(c, int(kept.sum())) == 0:
    raise UserError(
      f"in PyTorch a prefix of {kept.sum()} takes the room of the model's sliding window of "
      f"{c.window} tokens; train one that is well shorter"
    )
  pair = np.stack([np.asarray(trained[site][name])[:, kept] for name in ("key", "value")])
  flat = pair.transpose(2, 1, 0, 3, 4).reshape(int(kept.sum()), -1)  # (P, L, 2, K, H)
  width = c.kv_heads * c.head_size
  config = _virtual("prefix", c, flat, c.kv_heads, width) | {
    "encoder_hidden_size": width,
    "prefix_projection": False,
    "init_weights": None,
  }
  return config, {"prompt_embeddings": flat}


def check_family(pretrained) -> None:
  """Raises UserError for a model that has no prefix, or another one, in PyTorch."""
  c = pretrained.model.config
  if c.encoder is not None:
    raise UserError(
      "PEFT cannot express a prefix of an encoder-decoder: it has none in the encoder and for the "
      "encoder's states, and its decoder's layer i reads the keys and values of layer 2i. Train "
      "LoRA to use it in PyTorch; jaxtune evaluates and generates with the prefix"
    )
  if not c.causal and pretrained.family not in CACHED:
    raise UserError(
      f"PEFT cannot express a prefix of {pretrained.family}, whose attention takes no keys and "
      "values from outside in transformers. Train LoRA to use it in PyTorch; jaxtune evaluates "
      "with the prefix"
    )


def seen_for(c, length: int) -> int | None:
  """Returns how many tokens see all of a prefix of `length` in PyTorch; None for any number.

  Here every token does. There the prefix fills the first slots of the cache, and local layers see
  the last `window` slots: beyond this length of text the two differ.
  """
  return max(0, c.window - length) if length and c.window is not None else None


def prompt(kind: str, pretrained, trained: dict, fixed: dict) -> tuple[dict, dict]:
  """Writes the vectors (P, D) that stand before the embedded tokens.

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
    return config | {"prompt_tuning_init": "RANDOM"}, {"prompt_embeddings": flat}
  # PEFT builds an encoder of prompts even where it reads their output alone.
  made = {"encoder_reparameterization_type": "MLP", "encoder_hidden_size": 1}
  return config | made, {"prompt_embeddings": flat}


def check_head(c) -> None:
  """Raises UserError for a head that reads one state of a row."""
  if c.head is not None and c.head.kind not in ("tokens", "qa"):
    raise UserError(
      f"PEFT cannot express a prompt before a head {c.head.kind!r}: it pools a virtual token, or "
      "cannot tell the last real one, where jaxtune pools a real token. Train LoRA or a prefix to "
      "use it in PyTorch; jaxtune evaluates with the prompt"
    )


def _virtual(kind: str, c, flat, heads: int, width: int) -> dict:
  return {
    "peft_type": layout.TYPES[kind],
    "num_virtual_tokens": flat.shape[0],
    "num_layers": c.layers,
    "num_attention_heads": heads,
    "token_dim": width,
    "num_transformer_submodules": 1,
  }
