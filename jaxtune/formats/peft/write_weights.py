"""Methods over weights: our arrays at each site become those of PyTorch's modules.

A fused module (GPT-2's c_attn) has q, k and v as parts of its outputs: several sites of ours, but
one adapter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jaxtune.errors import UserError
from jaxtune.formats.peft import layout
from jaxtune.models import hf
from jaxtune.models.names import Tensor


class Piece(NamedTuple):
  """A method's arrays at one torch module, or a part of it, in one layer, as ours."""

  row: Tensor
  arrays: dict[str, np.ndarray]
  scale: float = 1.0


def pieces(
  kind: str, pretrained: hf.Pretrained, trained: dict, fixed: dict, weight: Callable
) -> dict[str, list[Piece]]:
  """Returns {torch module, "{}" for the layer: its piece in each layer}.

  Args:
    weight: (path of a leaf) -> the frozen weights in fp32.

  Raises:
    UserError: where a fused module cannot hold what was trained of its parts.
  """
  pieces_of = {}
  for module, rows in layout.modules(pretrained).items():
    targets = [row for row in rows if layout.site(row) in trained]
    if not targets:
      continue
    arrays_of = {row: _arrays(kind, layout.site(row), trained, fixed) for row in targets}
    if len(rows) > 1:
      arrays_of |= {row: _neutral(arrays_of, row, weight) for row in rows if row not in targets}
    arrays_of = {row: arrays_of[row] for row in rows if arrays_of.get(row)}
    first = next(iter(trained[layout.site(targets[0])].values()))
    layers = len(first) if targets[0].stacked else 1
    pieces_of[module] = [
      _join(kind, module, [_layer(row, arrays, i) for row, arrays in arrays_of.items()], len(rows))
      for i in range(layers)
    ]
  return pieces_of


def _arrays(kind: str, site: str, trained: dict, fixed: dict) -> dict[str, np.ndarray]:
  """Collects a site's arrays; a LoRA whose start was not zero becomes ab - a0 b0, of rank 2r."""
  names = {"scale", *(x.ours for x in layout.ARRAYS[kind])}
  if stray := trained[site].keys() - names:
    raise UserError(
      f"{kind} has {sorted(stray)[0]}, which PEFT cannot express: train without it to use it in "
      "PyTorch; jaxtune evaluates and generates with it"
    )
  every = fixed.get(site, {}) | trained[site]
  own = {n: np.asarray(x, np.float32) for n, x in every.items() if n in names or "shared:" in n}
  if "a0" in every:
    own["a"] = np.concatenate([own["a"], np.asarray(every["a0"])], -1)
    own["b"] = np.concatenate([own["b"], -np.asarray(every["b0"])], -2)
  return own


def _neutral(arrays_of: dict, row: Tensor, weight: Callable) -> dict[str, np.ndarray]:
  """Makes arrays that change nothing, for a part that was not trained; {} where none are needed.

  Args:
    arrays_of: {row: arrays} of the parts that were trained.
  """
  others = next(iter(arrays_of.values()))
  if "magnitude" in others:
    norms = np.linalg.norm(np.asarray(weight(row.ours), np.float32), axis=-2)
    return {
      "a": others["a"][..., :0],
      "b": np.zeros((*norms.shape[:-1], 0, norms.shape[-1]), np.float32),
      "magnitude": norms,
      "scale": others["scale"],
    }
  if "l" in others:
    layers = others["l"].shape[:-1]
    return {"l": np.ones((*layers, row.part.size * row.part.heads), np.float32)}
  return {}


def _layer(row: Tensor, arrays: dict, i: int) -> Piece:
  """Returns the piece of layer `i`."""
  take = lambda x, name: x[i] if row.stacked and "shared:" not in name else x
  arrays = {name: take(x, name) for name, x in arrays.items()}
  return Piece(row, arrays, float(arrays.pop("scale", 1.0)))


