"""How a trained method changes each weight of the base, as factors where the change has them."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, PyTree

from jaxtune import peft, tree
from jaxtune.models import quantize
from jaxtune.peft.spectrum import spectrum

DIRECTIONS = 16  # of a change, that are compared with those of the base and of other changes
# What merging in fp32 and subtracting the base leaves of no change at all, relative to the base.
_ROUNDING = 2.0**-20


class Spectrum(NamedTuple):
  """The singular value decomposition u s v of the change of a matrix, in each of L layers.

  Kernels are (inputs, outputs), so that u has directions of inputs and v has those of outputs.
  """

  u: Float[np.ndarray, "L I M"]
  s: Float[np.ndarray, "L M"]
  v: Float[np.ndarray, "L M O"]

  @property
  def ranks(self) -> list[int]:
    """The rank in each layer: how many singular values are above the rounding of the largest."""
    return (self.s > 1e-6 * self.s[:, :1]).sum(-1).tolist()

  @property
  def directions(self) -> tuple[Float[np.ndarray, "L I _"], Float[np.ndarray, "L O _"]]:
    """The largest directions of inputs and of outputs, NaN where a layer has fewer than others."""
    ranks_L1 = np.asarray(self.ranks)[:, None]
    lacking_L1M = (np.arange(min(self.s.shape[1], DIRECTIONS))[None] >= ranks_L1)[:, None]
    sides = self.u[:, :, :DIRECTIONS], self.v[:, :DIRECTIONS].swapaxes(1, 2)
    inputs, outputs = (np.where(lacking_L1M, np.nan, side) for side in sides)
    return inputs, outputs


class Change(NamedTuple):
  """How a leaf of the base changes.

  Attributes:
    base: the leaf before, in fp32: a matrix (L, I, O) or a vector (L, O) in each of L layers, with
      L = 1 outside of the layers.
    delta: what is added, of the same shape; None for a matrix whose change is `factors`.
    factors: (L, I, M) and (L, M, O), whose product is added; or None.
  """

  base: np.ndarray
  delta: np.ndarray | None = None
  factors: tuple[np.ndarray, np.ndarray] | None = None

  @property
  def is_matrix(self) -> bool:
    """Says whether the leaf is a matrix in each layer."""
    return self.base.ndim == 3

  def spectrum(self) -> Spectrum:
    """Decomposes the change of a matrix: through its factors alone, where it has them."""
    if self.factors is not None:
      return Spectrum(*spectrum(*self.factors))
    return Spectrum(*np.linalg.svd(self.delta, full_matrices=False))


def of(adapted: peft.Adapted, params: PyTree, fresh: Collection[str] = ()) -> dict[str, Change]:
  """Returns {path: change} of every leaf that the methods change.

  Args:
    params: the base's weights.
    fresh: paths of new heads, which have no pretrained weights to differ from.
  """
  flat = tree.flatten(params)
  methods = tuple(m for m in adapted.methods if changes_weights(m))
  found = {
    path: Change(_by_layer(path, quantize.weight(flat, path)), delta=None)
    for path in tree.flatten(adapted.tuned["params"])
  }
  factors = _factors(adapted, methods)
  plain = all(m.factors is not None or _only_in_place(m) for m in methods)
  if not plain or factors.keys() & found.keys():
    return _merged(adapted._replace(methods=methods), flat, fresh)
  for path, x in tree.flatten(adapted.tuned["params"]).items():
    found[path] = found[path]._replace(delta=_by_layer(path, x) - found[path].base)
  for path, parts in factors.items():
    a, b = (np.concatenate(side, axis) for side, axis in zip(parts, (-1, -2), strict=True))
    found[path] = Change(_by_layer(path, quantize.weight(flat, path)), factors=(a, b))
  return {path: change for path, change in found.items() if path not in fresh}


def changes_weights(method: peft.Method) -> bool:
  """Says whether a method changes weights, by a delta or in place."""
  return any(f is not None for f in (method.merge, method.overwrite, method.trains))


def _only_in_place(method: peft.Method) -> bool:
  return method.merge is None and method.overwrite is None


def _factors(adapted: peft.Adapted, methods: tuple[peft.Method, ...]) -> dict[str, tuple]:
  """Returns {path of a leaf: (factors a, factors b)} of all methods that have them there."""
  leaves, found = tree.flatten(adapted.base) | tree.flatten(adapted.tuned["params"]), {}
  for m in methods:
    if m.factors is None:
      continue
    trained, fixed = adapted.overlay.arrays_of(m)
    for site, arrays in trained.items():
      name = "embedding" if f"{site}/embedding" in leaves else "kernel"
      path = f"{site}/{name}"
      both = found.setdefault(path, ([], []))
      for side, x in zip(both, m.factors(fixed[site] | arrays), strict=True):
        side.append(np.asarray(x, np.float32).reshape(-1, *x.shape[-2:]))
  return found


def _merged(
  adapted: peft.Adapted, flat: dict[str, np.ndarray], fresh: Collection[str]
) -> dict[str, Change]:
  """Subtracts the base from the merged weights."""
  found = {}
  for path, x in tree.flatten(peft.merge(adapted)).items():
    base = _by_layer(path, quantize.weight(flat, path))
    delta = _by_layer(path, x) - base
    axes = tuple(range(1, base.ndim))
    size, of_base = (np.sqrt((y * y).sum(axes)) for y in (delta, base))
    delta[size <= _ROUNDING * of_base] = 0
    if delta.any() and path not in fresh:
      found[path] = Change(base, delta)
  return found


def _by_layer(path: str, x: np.ndarray) -> np.ndarray:
  """Returns a leaf in fp32 with an axis of layers, of size 1 outside of the layers."""
  x = np.asarray(x, np.float32)
  return x if "layers" in path.split("/") else x[None]
