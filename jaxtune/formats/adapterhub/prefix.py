"""Prefixes in AdapterHub's format, one pool for all layers of an attention: written and read.

We write them flat. A prefix behind an MLP is read as the keys and values that the MLP makes.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from jaxtune.errors import UserError
from jaxtune.formats import prefixes
from jaxtune.formats.adapterhub import configs, layout
from jaxtune.models import hf
from jaxtune.models.layers import ACTIVATIONS
from jaxtune.peft import Method

# A pool that the config can leave out, and our option that says so.
OPTIONAL = {"encoder_prefix": "encoder", "cross_prefix": "cross"}


def write(
  pretrained: hf.Pretrained, method: Method, trained: dict, fixed: dict
) -> tuple[dict, dict]:
  """Returns (config, tensors) of a prefix, its keys and values as they are."""
  check_model(pretrained)
  if any("gate" in name for arrays in trained.values() for name in arrays):
    raise UserError(
      "AdapterHub's gates are averaged over all tokens of a text, where ours are each token's own: "
      "it cannot express a gated prefix; train without the gate"
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
    name = f"{layout.pool(pretrained, layout.NAME)}{pools[site]}.control_trans"
    tensors[name] = prefixes.pack(arrays, kept).ravel()
  missed = {pools[site] for site in missing}
  chosen = {name: name not in missed for name in OPTIONAL}
  return configs.PREFIX | chosen | {"prefix_length": int(kept.sum())}, tensors


def check_model(pretrained: hf.Pretrained) -> None:
  """Raises UserError for a model whose prefix adapters computes otherwise, or not at all."""
  c = pretrained.model.config
  if c.relative is not None:
    raise UserError(
      f"adapters 1.3 shifts the position biases of {pretrained.family} by the prefix's length, so "
      "that it computes another function than was trained, and PEFT has no prefix for it; train "
      "LoRA to use it in PyTorch (jaxtune evaluates and generates with the prefix)"
    )
  half = c if c.encoder is None else c.encoder  # whose heads it takes for all attentions
  size = half.width // half.heads
  if (half.head_size, c.head_size, c.kv_heads) != (size, size, half.kv_heads):
    raise UserError(
      f"adapters 1.3 gives every attention {half.kv_heads} heads of {size} numbers; this model "
      f"has {c.kv_heads} of {c.head_size}: AdapterHub's format cannot hold its prefix; train with "
      "shift=True for format='peft', or LoRA"
    )


def read(
  pretrained: hf.Pretrained, config: dict, adapter: str, tensors: dict
) -> tuple[dict, dict, dict]:
  """Removes a prefix's tensors from `tensors`: returns (section, trained, no scales)."""
  check_model(pretrained)
  for entry in ("use_gating", "leave_out"):
    if config.get(entry):
      raise UserError(f"the prefix has {entry} {config[entry]}, which jaxtune's has not")
  for key in [key for key in tensors if ".prefix_tuning.pool." in key]:
    del tensors[key]  # every layer holds the prefixes of all layers once more
  c, length = pretrained.model.config, int(config.get("prefix_length", 30))
  trained, chosen = {}, {}
  for site, pool in layout.prefixes(pretrained).items():
    if option := OPTIONAL.get(pool):
      chosen[option] = bool(config.get(pool, True))
      if not chosen[option]:
        continue
    half = c.encoder if site.startswith("encoder/") else c
    values = _values(config, f"{layout.pool(pretrained, adapter)}{pool}", tensors)
    shape = (length, half.layers, 2, half.kv_heads, half.head_size)
    if values.size != np.prod(shape):
      raise UserError(
        f"the prefix at {site} has {values.size} numbers, expected {np.prod(shape)} for {length} "
        f"tokens in {half.layers} layers of {half.kv_heads} x {half.head_size}: another base?"
      )
    trained[site] = prefixes.unpack(values.reshape(shape))
  return {"name": "prefix", "length": length, "shift": False, **chosen}, trained, {}


def _values(config: dict, pool: str, tensors: dict) -> np.ndarray:
  """Removes a pool's tensors: returns its keys and values, computed by its MLP if it has one."""
  take = lambda name: tensors.pop(f"{pool}.{name}")
  if config.get("flat"):
    return take("control_trans")
  x, act = take("wte.weight"), ACTIVATIONS[configs.activation(config, "tanh")]
  w1, b1, w2, b2 = (take(f"control_trans.{i}.{n}") for i in (0, 2) for n in ("weight", "bias"))
  return np.asarray(act(jnp.asarray(x @ w1.T + b1[None]))) @ w2.T + b2[None]
