"""Published unions of methods, written as a stack: {"name": "mam"} and {"name": "unipelt"}.

  mam      Mix-And-Match (He et al. 2022, section 4.6): a short prefix in attention, and a wide
           scaled parallel adapter at the feed-forward network.
  unipelt  UniPELT (Mao et al. 2022): a prefix, a Pfeiffer adapter and LoRA, each multiplied by a
           trained gate, which is 1/2 at the start.

Options of a part are given under its name, {"name": "mam", "prefix": {"length": 10}}; all others
are the paper's. Prefixes do not shift positions, as in both papers' code. UniPELT's paper averages
a gate over the sequence. Here each token has a gate of its own, so that no token of a decoder sees
a later one and cached decoding equals teacher forcing; a prefix's gate is computed from the query.
"""

from __future__ import annotations

from jaxtune.errors import UserError, nearest

UNIONS = {
  "mam": {
    "prefix": {"name": "prefix", "length": 30, "projection": 800, "shift": False},
    # This is half the model's width: 512 in the paper's BART.
    "adapter": {"name": "adapter", "placement": "parallel", "reduction_factor": 2},
  },
  "unipelt": {
    "prefix": {"name": "prefix", "length": 10, "projection": 512, "shift": False, "gate": True},
    "adapter": {"name": "adapter", "reduction_factor": 16, "gate": True},
    "lora": {"name": "lora", "rank": 8, "alpha": 16.0, "gate": True},
  },
}


def expand(section: dict) -> dict:
  """Returns the stack that a union stands for, also within a stack; other sections unchanged.

  Raises:
    UserError: for a part that the union does not have, or one that a stack has twice.
  """
  section = dict(section)
  name, options = section.get("name"), {k: v for k, v in section.items() if k != "name"}
  if isinstance(name, str) and name in UNIONS:
    return {"name": "stack"} | _parts(name, options)
  if name != "stack":
    return section
  stack = {}
  for key, part in options.items():
    union = part.get("name", key) if hasattr(part, "keys") else None
    parts = {key: part}
    if union in UNIONS:
      parts = _parts(union, {k: v for k, v in dict(part).items() if k != "name"})
    if twice := stack.keys() & parts.keys():
      raise UserError(f"method.{min(twice)} is given twice, by itself and by a union; rename one")
    stack |= parts
  return {"name": "stack"} | stack


def _parts(union: str, given: dict) -> dict[str, dict]:
  """Returns the sections of a union's parts, with the given options set."""
  defaults = UNIONS[union]
  for part, options in given.items():
    if part not in defaults:
      raise UserError(f"unknown config key method.{part}; {nearest(part, defaults)}")
    if not hasattr(options, "keys"):
      raise UserError(f"method.{part} is {options!r}, expected a section of {union!r}")
  return {part: _override(options, dict(given.get(part, {}))) for part, options in defaults.items()}


def _override(defaults: dict, given: dict) -> dict:
  """Sets options; drops all defaults for another method, and the reduction factor for a width."""
  if given.get("name", defaults["name"]) != defaults["name"]:
    return given
  if "width" in given:
    defaults = {k: v for k, v in defaults.items() if k != "reduction_factor"}
  return defaults | given
