"""What adapter_config.json says of methods over weights: targets, ranks and scales."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from jaxtune.errors import UserError
from jaxtune.formats.peft import layout, write_weights
from jaxtune.formats.peft.write_weights import Piece
from jaxtune.models import hf
from jaxtune.peft import Method


class Placed(NamedTuple):
  """The torch modules over which a method lies.

  Attributes:
    pieces: {torch module, "{}" for the layer: its piece in each layer}.
    short: the shortest end of each module's name that no other module has.
    every: the names of all modules.
  """

  kind: str
  method: Method
  pieces: dict[str, list[Piece]]
  short: dict[str, str]
  every: set[str]


def make(
  method: Method, pretrained: hf.Pretrained, pieces: dict[str, list[Piece]], fixed: dict
) -> dict:
  """Returns the entries of the config for the pieces that `write_weights.pieces` returns."""
  kind = method.kind
  every = {row.theirs.removesuffix(".weight") for row in layout.table(pretrained)}
  short = {module: layout.suffix(module, every) for module in pieces}
  placed = Placed(kind, method, pieces, short, every)
  config = {"peft_type": layout.TYPES[kind], "target_modules": _targets(placed)}
  if kind in ("lora", "adalora"):
    rate = max(float(np.max(arrays["dropout"])) for arrays in fixed.values())
    config |= {
      "lora_dropout": round(rate, 6),
      "bias": "none",
      "init_lora_weights": True,
    }
  if kind in ("lora", "adalora", "vera", "ia3"):
    config["fan_in_fan_out"] = pretrained.family == "gpt2"  # Conv1D keeps (in, out)
  elif pretrained.family == "gpt2":
    raise UserError(
      f"PEFT's {layout.TYPES[kind]} knows no Conv1D, of which GPT-2 is made: use format='merged'"
    )
  return config | {
    "lora": _lora, "adalora": _adalora, "vera": _vera, "loha": _sizes, "lokr": _lokr, "ia3": _ia3,
  }[kind](placed)  # fmt: skip


def _lora(placed: Placed) -> dict:
  config = _sizes(placed)
  return config | {
    "lora_alpha": config.pop("alpha"),
    "use_rslora": False,  # alpha already holds the trained scale: alpha = scale * r
    "use_dora": any("magnitude" in p.arrays for pieces in placed.pieces.values() for p in pieces),
  }


def _sizes(placed: Placed) -> dict:
  """States the commonest rank and alpha, and patterns of the modules that have others."""
  ranks = {
    m: [write_weights.rank_of(placed.kind, p) or None for p in ps]
    for m, ps in placed.pieces.items()
  }
  alphas = {
    m: [r and layout.alpha_of(p.scale, r) for p, r in zip(ps, ranks[m], strict=True)]
    for m, ps in placed.pieces.items()
  }
  pairs = Counter(
    pair
    for m in placed.pieces
    for pair in zip(ranks[m], alphas[m], strict=True)
    if pair[0] is not None
  )
  rank, alpha = pairs.most_common(1)[0][0] if pairs else (1, 1)
  return {
    "r": rank,
    "alpha": alpha,
    "rank_pattern": _patterns(placed, ranks, rank),
    "alpha_pattern": _patterns(placed, alphas, alpha),
  }


def _adalora(placed: Placed) -> dict:
  """States the one rank that all modules begin with, and which ranks a module has kept."""
  ranks = {m: [write_weights.rank_of("adalora", p) for p in ps] for m, ps in placed.pieces.items()}
  rank = max(r for per_layer in ranks.values() for r in per_layer)
  kept = {
    f"{m.format(i)}.lora_E": [True] * r + [False] * (rank - r)
    for m, per_layer in ranks.items()
    for i, r in enumerate(per_layer)
  }
  uneven = any(r != rank for per_layer in ranks.values() for r in per_layer)
  return {
    "r": 8,  # not read
    "init_r": rank,
    "target_r": min(rank, int(placed.method.options.get("target_rank", rank))),
    "lora_alpha": layout.alpha_of(_one_scale(placed), rank + layout.SMALL),
    "rank_pattern": kept if uneven else None,
    "tinit": 0,
    "tfinal": 0,
    "total_step": 1,
  }


def _one_scale(placed: Placed) -> float:
  scales = {p.scale for pieces in placed.pieces.values() for p in pieces}
  if len(scales) > 1:
    raise UserError(
      f"PEFT's {layout.TYPES[placed.kind]} has one scale, these are {sorted(scales)}: use "
      "format='merged'"
    )
  return scales.pop()


def _vera(placed: Placed) -> dict:
  rank = write_weights.rank_of("vera", next(iter(placed.pieces.values()))[0])
  return {"r": rank, "save_projection": True, "projection_prng_key": 0, "vera_dropout": 0.0}


def _lokr(placed: Placed) -> dict:
  """States rank, factor and alphas; the rank is the option's where all matrices are whole."""
  rank, factor = int(placed.method.options["rank"]), placed.method.options.get("factor")
  shown = {write_weights.rank_of("lokr", p) for ps in placed.pieces.values() for p in ps} - {
    None,
    rank,
  }
  if shown:
    raise UserError(f"method.rank is {rank}, expected {shown.pop()}, the rank of LoKr's arrays")
  alphas = {m: [layout.alpha_of(p.scale, rank) for p in ps] for m, ps in placed.pieces.items()}
  alpha = Counter(a for ps in alphas.values() for a in ps).most_common(1)[0][0]
  return {
    "r": rank,
    "alpha": alpha,
    "alpha_pattern": _patterns(placed, alphas, alpha),
    "decompose_factor": -1 if factor is None else factor,
    "decompose_both": bool(placed.method.options.get("decompose_both", False)),
  }


def _ia3(placed: Placed) -> dict:
  inputs = {m: pieces for m, pieces in placed.pieces.items() if "l_in" in pieces[0].arrays}
  return {"feedforward_modules": _ends(placed, inputs), "target_modules": _targets(placed, inputs)}


def _targets(placed: Placed, whole: Iterable[str] = ()) -> list[str]:
  """Lists target_modules; names those of `whole` as `_ends` does."""
  # BERT's output.dense ends attention.output.dense too: it is told apart by its layer alone.
  names = set(_ends(placed, whole))
  for module, pieces in placed.pieces.items():
    # A layer without any rank is no target; AdaLoRA's may be one.
    used = [placed.kind == "adalora" or write_weights.rank_of(placed.kind, p) != 0 for p in pieces]
    if module not in whole:
      form = placed.short[module] if all(used) else module
      names |= {form.format(i) for i, yes in enumerate(used) if yes}
  return sorted(names)


def _ends(placed: Placed, modules: Iterable[str]) -> list[str]:
  """Lists ends of names, from any letter on, that these modules alone have."""
  names = set()
  for module in modules:
    short = placed.short[module]
    form = module if any(m.endswith(short) for m in placed.every - {module}) else short
    names |= {form.format(i) for i in range(len(placed.pieces[module]))}
  return sorted(names)


def _patterns(placed: Placed, values: dict[str, list], default: Any) -> dict:
  """Maps modules to their values, where these are not the default; None is no value."""
  patterns = {}
  for module, per_layer in values.items():
    if len(set(per_layer)) > 1:
      patterns |= {module.format(i): x for i, x in enumerate(per_layer) if x not in (None, default)}
    elif per_layer[0] not in (None, default):
      patterns[placed.short[module].replace("{}", r"\d+")] = per_layer[0]
  return patterns
