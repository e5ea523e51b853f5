"""Reads what several families have in their `config.json`; `entries` declares its types."""

from __future__ import annotations

import math

from jaxtune.errors import UserError, check_known
from jaxtune.models.entries import LAYER_TYPES
from jaxtune.models.rope import Rope

KINDS = {kind: kind for kind in ("default", "linear", "llama3", "yarn", "longrope", "dynamic")}


def only(hf: dict, **supported) -> None:
  """Refuses entries that change the model in a way that is not supported; absent ones are fine."""
  for key, value in supported.items():
    if hf.get(key, value) != value:
      family = hf.get("model_type")
      raise UserError(f"{family} with {key}={hf[key]!r} is not supported, only with {value!r}")


def head_size(hf: dict, width: str = "hidden_size", count: str = "num_attention_heads") -> int:
  """Reads how many features a head of attention has: those of the model, shared out."""
  if hf[width] % hf[count]:
    raise UserError(
      f"config.json: {count} is {hf[count]}, expected a divisor of {width} {hf[width]}"
    )
  return hf[width] // hf[count]


def rope(
  hf: dict,
  numbers: dict | None = None,
  *,
  theta: float,
  share: float | None = None,
  kinds: dict[str, str] = KINDS,
) -> Rope:
  """Reads RoPE's numbers, as transformers 5 writes them or as transformers 4 did.

  Args:
    hf: config.json, with the family's own default of max_position_embeddings.
    numbers: where a model has several ropes, the one to read.
    theta: the base period, where `numbers` do not hold it.
    share: of a head that is rotated, likewise; None for families that always rotate all of it.
    kinds: those that the family has, by their names in its files.

  Raises:
    UserError: a kind that is not supported; numbers that are missing or do not fit one another.
  """
  if numbers is None:
    numbers = hf.get("rope_scaling") or hf.get("rope_parameters") or {}
    if set(LAYER_TYPES) & set(numbers):
      raise UserError(
        f"{hf.get('model_type')} with a RoPE for each type of layers is not supported"
      )
    stated = hf.get("original_max_position_embeddings")
    numbers = numbers if stated is None else numbers | {"original_max_position_embeddings": stated}
  kind = numbers.get("rope_type") or numbers.get("type") or "default"
  check_known("RoPE scaling", kind, kinds)
  size = _rotated(hf, numbers.get("partial_rotary_factor"), share)
  kind = kinds[kind]
  made = Rope(numbers.get("rope_theta") or theta, size, kind)
  if kind == "default":
    return made
  longest = hf["max_position_embeddings"]
  original = numbers.get("original_max_position_embeddings") or longest
  if kind == "dynamic":
    original = longest  # which these files leave as it was
    if (size or _whole(hf)) < 4:
      raise UserError("config.json: dynamic RoPE needs 4 rotated features of a head, or more")
  made = made._replace(original_length=original, factor=_factor(numbers, kind, longest / original))
  if kind == "llama3":
    low, high = (_stated(numbers, f"{name}_freq_factor") for name in ("low", "high"))
    if high <= low:
      raise UserError(f"config.json: high_freq_factor is {high}, expected more than the low {low}")
    return made._replace(low=low, high=high)
  if kind == "yarn":
    low, high = numbers.get("beta_slow") or 1.0, numbers.get("beta_fast") or 32.0
    whole = numbers.get("truncate", True)
    return made._replace(low=low, high=high, whole=whole, scale=_yarn_scale(numbers, made.factor))
  return _longrope(numbers, made, size or _whole(hf)) if kind == "longrope" else made


def ropes(hf: dict) -> tuple[dict, dict]:
  """Reads the numbers of two ropes, of the layers that see all tokens and of the local ones."""
  numbers = hf.get("rope_parameters") or {}
  if extra := sorted(set(numbers) - set(LAYER_TYPES)):
    raise UserError(
      f"config.json: rope_parameters has {', '.join(extra)}; expected {' and '.join(LAYER_TYPES)}"
    )
  return numbers.get("full_attention") or {}, numbers.get("sliding_attention") or {}


def _stated(numbers: dict, name: str):
  if numbers.get(name) is None:
    raise UserError(f"config.json: the numbers of RoPE lack {name}")
  return numbers[name]


def _factor(numbers: dict, kind: str, ratio: float) -> float:
  """Reads `factor`; that of longrope, and one that is null for YaRN, is the ratio of lengths."""
  if kind == "longrope" or (kind == "yarn" and "factor" in numbers):
    return numbers.get("factor") or ratio
  return _stated(numbers, "factor")


def _yarn_scale(numbers: dict, factor: float) -> float:
  """Reads YaRN's factor of cos and sin: by default 0.1 ln(factor) + 1 (Peng et al. 2023)."""
  if numbers.get("attention_factor") is not None:
    return numbers["attention_factor"]
  of = lambda slope: 0.1 * slope * math.log(factor) + 1.0 if factor > 1 else 1.0
  above, below = numbers.get("mscale"), numbers.get("mscale_all_dim")
  return of(above) / of(below) if above and below else of(1)


def _longrope(numbers: dict, made: Rope, rotated: int) -> Rope:
  short, long = (tuple(_stated(numbers, f"{name}_factor")) for name in ("short", "long"))
  for name, divisors in (("short", short), ("long", long)):
    if len(divisors) != rotated // 2:
      raise UserError(
        f"config.json: {name}_factor has {len(divisors)} numbers, expected {rotated // 2}, one for "
        "each pair of rotated features"
      )
  grown = math.log(made.factor) / math.log(made.original_length)
  scale = numbers.get("attention_factor") or (math.sqrt(1 + grown) if made.factor > 1 else 1.0)
  return made._replace(short=short, long=long, scale=scale)


def _whole(hf: dict) -> int:
  return hf.get("head_dim") or head_size(hf)


def _rotated(hf: dict, stated: float | None, share: float | None) -> int | None:
  """Returns how many features of a head are rotated; None for all."""
  if share is None and stated not in (None, 1):
    raise UserError(
      f"{hf.get('model_type')} with partial_rotary_factor={stated} is not supported, only with 1"
    )
  share = (1 if share is None else share) if stated is None else stated
  whole = _whole(hf)
  size = int(whole * share)
  if not size or size % 2:
    raise UserError(
      f"config.json: a share {share} of a head's {whole} features is rotated, that is {size}; "
      "expected an even number of them"
    )
  return None if size == whole else size


def sliding(hf: dict, local: list[bool]) -> dict:
  """Reads which layers see the last `sliding_window` keys alone, as fields of `Config`.

  Args:
    local: the family's own pattern, for a config.json without layer_types.
  """
  kinds = hf.get("layer_types")
  if kinds is not None:
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
