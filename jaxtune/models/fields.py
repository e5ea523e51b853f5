"""Reads entries of a `config.json` that several families share; `entries` declares their types."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from jaxtune.errors import UserError, check_known
from jaxtune.models.entries import LAYER_TYPES
from jaxtune.models.rope import Rope

# What GPT-2, BERT and BART share: no RoPE, LayerNorm, a feed-forward without a gate, and biases.
CLASSIC: dict[str, Any] = dict(
  rope=None, centre_norm=True, gated=False, qkv_bias=True, o_bias=True, ffn_bias=True
)
KINDS = {kind: kind for kind in ("default", "linear", "llama3", "yarn", "longrope", "dynamic")}


def only(hf: dict, **supported) -> None:
  """Raises UserError if an entry is present and is not the only value that is supported."""
  for key, value in supported.items():
    if hf.get(key, value) != value:
      family = hf.get("model_type")
      raise UserError(f"{family} with {key}={hf[key]!r} is not supported, only with {value!r}")


def sizes(
  hf: dict,
  *,
  width: str = "hidden_size",
  layers: str = "num_hidden_layers",
  heads: str = "num_attention_heads",
  ffn: str = "intermediate_size",
  head_size: int | None = None,
) -> dict:
  """Reads the vocabulary and the sizes of a stack of layers, as fields of `Config`.

  Args:
    width, layers, heads, ffn: the names of these sizes in the family's files.
    head_size: features of each attention head; None: width / heads.
  """
  return dict(
    vocabulary=hf["vocab_size"],
    width=hf[width],
    layers=hf[layers],
    heads=hf[heads],
    kv_heads=hf[heads],
    head_size=head_size or _head_size(hf, width, heads),
    ffn=hf[ffn],
  )


def _head_size(hf: dict, width: str = "hidden_size", heads: str = "num_attention_heads") -> int:
  """Returns width / heads, and raises UserError where that is not a whole number."""
  if hf[width] % hf[heads]:
    raise UserError(
      f"config.json: {heads} is {hf[heads]}, expected a divisor of {width} {hf[width]}"
    )
  return hf[width] // hf[heads]


def rope(
  hf: dict,
  numbers: dict | None = None,
  *,
  theta: float,
  share: float | None = None,
  kinds: dict[str, str] = KINDS,
) -> Rope:
  """Reads a `Rope`, as transformers 5 or transformers 4 writes it.

  Args:
    hf: config.json, completed by the family's default of max_position_embeddings.
    numbers: the entries of this RoPE; None for a model that has a single one.
    theta: the base of frequencies, if `numbers` lack it.
    share: the share of a head that is rotated, if `numbers` lack it; None for families that always
      rotate whole heads.
    kinds: {name of a kind in the family's files: kind of `Rope`}.

  Raises:
    UserError: for a kind that is not supported, and for numbers that are missing or contradictory.
  """
  numbers = _single_rope(hf) if numbers is None else numbers
  kind = numbers.get("rope_type") or numbers.get("type") or "default"
  check_known("RoPE scaling", kind, kinds)
  kind = kinds[kind]
  head_size = hf.get("head_dim") or _head_size(hf)
  size = _rotated(hf, head_size, numbers.get("partial_rotary_factor"), share)
  result = Rope(numbers.get("rope_theta") or theta, None if size == head_size else size, kind)
  if kind == "default":
    return result
  longest = hf["max_position_embeddings"]
  original = numbers.get("original_max_position_embeddings") or longest
  if kind == "dynamic":
    original = longest  # such files keep the length of the pretraining there
    if size < 4:
      raise UserError("config.json: dynamic RoPE needs 4 rotated features of a head, or more")
  # As in transformers: longrope may lack a factor, and YaRN's may be null.
  if kind == "longrope" or (kind == "yarn" and "factor" in numbers):
    factor = numbers.get("factor") or longest / original
  else:
    factor = _required(numbers, "factor")
  result = result._replace(original_length=original, factor=factor)
  if kind == "llama3":
    low, high = (_required(numbers, f"{name}_freq_factor") for name in ("low", "high"))
    if high <= low:
      raise UserError(f"config.json: high_freq_factor is {high}, expected more than the low {low}")
    return result._replace(low=low, high=high)
  if kind == "yarn":
    low, high = numbers.get("beta_slow") or 1.0, numbers.get("beta_fast") or 32.0
    result = result._replace(low=low, high=high, truncate=numbers.get("truncate", True))
    return result._replace(scale=_yarn_scale(numbers, factor))
  return _longrope(numbers, result, size) if kind == "longrope" else result


def _single_rope(hf: dict) -> dict:
  """Returns the entries of the RoPE of a model that has a single one.

  Raises:
    UserError: for a RoPE for each type of layers.
  """
  numbers = hf.get("rope_scaling") or hf.get("rope_parameters") or {}
  if set(LAYER_TYPES) & set(numbers):
    raise UserError(f"{hf.get('model_type')} with a RoPE for each type of layers is not supported")
  stated = hf.get("original_max_position_embeddings")
  return numbers if stated is None else numbers | {"original_max_position_embeddings": stated}


def ropes(hf: dict) -> tuple[dict, dict]:
  """Returns the entries of two RoPEs: that of the layers with full attention, and the local one."""
  numbers = hf.get("rope_parameters") or {}
  if extra := sorted(set(numbers) - set(LAYER_TYPES)):
    raise UserError(
      f"config.json: rope_parameters has {', '.join(extra)}; expected {' and '.join(LAYER_TYPES)}"
    )
  return numbers.get("full_attention") or {}, numbers.get("sliding_attention") or {}


def _required(numbers: dict, name: str) -> Any:
  """Returns a number of a RoPE; raises UserError if it is missing or null."""
  if numbers.get(name) is None:
    raise UserError(f"config.json: the numbers of RoPE lack {name}")
  return numbers[name]


def _yarn_scale(numbers: dict, factor: float) -> float:
  """Returns YaRN's factor of cos and sin: by default 0.1 ln(factor) + 1 (Peng et al. 2023).

  With mscale and mscale_all_dim, it is the ratio of that number with either as the slope.
  """
  if numbers.get("attention_factor") is not None:
    return numbers["attention_factor"]
  scale = lambda slope: 0.1 * slope * math.log(factor) + 1.0 if factor > 1 else 1.0
  mscale, all_dim = numbers.get("mscale"), numbers.get("mscale_all_dim")
  return scale(mscale) / scale(all_dim) if mscale and all_dim else scale(1)


def _longrope(numbers: dict, rope: Rope, rotated: int) -> Rope:
  """Adds longrope's divisors, and its factor of cos and sin, to a `Rope`.

  The factor is by default sqrt(1 + ln(factor) / ln(original_length)), or 1 for a factor up to 1.
  """
  short, long = (tuple(_required(numbers, f"{name}_factor")) for name in ("short", "long"))
  for name, divisors in (("short", short), ("long", long)):
    if len(divisors) != rotated // 2:
      raise UserError(
        f"config.json: {name}_factor has {len(divisors)} numbers, expected {rotated // 2}, one for "
        "each pair of rotated features"
      )
  ratio = math.log(rope.factor) / math.log(rope.original_length)
  scale = numbers.get("attention_factor") or (math.sqrt(1 + ratio) if rope.factor > 1 else 1.0)
  return rope._replace(short=short, long=long, scale=scale)


def _rotated(hf: dict, head_size: int, stated: float | None, share: float | None) -> int:
  """Returns how many of a head's features are rotated.

  Args:
    stated: partial_rotary_factor of config.json, which replaces the family's default `share`.
  """
  if share is None and stated not in (None, 1):
    raise UserError(
      f"{hf.get('model_type')} with partial_rotary_factor={stated} is not supported, only with 1"
    )
  share = stated or share or 1
  size = int(head_size * share)
  if not size or size % 2:
    raise UserError(
      f"config.json: a share {share} of a head's {head_size} features is rotated, that is {size}; "
      "expected an even number of them"
    )
  return size


def sliding(hf: dict, is_local: Callable[[int], bool]) -> dict:
  """Reads which layers are local, and their window, as fields of `Config`; {} if there are none.

  Args:
    is_local: (index of a layer) -> whether it is local, for a config.json without layer_types.
  """
  kinds, layers = hf.get("layer_types"), hf["num_hidden_layers"]
  if kinds is not None and len(kinds) != layers:
    raise UserError(f"config.json lists {len(kinds)} layer_types for {layers} layers")
  if kinds is None:
    local = tuple(map(is_local, range(layers)))
  else:
    local = tuple(kind == "sliding_attention" for kind in kinds)
  if not any(local):
    return {}
  if not hf.get("sliding_window"):
    raise UserError("config.json has sliding_attention layers, but no sliding_window")
  return {"window": hf["sliding_window"], "local": local}


def start_tokens(hf: dict, default: int | None) -> tuple[int, ...]:
  """Returns the tokens that every output begins with, in training and in generation.

  They are `decoder_start_token_id`, or `default`, and `forced_bos_token_id` if there is one, as in
  BART's summarisers: transformers generates that token first, whatever the model predicts.
  """
  start = hf.get("decoder_start_token_id")
  start = default if start is None else start
  if start is None:
    raise UserError("config.json has no decoder_start_token_id, which every output begins with")
  forced = hf.get("forced_bos_token_id")
  if forced is None and hf.get("force_bos_token_to_be_generated"):  # in older files
    forced = hf.get("bos_token_id", 0)
  return (start,) if forced is None else (start, forced)
