"""Methods over weights: tensors of torch modules become arrays of our sites, stacked over layers.

A fused module (GPT-2's c_attn) has several sites of ours. Where each rank of its adapter changes
one of these parts, as in our own exports, every part gets its own ranks; otherwise all parts share
one `a`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from jaxtune import tree
from jaxtune.errors import UserError
from jaxtune.formats import files
from jaxtune.formats.peft import layout, read_sections, read_targets
from jaxtune.models import hf, quantize
from jaxtune.models.names import Tensor
from jaxtune.peft import patterns
from jaxtune.peft.methods import lokr


def read(kind: str, config: dict, rest: dict, pretrained: hf.Pretrained) -> tuple[dict, dict, dict]:
  """Returns (section, trained, fixed) of an adapter over weights.

  Args:
    rest: {name without PEFT's prefix: tensor}.
  """
  modules, shapes = layout.modules(pretrained), files.shapes(pretrained)
  names = {
    name.removesuffix(".weight"): (module, i if rows[0].stacked else 0)
    for module, rows in modules.items()
    for name, i in rows[0].their_names(shapes[rows[0].ours]).items()
  }
  outputs = ("lm_head", *layout.HEADS)
  embeds = tuple(n for n, (m, _) in names.items() if modules[m][0].ours.endswith("/embedding"))
  wanted = read_targets.find(config, list(names), outputs + embeds)
  if kind == "vera":
    rest, projections = _projections(config, rest)
  tensors, ranks = _collect(kind, config, rest, {n: modules[names[n][0]] for n in wanted}, shapes)
  trained, fixed = {}, {}
  for module, rows in modules.items():
    layers = shapes[rows[0].ours][0] if rows[0].stacked else 1
    targets = {names[n][1]: n for n in wanted if names[n][0] == module}
    if not targets:
      continue
    arrays = _stack(kind, module, [tensors.get(targets.get(i)) for i in range(layers)])
    scale = _scales(kind, config, [targets.get(i) for i in range(layers)], ranks)
    weight = lambda path: quantize.weight(tree.flatten(pretrained.params), path)
    for row, part in _split(kind, rows, arrays, weight).items():
      first = (lambda x: x) if row.stacked else (lambda x: x[0])
      site = layout.site(row)
      trained[site] = {name: np.ascontiguousarray(first(x)) for name, x in part.items()}
      if scale is not None:
        fixed[site] = {"scale": first(scale)}
      if kind == "vera":
        fixed[site] = _shared(projections, row, shapes[row.ours], config.get("r", 8))
  return read_sections.complete(kind, config, trained, fixed, pretrained)


def _collect(kind: str, config: dict, rest: dict, wanted: dict, shapes: dict) -> tuple[dict, dict]:
  """Returns ({torch module: {array: ours}}, {torch module: its rank}); checks every tensor."""
  found, ranks, known = {}, {}, set()
  for name, rows in wanted.items():
    inputs = shapes[rows[0].ours][-2]
    outputs = layout.width(rows[0], shapes[rows[0].ours][-1])
    arrays = layout.arrays(kind, rows[0])
    ranks[name] = rank = _rank(kind, config, name, rest)
    sizes = _sizes(kind, config, inputs, outputs, rank)
    if kind == "ia3":  # the shape tells whether it scales inputs or outputs
      inside = _feedforward(config, name)
      arrays = [x for x in arrays if (x.ours == "l_in") == inside]
    if not config.get("use_dora"):
      arrays = [x for x in arrays if x.ours != "magnitude"]
    arrays = {f"{name}.{x.theirs}": x for x in arrays if x.ours in sizes}
    known |= arrays.keys()
    for key, array in arrays.items():
      if key in rest:
        shape = np.broadcast_to(False, sizes[array.ours])  # of no memory, whatever the file says
        files.check_shape(key, rest[key].shape, array.write(shape).shape)
        found.setdefault(name, {})[array.ours] = array.read(rest[key])
  missing = known - rest.keys()
  files.refuse_foreign(rest.keys() - known, missing or known)
  files.refuse_missing(missing)
  return found, ranks


def _rank(kind: str, config: dict, name: str, rest: dict) -> int:
  """Returns a module's rank, as the config says."""
  if kind == "ia3":
    return 0
  if kind == "adalora":  # it keeps some of the ranks it began with
    kept = (config.get("rank_pattern") or {}).get(f"{name}.lora_E")
    return int(config.get("init_r", 12) if kept is None else sum(kept))
  return int(read_targets.pattern(config.get("rank_pattern"), name, config.get("r", 8)))


def _sizes(kind: str, config: dict, inputs: int, outputs: int, rank: int) -> dict[str, tuple]:
  """Returns {array: shape of ours} of a module."""
  if kind != "lokr":
    size = {"i": inputs, "o": outputs, "r": rank}
    return {x.ours: tuple(size[axis] for axis in x.axes) for x in layout.ARRAYS[kind]}
  factor = config.get("decompose_factor", -1)
  both = config.get("decompose_both", False)
  return lokr.shapes(inputs, outputs, rank, None if factor == -1 else factor, both)


def _feedforward(config: dict, name: str) -> bool:
  """Says whether IA3 scales a module's inputs."""
  wanted = config.get("feedforward_modules") or []
  if isinstance(wanted, str):
    return patterns.fullmatch(wanted, name) is not None
  return any(name.endswith(end) for end in wanted)


def _projections(config: dict, rest: dict) -> tuple[dict, dict]:
  """Takes VeRA's frozen pair out of the tensors."""
  theirs = set(layout.PROJECTIONS.values())
  if not theirs <= rest.keys():
    raise UserError(
      "the adapter lacks vera_A and vera_B, which PyTorch would draw from a seed: save it with "
      "save_projection=True"
    )
  return (
    {key: x for key, x in rest.items() if key not in theirs},
    {ours: rest[name] for ours, name in layout.PROJECTIONS.items()},
  )


def _shared(
  projections: dict, row: Tensor, shape: tuple[int, ...], rank: int
) -> dict[str, np.ndarray]:
  """Cuts a module's part out of VeRA's frozen pair."""
  a, b = projections["a"], projections["b"]
  inputs, outputs = shape[-2], layout.width(row, shape[-1])
  pair = a.ndim == b.ndim == 2 and a.shape[0] == b.shape[1] == rank
  if not pair or a.shape[1] < inputs or b.shape[0] < outputs:
    raise UserError(
      f"vera_A is {a.shape} and vera_B {b.shape}, but {layout.site(row)} needs {inputs} inputs, "
      f"{outputs} outputs and the rank {rank}: the adapter is of another base or config"
    )
  b = b[:outputs].T
  return {
    "shared:a": np.ascontiguousarray(a[:, :inputs].T),
    "shared:b": np.ascontiguousarray(b[:, row.part.columns] if row.part else b),
  }


def _stack(kind: str, module: str, layers: list[dict | None]) -> dict[str, np.ndarray]:
  """Stacks the arrays of a module's layers; where ranks differ, zeros fill the smaller ones."""
  some = next(x for x in layers if x is not None)
  padded = kind in ("lora", "adalora", "loha") and "magnitude" not in some  # a zero rank adds 0
  if not padded and any(x is None for x in layers):
    raise UserError(
      f"the adapter lies over some layers of {module} alone, which jaxtune can hold for LoRA, "
      "AdaLoRA and LoHa only"
    )
  empty = {name: np.zeros((0,) * x.ndim, np.float32) for name, x in some.items()}
  return {n: _padded([(empty if x is None else x)[n] for x in layers]) for n in some}


def _padded(layers: list[np.ndarray]) -> np.ndarray:
  """Stacks the arrays of layers, each padded with zeros at the end of every axis."""
  sizes = np.max([x.shape for x in layers], 0)
  ends = lambda x: [(0, n - m) for m, n in zip(x.shape, sizes, strict=True)]
  return np.stack([np.pad(x, ends(x)) for x in layers])


def _scales(kind: str, config: dict, names: list[str | None], ranks: dict) -> np.ndarray | None:
  """Returns the scale of each layer of a module."""
  if kind in ("vera", "ia3"):
    return None
  if kind == "adalora":
    rank = config.get("init_r", 12)
    alpha = config.get("lora_alpha", 8)
    return np.full(
      len(names), (alpha if alpha > 0 else rank) / (rank + layout.ADALORA_EPSILON), np.float32
    )
  made = [n if n is None else read_targets.scale(config, n, ranks[n]) for n in names]
  some = next(x for x in made if x is not None)
  return np.array([some if x is None else x for x in made], np.float32)


def _split(kind: str, rows: list[Tensor], arrays: dict, weight: Callable) -> dict:
  """Returns {row of the table: arrays of its part} of a module."""
  if len(rows) == 1 and rows[0].part is None:
    return {rows[0]: arrays}
  if kind == "lokr":
    raise UserError(
      f"the LoKr over {rows[0].theirs} has one Kronecker product for {len(rows)} of our layers, "
      "which jaxtune cannot hold: merge it in PyTorch"
    )
  outputs = {x.ours for x in layout.ARRAYS[kind] if x.axes.endswith("o")}
  cut = lambda row: {
    name: x[..., row.part.columns] if name in outputs else x for name, x in arrays.items()
  }
  parts = {row: cut(row) for row in rows}
  if kind == "ia3":
    moved = {row: x for row, x in parts.items() if (x[next(iter(x))] != 1).any()}
    return moved or parts
  if kind in ("lora", "adalora"):
    return _blocks(kind, parts, weight) or parts
  return parts


def _blocks(kind: str, parts: dict, weight: Callable) -> dict | None:
  """Gives each part its own ranks, where every rank serves one part; else None."""
  served = np.array([x["b"].any((0, -1)) for x in parts.values()])  # (parts, R)
  owner = served.argmax(0)
  if (served.sum(0) != 1).any() or (np.diff(owner) < 0).any():
    return None
  made = {}
  for p, (row, x) in enumerate(parts.items()):
    if (owner == p).any():
      axes = {a.ours: a.axes.find("r") + 1 for a in layout.ARRAYS[kind]}
      made[row] = {n: y.compress(owner == p, axes[n]) if axes[n] else y for n, y in x.items()}
    elif "magnitude" in x:
      norms = np.linalg.norm(np.asarray(weight(row.ours)), axis=-2)
      if not np.allclose(norms, x["magnitude"], rtol=1e-5):
        return None
  return made
