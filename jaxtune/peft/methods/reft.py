"""ReFT: a low-rank edit of the residual stream after each layer (Wu et al. 2024).

  loreft: h + R^T (W h + b - R h), the rows of R (r, D) orthonormal (eq. 2)
  direft: h + W_2^T (W_1 h + b), without that constraint and the difference (eq. 3)

The paper edits the first and the last few tokens of the prompt, whose numbers are chosen per task.
Here either every token is edited, generated ones included, or only the first n of each text.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxtune import peft
from jaxtune.errors import UserError
from jaxtune.models.context import Mask
from jaxtune.models.layers import lift
from jaxtune.schema import Count, Natural, Width

EVERY = 2**30  # more tokens than any text has


def method(
  rank: Width = 4,
  variant: Literal["loreft", "direft"] = "loreft",
  layers: tuple[Natural, ...] | None = None,
  first: Count | None = None,
  targets: tuple[str, ...] = ("layers",),
) -> peft.Method:
  """Edits hidden states in a learned subspace, and no weights.

  Args:
    rank: r, the rank of the edit; at most the model's width.
    variant: "loreft" or "direft".
    layers: the layers after which states are edited, counted from 0, at least one; None for all.
    first: how many tokens of each text are edited, from its start (a prompt that another method
      puts in front counts as text); None for all.
    targets: regular expressions, matched against the end of the path of Block sites:
      "decoder/layers" leaves an encoder as it is.

  All arrays are drawn uniformly from +-1/sqrt(D), PyTorch's default for linear layers. `rotate`
  (L, D, r) is W_2^T, or R^T once its columns are made orthonormal. Training starts near the base,
  not at it.
  """
  if layers is not None and not layers:
    raise UserError("method.layers is empty, expected at least one layer, or None for all")
  return peft.Method(
    "reft",
    init=partial(_init, rank=rank, layers=layers, first=first, targets=targets),
    intercept=partial(_intercept, difference=variant == "loreft"),
    reparametrise=_reparametrise if variant == "loreft" else lambda trained: trained,
    lowest=lambda depth: 0 if layers is None else min(layers),
    count_unused=_count_unused,
    groupable=("rank", "first"),
    padded_axes={"rotate": (-1,), "learned_kernel": (-1,), "learned_bias": (-1,)},
    patterns=tuple(targets),
    options=dict(rank=rank, variant=variant, first=first, layers=layers and tuple(layers)),
  )


def _init(
  key: Array, sites: dict[str, peft.Site], frozen: peft.Frozen, *, rank: int,
  layers: tuple[int, ...] | None, first: int | None, targets: tuple[str, ...],
) -> tuple[peft.Arrays, peft.Arrays]:  # fmt: skip
  trained, fixed = {}, {}
  for path, site in peft.match(targets, sites, "Block").items():
    (depth,), features = site.lead, site.input
    chosen = range(depth) if layers is None else layers
    if outside := [i for i in chosen if not 0 <= i < depth]:
      raise UserError(f"method.layers has {outside[0]}, but {path} has layers 0 to {depth - 1}")
    if rank > features:
      raise UserError(f"method.rank is {rank}, expected at most the model's width {features}")
    shape = (depth, features, rank)
    shapes = {"rotate": shape, "learned_kernel": shape, "learned_bias": (depth, rank)}
    start = peft.uniform(features**-0.5)
    trained[path] = {
      name: peft.draw(start, peft.site_key(key, path, name), shape, axis=-1)
      for name, shape in shapes.items()
    }
    edited_L = jnp.zeros(depth, bool).at[jnp.asarray([*chosen])].set(True)
    first_L = jnp.full(depth, EVERY if first is None else first)
    fixed[path] = {"first": first_L, "edited": edited_L}
  return trained, fixed


def orthonormal(a_LDR: Float[Array, "*L D R"]) -> Float[Array, "*L D R"]:
  """Returns the Q of each QR decomposition whose R has a positive diagonal; zero columns stay zero.

  As A chol(A^T A)^-T, it is smooth where the columns are independent. Column i depends on those up
  to i alone, so that columns that pad a rank change nothing and get no gradient.
  """
  gram_LRR = jnp.matmul(a_LDR.swapaxes(-1, -2), a_LDR, precision="highest")
  padded_LR = jnp.diagonal(gram_LRR, axis1=-2, axis2=-1) == 0
  lower_LRR = jnp.linalg.cholesky(gram_LRR + padded_LR[..., None] * jnp.eye(a_LDR.shape[-1])[None])
  solve = partial(jax.lax.linalg.triangular_solve, lower=True, transpose_a=True)
  return solve(lower_LRR, a_LDR)


def _reparametrise(trained: peft.Arrays) -> peft.Arrays:
  return {
    path: arrays | {"rotate": orthonormal(arrays["rotate"])} for path, arrays in trained.items()
  }


def _intercept(call: peft.Call, *args: Any, difference: bool) -> tuple[Float[Array, "B T D"], Any]:
  """Edits the states that a layer returns beside its cache; the last of `args` is `Shared`."""
  h_BTD, cache = call.next_fn(*args)
  arrays = call.arrays
  rotate_DR, kernel_DR = arrays["rotate"], arrays["learned_kernel"]
  if difference:  # W h - R h at once
    kernel_DR = kernel_DR - rotate_DR
  low_BTR = h_BTD @ kernel_DR.astype(h_BTD.dtype)
  low_BTR = low_BTR + lift(arrays["learned_bias"].astype(h_BTD.dtype), low_BTR)
  edit_BTD = low_BTR @ rotate_DR.T.astype(h_BTD.dtype)
  chosen_BT = arrays["edited"] & (_positions(h_BTD.shape[1], args[-1].mask) < arrays["first"])
  return h_BTD + jnp.where(chosen_BT[..., None], edit_BTD, 0), cache


def _positions(length: int, mask: Mask) -> Int[Array, "B T"]:
  """Returns the place (B, T) of each token in its text, the same with and without a cache."""
  if mask.causal:
    return mask.array(length)[:, 0].sum(-1) - 1
  return jnp.cumsum(mask.keys, -1) - 1


def _count_unused(trained: peft.Arrays, fixed: peft.Arrays) -> Array | int:
  """Counts the trained numbers of layers that are not edited."""
  rest = lambda path: (~fixed[path]["edited"]).sum()
  return sum(rest(path) * x[0].size for path, arrays in trained.items() for x in arrays.values())
