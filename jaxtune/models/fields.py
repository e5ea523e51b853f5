"""Reads the entries of a `config.json` that several families have."""

from __future__ import annotations

from jaxtune.errors import UserError, check_known, nearest
from jaxtune.models.layers import ACTIVATIONS, Rope

ROPE_TYPES = ("default", "linear", "llama3")
LAYER_TYPES = ("full_attention", "sliding_attention")


def only(hf: dict, **supported) -> None:
  """Refuses entries that change the model in a way that is not supported; absent ones are fine."""
  for key, value in supported.items():
    if hf.get(key, value) != value:
      family = hf.get("model_type")
      raise UserError(f"{family} with {key}={hf[key]!r} is not supported, only with {value!r}")


def activation(hf: dict, key: str, default: str) -> str:
  """Reads the name of an activation."""
  name = hf.get(key) or default
  check_known(key, name, ACTIVATIONS)
  return name


def rope(hf: dict, numbers: dict | None = None, *, theta: float, share: float | None = None):
  """Reads RoPE's numbers, as transformers 5 writes them or as transformers 4 did.

  Args:
    numbers: where a model has several ropes, the one to read.
    theta: the base period, where `numbers` do not hold it.
    share: of a head that is rotated, likewise; None for families that always rotate all of it.
  """
  if numbers is None:
    numbers = hf.get("rope_parameters") or hf.get("rope_scaling") or {}
  kind = numbers.get("rope_type") or numbers.get("type") or "default"
  if kind not in ROPE_TYPES:
    raise UserError(f"RoPE scaling {kind!r} is not supported. {nearest(kind, ROPE_TYPES)}")
  theta = numbers.get("rope_theta") or theta
  size = _rotated(hf, numbers.get("partial_rotary_factor"), share)
  if kind == "default":
    return Rope(theta, size=size)
  if kind == "linear":
    return Rope(theta, numbers["factor"], size=size)
  return Rope(
    theta,
    numbers["factor"],
    numbers["original_max_position_embeddings"],
    numbers["low_freq_factor"],
    numbers["high_freq_factor"],
    size,
  )


def _rotated(hf: dict, stated: float | None, share: float | None) -> int | None:
  """Returns how many features of a head are rotated; None for all."""
  if share is None and stated not in (None, 1):
    raise UserError(
      f"{hf.get('model_type')} with partial_rotary_factor={stated} is not supported, only with 1"
    )
  share = (1 if share is None else share) if stated is None else stated
  head_size = hf.get("head_dim") or hf["hidden_size"] // hf["num_attention_heads"]
  size = int(head_size * share)
  if share <= 0 or size > head_size or size % 2:
    raise UserError(
      f"config.json: a share {share} of a head's {head_size} features is rotated, that is {size}; "
      "expected an even number of them"
    )
  return None if size == head_size else size


def sliding(hf: dict, local: list[bool]) -> dict:
  """Reads which layers see the last `sliding_window` keys alone, as fields of `Config`.

  Args:
    local: the family's own pattern, for a config.json without layer_types.
  """
  kinds = hf.get("layer_types")
  if kinds is not None:
    for kind in kinds:
      if kind not in LAYER_TYPES:
        raise UserError(f"config.json: layer type {kind!r}. {nearest(kind, LAYER_TYPES)}")
    if len(kinds) != hf["num_hidden_layers"]:
      raise UserError(
        f"config.json lists {len(kinds)} layer_types for {hf['num_hidden_layers']} layers"
      )
    local = [kind == "sliding_attention" for kind in kinds]
  if not any(local):
    return {}
  if not hf.get("sliding_window"):
    raise UserError("config.json has sliding_attention layers, but no sliding_window")
  return {"window": hf["sliding_window"], "local": tuple(local)}
