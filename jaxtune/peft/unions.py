"""Published unions of methods, written as a stack: {"name": "mam"} and {"name": "unipelt"}.

  mam      Mix-And-Match (He et al. 2022, section 4.6): a short prefix in attention, and a wide
           scaled parallel adapter at the feed-forward.
  unipelt  UniPELT (Mao et al. 2022): prefix, Pfeiffer adapter and LoRA, each behind a gate that is
           trained from 1/2 on.

A part's options are given by its name, {"name": "mam", "prefix": {"length": 10}}; the others are
the paper's. Prefixes do not move positions, as in both papers' code. UniPELT's gates are one for
each token, not averaged over the sequence as in the paper, so that no token of a decoder sees a
later one and cached decoding equals teacher forcing; the prefix's gate is of the query.
"""

from __future__ import annotations

from jaxtune.errors import UserError, nearest

UNIONS = {
  "mam": {
    "prefix": {"name": "prefix", "length": 30, "projection": 800, "shift": False},
    # half the model's width: 512 in the paper's BART
    "adapter": {"name": "adapter", "placement": "parallel", "reduction_factor": 2},
  },
  "unipelt": {
    "prefix": {"name": "prefix", "length": 10, "projection": 512, "shift": False, "gate": True},
    "adapter": {"name": "adapter", "reduction_factor": 16, "gate": True},
    "lora": {"name": "lora", "rank": 8, "alpha": 16.0, "gate": True},
  },
}


def expand(section: dict) -> dict:
  """Returns the stack that a union stands for, also within a stack; other sections as they are.

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
  """Returns the parts of a union, with the options given set."""
  defaults = UNIONS[union]
  for part, options in given.items():
    if part not in defaults:
      raise UserError(f"unknown config key method.{part}; {nearest(part, defaults)}")
    if not hasattr(options, "keys"):
      raise UserError(f"method.{part} is {options!r}, expected a section of {union!r}")
  return {part: _override(options, dict(given.get(part, {}))) for part, options in defaults.items()}


def _override(defaults: dict, given: dict) -> dict:
  """Sets options; those of one method are none of another's, nor a factor's beside a width."""
  if given.get("name", defaults["name"]) != defaults["name"]:
    return given
  if "width" in given:
    defaults = {k: v for k, v in defaults.items() if k != "reduction_factor"}
  return defaults | given
