"""The entries of PEFT's adapter_config.json about methods over weights: targets, ranks, scales."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import Any, NamedTuple

import numpy as np

from jaxtune.errors import UserError
from jaxtune.formats import files
from jaxtune.formats.peft import layout, write_weights
from jaxtune.formats.peft.write_weights import Piece
from jaxtune.models import hf
from jaxtune.peft import Method


class Placed(NamedTuple):
  """The torch modules over which a method lies; a module's name has "{}" for the layer.

  Attributes:
    pieces: {module: its piece in each layer}.
    ranks: {module: the rank in each layer}; None where no array has a rank.
    short: {module: the shortest end of its name that no other module has}.
    names: of all modules, with and without the method.
  """

  method: Method
  pieces: dict[str, list[Piece]]
  ranks: dict[str, list[int | None]]
  short: dict[str, str]
  names: set[str]


def make(
  method: Method, pretrained: hf.Pretrained, pieces: dict[str, list[Piece]], fixed: dict
) -> dict:
  """Returns the entries of the config for the pieces that `write_weights.pieces` returns."""
  kind = method.kind
  names = {row.theirs.removesuffix(".weight") for row in files.table(pretrained)}
  short = {module: layout.suffix(module, names) for module in pieces}
  ranks = {module: [write_weights.rank_of(kind, p) for p in ps] for module, ps in pieces.items()}
  placed = Placed(method, pieces, ranks, short, names)
  config = {"peft_type": layout.TYPES[kind], "target_modules": _targets(placed)}
  if kind in ("lora", "adalora"):
    rate = max(float(np.max(arrays["dropout"])) for arrays in fixed.values())
    config |= {"lora_dropout": round(rate, 6), "bias": "none", "init_lora_weights": True}
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
  """Returns the commonest rank and alpha, and patterns of the modules that have others."""
  ranks = {module: [rank or None for rank in ranks] for module, ranks in placed.ranks.items()}
  alphas = {
    module: [
      rank and layout.alpha_of(piece.scale, rank)
      for piece, rank in zip(pieces, ranks[module], strict=True)
    ]
    for module, pieces in placed.pieces.items()
  }
  pairs = Counter(
    (rank, alpha)
    for module in ranks
    for rank, alpha in zip(ranks[module], alphas[module], strict=True)
    if rank is not None
  )
  rank, alpha = pairs.most_common(1)[0][0] if pairs else (1, 1)
  return {
    "r": rank,
    "alpha": alpha,
    "rank_pattern": _patterns(placed, ranks, rank),
    "alpha_pattern": _patterns(placed, alphas, alpha),
  }


def _adalora(placed: Placed) -> dict:
  """Returns the one rank that all modules begin with, and which ranks each module has kept."""
  scales = {piece.scale for pieces in placed.pieces.values() for piece in pieces}
  if len(scales) > 1:
    raise UserError(
      f"PEFT's ADALORA has one scale, these are {sorted(scales)}: use format='merged'"
    )
  ranks = {module.format(i): r for module, rs in placed.ranks.items() for i, r in enumerate(rs)}
  rank = max(ranks.values())
  kept = {f"{module}.lora_E": [True] * r + [False] * (rank - r) for module, r in ranks.items()}
  return {
    "r": 8,  # PEFT does not read it
    "init_r": rank,
    "target_r": min(rank, int(placed.method.options.get("target_rank", rank))),
    "lora_alpha": layout.alpha_of(scales.pop(), rank + layout.ADALORA_EPSILON),
    "rank_pattern": kept if {*ranks.values()} != {rank} else None,
    "tinit": 0,
    "tfinal": 0,
    "total_step": 1,
  }


def _vera(placed: Placed) -> dict:
  rank = next(iter(placed.ranks.values()))[0]
  return {"r": rank, "save_projection": True, "projection_prng_key": 0, "vera_dropout": 0.0}


def _lokr(placed: Placed) -> dict:
  """Returns rank, factor and alphas; the option's rank, also where no matrix is factored."""
  options = placed.method.options
  rank, factor = int(options["rank"]), options.get("factor")
  others = {r for ranks in placed.ranks.values() for r in ranks} - {None, rank}
  if others:
    raise UserError(f"method.rank is {rank}, expected {others.pop()}, the rank of LoKr's arrays")
  alphas = {m: [layout.alpha_of(p.scale, rank) for p in ps] for m, ps in placed.pieces.items()}
  alpha = Counter(a for ps in alphas.values() for a in ps).most_common(1)[0][0]
  return {
    "r": rank,
    "alpha": alpha,
    "alpha_pattern": _patterns(placed, alphas, alpha),
    "decompose_factor": -1 if factor is None else factor,
    "decompose_both": bool(options.get("decompose_both", False)),
  }


def _ia3(placed: Placed) -> dict:
  inputs = {m for m, pieces in placed.pieces.items() if "l_in" in pieces[0].arrays}
  ends = sorted(name for module in inputs for name in _ends(placed, module))
  return {"feedforward_modules": ends, "target_modules": _targets(placed, inputs)}


def _targets(placed: Placed, inputs: Collection[str] = ()) -> list[str]:
  """Lists target_modules; those of `inputs`, which IA3 scales, by the names of `_ends`."""
  names = set()
  for module, ranks in placed.ranks.items():
    if module in inputs:
      names |= _ends(placed, module)
    else:  # a layer of rank 0 is no target, but AdaLoRA's may be one
      used = [placed.method.kind == "adalora" or rank != 0 for rank in ranks]
      form = placed.short[module] if all(used) else module
      names |= {form.format(i) for i, is_used in enumerate(used) if is_used}
  return sorted(names)


def _ends(placed: Placed, module: str) -> set[str]:
  """Returns names for a module that no other module's name ends in, even within a word.

  BERT's "output.dense" is also the end of "attention.output.dense": it gets a name for each layer.
  """
  short = placed.short[module]
  form = module if any(m.endswith(short) for m in placed.names - {module}) else short
  return {form.format(i) for i in range(len(placed.pieces[module]))}


def _patterns(placed: Placed, values: dict[str, list], default: Any) -> dict:
  """Returns {module: value} of those whose value is neither None nor the default."""
  patterns = {}
  for module, per_layer in values.items():
    if len(set(per_layer)) > 1:
      patterns |= {module.format(i): x for i, x in enumerate(per_layer) if x not in (None, default)}
    elif per_layer[0] not in (None, default):
      patterns[placed.short[module].replace("{}", r"\d+")] = per_layer[0]
  return patterns