def _join(kind: str, module: str, parts: list[Piece], whole: int) -> Piece:
  """Makes one piece of the parts of a module, exactly."""
  if parts[0].row.part is None:
    return parts[0]
  axes = {x.ours: x.axes for x in layout.ARRAYS[kind]} | {"shared:a": "ir", "shared:b": "ro"}
  common = lambda p: {name: x for name, x in p.arrays.items() if "o" not in axes[name]}
  same = lambda p: (
    p.scale == parts[0].scale
    and common(p).keys() == common(parts[0]).keys()
    and all(np.array_equal(x, common(parts[0])[name]) for name, x in common(p).items())
  )
  if len(parts) == whole and kind != "lokr" and all(map(same, parts)):
    return parts[0]._replace(arrays=common(parts[0]) | _outputs(parts, axes))
  if kind in ("lora", "adalora"):  # a sum of these is one of the sum of their ranks
    return _blocks(parts, axes)
  raise UserError(
    f"PEFT's {layout.TYPES[kind]} has one adapter for {module.replace('.{}', '')}, of which "
    f"{', '.join(layout.site(p.row).rpartition('/')[2] for p in parts)} were trained apart: use "
    "format='merged'"
  )


def _outputs(parts: list[Piece], axes: dict) -> dict[str, np.ndarray]:
  """Lays arrays over a module's outputs side by side."""
  total = layout.width(parts[0].row, 0)
  joined = {}
  for p in parts:
    for name, x in p.arrays.items():
      if "o" in axes[name]:
        full = joined.setdefault(name, np.zeros((*x.shape[:-1], total), np.float32))
        full[..., p.row.part.columns] = x
  return joined


def _blocks(parts: list[Piece], axes: dict) -> Piece:
  """Makes one adapter of the sum of the parts' ranks.

  a = [a_q a_v]; the rows of b that read the columns of a_q have outputs of q alone, and so on.
  """
  # One module has one scale; a part trained with another one carries the ratio in its b.
  scale = max((p.scale for p in parts), key=abs)
  total, joined = layout.width(parts[0].row, 0), {}
  for p in parts:
    ratio = np.float32(1.0 if p.scale == scale else p.scale / scale)
    for name, x in p.arrays.items():
      if axes[name] == "o":
        full = joined.setdefault(name, [np.zeros(total, np.float32)])[0]
        full[p.row.part.columns] = x
      elif axes[name] == "ro":
        rows = np.zeros((len(x), total), np.float32)
        rows[:, p.row.part.columns] = x * ratio
        joined.setdefault(name, []).append(rows)
      else:
        joined.setdefault(name, []).append(x)
  along = {"ir": -1, "r": -1, "ro": 0, "o": 0}
  return Piece(
    parts[0].row,
    {name: np.concatenate(xs, along[axes[name]]) for name, xs in joined.items()},
    scale,
  )


def trim(kind: str, piece: Piece) -> Piece:
  """Cuts trailing ranks off that hold zeros alone, as where layers have ranks of their own."""
  axes = {x.ours: x.axes.index("r") for x in layout.ARRAYS[kind] if "r" in x.axes}
  ranked = {name: np.moveaxis(x, axes[name], 0) for name, x in piece.arrays.items() if name in axes}
  if not ranked:
    return piece
  used = [np.array([row.any() for row in x], bool) for x in ranked.values()]
  kept = np.flatnonzero(np.any(used, 0))
  rank = kept[-1] + 1 if len(kept) else 0
  cut = {name: np.moveaxis(x[:rank], 0, axes[name]) for name, x in ranked.items()}
  return piece._replace(arrays=piece.arrays | cut)


def rank_of(kind: str, piece: Piece) -> int | None:
  """Returns the size of a rank axis; None where no array has one."""
  axes = {x.ours: x.axes.find("r") for x in layout.ARRAYS[kind]}
  sizes = [x.shape[axes[n]] for n, x in piece.arrays.items() if axes.get(n, -1) >= 0]
  return sizes[0] if sizes else None
