"""Which torch modules an adapter's config means, as PEFT finds them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from jaxtune.errors import UserError
from jaxtune.peft import patterns


def find(config: dict, names: list[str], outputs: tuple[str, ...]) -> list[str]:
  """Lists the modules among `names` that are targets.

  Args:
    names: of all modules with weights, such as "model.layers.0.self_attn.q_proj".
    outputs: ends of names that "all-linear" leaves out, with the embeddings.

  Raises:
    UserError: for no targets, or none of the model's.
  """
  wanted = config.get("target_modules")
  if not wanted:
    raise UserError("adapter_config.json has no target_modules, which says where the adapter lies")
  if wanted == "all-linear":
    found = [name for name in names if not name.endswith(outputs)]
  else:
    found = [name for name in names if _hits(wanted, name)]
  excluded = config.get("exclude_modules") or []
  found = [name for name in found if not _hits(excluded, name) and _layer_hits(config, name)]
  whole = config.get("modules_to_save") or ()  # these are trained themselves
  saved = lambda name: any(
    patterns.fullmatch(module, name, r"(?:.*\.)?", r"(?:\..*)?") for module in whole
  )
  found = [name for name in found if not saved(name)]
  if not found:
    raise UserError(f"target_modules {wanted!r} hits no module of this model; such as {names[-1]}")
  return found


def pattern(given: dict | None, name: str, default: Any) -> Any:
  """Returns the value of the first pattern that a module's name ends in."""
  hits = (x for key, x in (given or {}).items() if patterns.fullmatch(key, name, r"(?:.*\.)?"))
  return next(hits, default)


def scale(config: dict, name: str, rank: int) -> float:
  """Returns what a module's delta is multiplied by."""
  alpha = config.get("lora_alpha", config.get("alpha", 8))
  alpha = pattern(config.get("alpha_pattern"), name, alpha)
  return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _hits(wanted: str | Sequence[str], name: str) -> bool:
  if isinstance(wanted, str):
    return patterns.fullmatch(wanted, name) is not None
  return any(name == target or name.endswith(f".{target}") for target in wanted)


def _layer_hits(config: dict, name: str) -> bool:
  layers = config.get("layers_to_transform")
  if layers is None or layers == []:
    return True
  layers, under = [layers] if isinstance(layers, int) else layers, config.get("layers_pattern")
  under = [under] if isinstance(under, str) else under or [r"[^.]*"]
  # The first number of a name counts, as in PEFT: that of T5's block, and not of its sublayer.
  found = (patterns.fullmatch(place, name, r"(?:.*?\.)??", r"\.(\d+)\..*") for place in under)
  return any(match and int(match[match.re.groups]) in layers for match in found)
