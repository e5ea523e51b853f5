"""LoKr: W + s * kron(W1, W2), a Kronecker product (KronA, Edalati et al. 2022; Yeh et al. 2024).

W2 is low-rank, W2 = A2 B2, where the rank is below half of its larger side, as in LyCORIS and PEFT.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxtune import peft, tree
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
    rank: of W2; where it is at least half of W2's larger side, W2 is trained whole. It so decides
      which arrays there are: trials of different ranks are programs of their own.
    alpha: the delta's scale is alpha / rank, whether W2 is whole or not.
    scale: a fixed scale instead, the same at every rank.
    factor: W1's sides; a size that it does not divide is split into the two divisors nearest each
      other of which the smaller is at most `factor`. None: near the square root of each size.
    decompose_both: whether W1 may be low-rank too, by the same rule.
    targets: regular expressions, matched against the end of the path of Linear sites.

  As in PEFT, W1 (or its B1) is zero, W2 and every A are drawn uniformly from +-1/sqrt(their
  inputs), and B2 from +-1/sqrt(rank).
  """
  scale = alpha / rank if scale is None else scale
  shapes = dict(rank=rank, factor=factor, decompose_both=decompose_both)
  return peft.Method(
    "lokr",
    init=partial(_init, scale=scale, targets=targets, **shapes),
    intercept=_intercept,
    merge=_merge,
    numbers=("alpha", "scale"),
    patterns=tuple(targets),
    options=shapes | dict(alpha=scale * rank),
  )


def split(size: int, factor: int | None) -> tuple[int, int]:
  """Splits a size into (smaller, larger) sides; a factor that divides it is always the first."""
  if factor is not None and size % factor == 0:
    return factor, size // factor
  small = max(n for n in range(1, min(factor or size, math.isqrt(size)) + 1) if size % n == 0)
  return small, size // small


def _init(key, sites, frozen, *, rank, scale, factor, decompose_both, targets):
  trained, fixed = {}, {}
  for path, site in peft.match(targets, sites, "Linear").items():
    (in1, in2), (out1, out2) = split(site.inputs[0][-1], factor), split(site.output, factor)

    def draw(name, *shape, fan, site=site, path=path):
      shape, bound = (*site.lead, *shape), fan**-0.5
      return jax.random.uniform(peft.site_key(key, path, name), shape, minval=-bound, maxval=bound)

    if decompose_both and rank < max(in1, out1) / 2:
      w1 = {"w1_a": draw("w1_a", in1, rank, fan=in1), "w1_b": jnp.zeros((*site.lead, rank, out1))}
    else:
      w1 = {"w1": jnp.zeros((*site.lead, in1, out1))}
    if rank < max(in2, out2) / 2:
      w2 = {"w2_a": draw("w2_a", in2, rank, fan=in2), "w2_b": draw("w2_b", rank, out2, fan=rank)}
    else:
      w2 = {"w2": draw("w2", in2, out2, fan=in2)}
    trained[path] = w1 | w2
    fixed[path] = {"scale": jnp.full(site.lead, scale, jnp.float32)}
  return trained, fixed


def _factor(w: dict[str, Array], name: str) -> Float[Array, "*L I O"]:
  """Returns W1 or W2 as a whole."""
  return w[name] if name in w else w[f"{name}_a"] @ w[f"{name}_b"]


def _intercept(
  module: nn.Module,
  trained: dict[str, Array],
  fixed: dict[str, Array],
  next_fn: Callable,
  x_BTI: Float[Array, "*BT I"],
) -> Float[Array, "*BT O"]:
  """Multiplies by the factors in turn: kron(W1, W2) is never made."""
  w = jax.tree.map(lambda array: array.astype(x_BTI.dtype), trained)
  w1_IO, first_IR = _factor(w, "w1"), w["w2"] if "w2" in w else w["w2_a"]
  h_BTIR = x_BTI.reshape(*x_BTI.shape[:-1], w1_IO.shape[0], first_IR.shape[0]) @ first_IR
  h_BTOR = jnp.einsum("...ir,io->...or", h_BTIR, w1_IO)
  h_BTOM = h_BTOR if "w2" in w else h_BTOR @ w["w2_b"]
  delta_BTO = h_BTOM.reshape(*x_BTI.shape[:-1], h_BTOM.shape[-2] * h_BTOM.shape[-1])
  return next_fn(x_BTI) + delta_BTO * fixed["scale"].astype(x_BTI.dtype)


def _merge(params, trained, fixed):
  flat = tree.flatten(params)
  for site, w in trained.items():
    w1, w2 = _factor(w, "w1"), _factor(w, "w2")
    delta = jnp.einsum("...ij,...kl->...ikjl", w1, w2).reshape(flat[f"{site}/kernel"].shape)
    flat[f"{site}/kernel"] += fixed[site]["scale"][..., None, None] * delta
  return tree.unflatten(flat)
