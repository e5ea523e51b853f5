"""LoHa: W + s * (A1 B1) * (A2 B2), an elementwise product of two low-rank matrices.

Hyeon-Woo et al. 2022 (FedPara, eq. 1), named LoHa in LyCORIS (Yeh et al. 2024): two factors of rank
R make a delta of a rank up to R^2.
"""

from __future__ import annotations

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
  targets: tuple[str, ...] = ("q_proj", "v_proj"),
) -> peft.Method:
  """Adds the Hadamard product of two low-rank matrices to the weights of linear layers.

  Args:
    rank: of each of the two; at most the smaller side of every target.
    alpha: the delta's scale is alpha / rank, so that a rank sweep also changes the scale.
    scale: a fixed scale instead, the same at every rank.
    targets: regular expressions, matched against the end of the path of Linear sites.

  As in PEFT, A1 is drawn uniformly from +-1/sqrt(inputs), B1 and B2 from +-1/sqrt(rank), and A2 is
  zero. Draws of rank 4 are the start of those of rank 8, B1's and B2's up to their scale.
  """
  scale = alpha / rank if scale is None else scale
  return peft.Method(
    "loha",
    init=partial(_init, rank=rank, scale=scale, targets=targets),
    intercept=_intercept,
    merge=_merge,
    numbers=("rank", "alpha", "scale"),
    padded={"w1_a": (-1,), "w1_b": (-2,), "w2_a": (-1,), "w2_b": (-2,)},
    patterns=tuple(targets),
    options=dict(rank=rank, alpha=scale * rank),
  )


def _init(key, sites, frozen, *, rank, scale, targets):
  trained, fixed = {}, {}
  for path, site in peft.match(targets, sites, "Linear").items():
    inputs, outputs = site.inputs[0][-1], site.output
    peft.check_rank("method.rank", rank, path, (inputs, outputs))

    def draw(name, size, bound, site=site, path=path):
      sample = lambda k: jax.random.uniform(k, (*site.lead, size), minval=-bound, maxval=bound)
      return peft.draw_columns(sample, peft.site_key(key, path, name), rank)

    trained[path] = {
      "w1_a": draw("w1_a", inputs, inputs**-0.5),
      "w1_b": draw("w1_b", outputs, rank**-0.5).swapaxes(-1, -2),
      "w2_a": jnp.zeros((*site.lead, inputs, rank)),
      "w2_b": draw("w2_b", outputs, rank**-0.5).swapaxes(-1, -2),
    }
    fixed[path] = {"scale": jnp.full(site.lead, scale, jnp.float32)}
  return trained, fixed


def _delta(w: dict[str, Array]) -> Float[Array, "*L I O"]:
  return (w["w1_a"] @ w["w1_b"]) * (w["w2_a"] @ w["w2_b"])


# The backward pass makes the delta anew: three (inputs, outputs) matrices a layer are not kept.
@jax.checkpoint
def _apply(x_BTI: Float[Array, "*BT I"], w: dict[str, Array]) -> Float[Array, "*BT O"]:
  return x_BTI @ _delta(w)


def _intercept(
  module: nn.Module,
  trained: dict[str, Array],
  fixed: dict[str, Array],
  next_fn: Callable,
  x_BTI: Float[Array, "*BT I"],
) -> Float[Array, "*BT O"]:
  w = jax.tree.map(lambda array: array.astype(x_BTI.dtype), trained)
  return next_fn(x_BTI) + _apply(x_BTI, w) * fixed["scale"].astype(x_BTI.dtype)


def _merge(params, trained, fixed):
  flat = tree.flatten(params)
  for site, w in trained.items():
    flat[f"{site}/kernel"] += fixed[site]["scale"][..., None, None] * _delta(w)
  return tree.unflatten(flat)
