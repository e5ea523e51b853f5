"""LoKr: W + s * kron(W1, W2), a Kronecker product (KronA, Edalati et al. 2022; Yeh et al. 2024).

W2 is low-rank, W2 = A2 B2, where the rank is below half of its larger side, as in LyCORIS and PEFT.
"""

from __future__ import annotations

import math
from functools import partial

import jax.numpy as jnp
from jax.nn import initializers
from jaxtyping import Array, Float

from jaxtune import peft
from jaxtune.models.layers import times
from jaxtune.schema import Finite, Width


def method(
  *,
  rank: Width = 8,
  alpha: Finite = 8.0,
  scale: Finite | None = None,
  factor: Width | None = None,
  decompose_both: bool = False,
  targets: tuple[str, ...] = ("q_proj", "v_proj"),
) -> peft.Method:
  """Adds the Kronecker product of a small and a low-rank matrix to the weights of linear layers.

  Args:
    rank: rank of W2; where it is at least half of W2's larger side, W2 is trained as a full matrix.
      So the rank decides which arrays there are, and trials of different ranks share no program.
    alpha: numerator of the delta's scale alpha / rank, also where W2 is a full matrix.
    scale: the delta's scale itself, in place of alpha / rank; the same at every rank.
    factor: number of W1's rows and of its columns, where it divides those of the weight; otherwise
      see `split`. None: near the square roots of the weight's sides.
    decompose_both: whether W1 may be low-rank too, by the same rule.
    targets: regular expressions, matched against the end of the path of Linear sites.

  As in PEFT, W1 (or its B1) is zero, W2 and every A are drawn uniformly from +-1/sqrt(their
  rows), and B2 from +-1/sqrt(rank).
  """
  scale = alpha / rank if scale is None else scale
  sizes = dict(rank=rank, factor=factor, decompose_both=decompose_both)
  return peft.Method(
    "lokr",
    init=partial(_init, scale=scale, targets=targets, **sizes),
    intercept=_intercept,
    merge=_merge,
    groupable=("alpha", "scale"),
    patterns=tuple(targets),
    options=sizes | dict(alpha=scale * rank),
  )


def split(size: int, factor: int | None) -> tuple[int, int]:
  """Splits a size into two factors, the sides of W1 and of W2.

  The first is `factor` where that divides the size. Otherwise it is the largest divisor that is
  neither above the square root of the size nor above `factor`.
  """
  if factor is not None and size % factor == 0:
    return factor, size // factor
  small = max(n for n in range(1, min(factor or size, math.isqrt(size)) + 1) if size % n == 0)
  return small, size // small


def shapes(
  inputs: int, outputs: int, rank: int, factor: int | None, decompose_both: bool
) -> dict[str, tuple[int, int]]:
  """Returns {array: its shape} for a weight: which arrays there are depends on the rank."""
  (in1, in2), (out1, out2) = split(inputs, factor), split(outputs, factor)
  found = {}
  for name, size, low in (("w1", (in1, out1), decompose_both), ("w2", (in2, out2), True)):
    if low and rank < max(size) / 2:
      found |= {f"{name}_a": (size[0], rank), f"{name}_b": (rank, size[1])}
    else:
      found[name] = size
  return found


def _init(
  key: Array, sites: dict[str, peft.Site], frozen: peft.Frozen, *, rank: int,
  scale: float, factor: int | None, decompose_both: bool, targets: tuple[str, ...],
) -> tuple[peft.Arrays, peft.Arrays]:  # fmt: skip
  trained, fixed = {}, {}
  for path, site in peft.match(targets, sites, "Linear").items():
    trained[path] = {}
    sizes = shapes(site.input, site.output, rank, factor, decompose_both)
    for name, (rows, columns) in sizes.items():
      start = initializers.zeros if name in ("w1", "w1_b") else peft.uniform(rows**-0.5)
      array_key = peft.site_key(key, path, name)
      trained[path][name] = start(array_key, (*site.lead, rows, columns))
    fixed[path] = site.constants({"scale": scale})
  return trained, fixed


def _factor(w: dict[str, Array], name: str) -> Float[Array, "*L I O"]:
  """Returns W1 or W2 as a full matrix."""
  return w[name] if name in w else w[f"{name}_a"] @ w[f"{name}_b"]


def _intercept(call: peft.Call, x_BTI: Float[Array, "*BT I"]) -> Float[Array, "*BT O"]:
  """Multiplies by the two factors in turn, so that kron(W1, W2) is never computed."""
  w = call.cast(x_BTI.dtype)
  w1_IO, first_IR = _factor(w, "w1"), w["w2"] if "w2" in w else w["w2_a"]
  h_BTIR = x_BTI.reshape(*x_BTI.shape[:-1], w1_IO.shape[0], first_IR.shape[0]) @ first_IR
  h_BTOR = jnp.einsum("...ir,io->...or", h_BTIR, w1_IO)
  h_BTOM = h_BTOR if "w2" in w else h_BTOR @ w["w2_b"]
  delta_BTO = h_BTOM.reshape(*x_BTI.shape[:-1], h_BTOM.shape[-2] * h_BTOM.shape[-1])
  return call.next_fn(x_BTI) + times(delta_BTO, call.arrays["scale"])


def _merge(leaves: dict[str, Array], w: dict[str, Array]) -> dict[str, Array]:
  kernel_LIO = leaves["kernel"]
  factors = jnp.einsum("...ij,...kl->...ikjl", _factor(w, "w1"), _factor(w, "w2"))
  return {"kernel": kernel_LIO + w["scale"][..., None, None] * factors.reshape(kernel_LIO.shape)}
