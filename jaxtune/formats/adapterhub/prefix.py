"""Prefixes as AdapterHub has them: flat, one pool for all layers of an attention."""

from __future__ import annotations

import numpy as np

from jaxtune.errors import UserError
from jaxtune.formats.adapterhub import configs
from jaxtune.formats.adapterhub import names as layout


def make(pretrained, method, trained: dict, fixed: dict) -> tuple[dict, dict]:
  """Returns (config, tensors) of a prefix, its keys and values as they are."""
  check_model(pretrained)
  if any("gate" in name for arrays in trained.values() for name in arrays):
    raise UserError(
      "AdapterHub's gates are averaged over all tokens of a text, where ours are each token's own: "
      "it cannot express a gated prefix. Train without the gate"
    )
  offsets = [int(x["offset"]) for x in fixed.values() if "offset" in x]
  if any(offsets):
    raise UserError(
      f"AdapterHub's prefixes leave real tokens at position 0; this one was trained with them at "
      f"{max(offsets)} (shift=True), as PEFT has it: use format='peft', or train with shift=False"
    )
  pools = layout.prefixes(pretrained)
  missing = [site for site in pools if site not in trained]
  if any(pools[site] == "self_prefix" for site in missing):
    raise UserError("AdapterHub's decoders always have a prefix: train with method.decoder=True")
  masks = [np.asarray(fixed[site]["mask"]) for site in trained]
  kept = masks[0][0]
  if any((mask != kept).any() for mask in masks):
    raise UserError("the prefix has another length in each layer, which AdapterHub cannot express")
  tensors = {}
  for site, arrays in trained.items():
    pair = np.stack([np.asarray(arrays[name])[:, kept] for name in ("key", "value")])  # 2LPKH
    place = f"{layout.pool(pretrained, layout.NAME)}{pools[site]}.control_trans"
    tensors[place] = pair.transpose(2, 1, 0, 3, 4).ravel()
  missed = {pools[site] for site in missing}
  chosen = {name: name not in missed for name in ("encoder_prefix", "cross_prefix")}
  return configs.PREFIX | chosen | {"prefix_length": int(kept.sum())}, tensors


def check_model(pretrained) -> None:
  """Raises UserError for a model whose prefix adapters computes otherwise, or not at all."""
  c = pretrained.model.config
  if c.relative is not None:
    raise UserError(
      f"adapters 1.3 shifts the position biases of {pretrained.family} by the prefix's length, so "
      "that it computes another function than was trained, and PEFT has no prefix for it. Train "
      "LoRA to use it in PyTorch; jaxtune evaluates and generates with the prefix"
    )
  half = c if c.encoder is None else c.encoder  # whose heads it takes for all attentions
  size = half.width // half.heads
  if (half.head_size, c.head_size, c.kv_heads) != (size, size, half.kv_heads):
    raise UserError(
      f"adapters 1.3 gives every attention {half.kv_heads} heads of {size} numbers; this model "
      f"has {c.kv_heads} of {c.head_size}: AdapterHub's format cannot hold its prefix. Train with "
      "shift=True for format='peft', or LoRA"
    )
