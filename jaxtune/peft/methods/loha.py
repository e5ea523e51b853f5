"""LoHa: W + s * (A1 B1) * (A2 B2), an elementwise product of two low-rank matrices.

Hyeon-Woo et al. 2022 (FedPara, eq. 1), named LoHa in LyCORIS (Yeh et al. 2024): two factors of rank
R make a delta whose rank is up to R^2.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxtune import peft
from jaxtune.models.layers import times
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
    rank: rank of each of the two matrices; at most the smaller side of every target.
    alpha: numerator of the delta's scale alpha / rank, so that a rank sweep also changes the scale.
    scale: the delta's scale itself, in place of alpha / rank; the same at every rank.
    targets: regular expressions, matched against the end of the path of Linear sites.

  As in PEFT, A1 is drawn uniformly from +-1/sqrt(inputs), B1 and B2 from +-1/sqrt(rank), and A2 is
  zero. Rank 4 draws the first half of what rank 8 does, apart from the scale of B1 and B2.
  """
  scale = alpha / rank if scale is None else scale
  return peft.Method(
    "loha",
    init=partial(_init, rank=rank, scale=scale, targets=targets),
    intercept=_intercept,
    merge=_merge,
    groupable=("rank", "alpha", "scale"),
    padded_axes={"w1_a": (-1,), "w1_b": (-2,), "w2_a": (-1,), "w2_b": (-2,)},
    patterns=tuple(targets),
    options=dict(rank=rank, alpha=scale * rank),
  )


def _init(
  key: Array, sites: dict[str, peft.Site], frozen: peft.Frozen, *,
  rank: int, scale: float, targets: tuple[str, ...],
) -> tuple[peft.Arrays, peft.Arrays]:  # fmt: skip
  trained, fixed = {}, {}
  for path, site in peft.match(targets, sites, "Linear").items():
    peft.check_rank("method.rank", rank, path, (site.input, site.output))
    a_shape, b_shape = (*site.lead, site.input, rank), (*site.lead, rank, site.output)
    keys = {name: peft.site_key(key, path, name) for name in ("w1_a", "w1_b", "w2_b")}
    trained[path] = {
      "w1_a": peft.draw(peft.uniform(site.input**-0.5), keys["w1_a"], a_shape, axis=-1),
      "w1_b": peft.draw(peft.uniform(rank**-0.5), keys["w1_b"], b_shape, axis=-2),
      "w2_a": jnp.zeros(a_shape),
      "w2_b": peft.draw(peft.uniform(rank**-0.5), keys["w2_b"], b_shape, axis=-2),
    }
    fixed[path] = site.constants({"scale": scale})
  return trained, fixed


def _delta(w: dict[str, Array]) -> Float[Array, "*L I O"]:
  return (w["w1_a"] @ w["w1_b"]) * (w["w2_a"] @ w["w2_b"])


def _intercept(call: peft.Call, x_BTI: Float[Array, "*BT I"]) -> Float[Array, "*BT O"]:
  w = call.cast(x_BTI.dtype)
  # The backward pass computes the delta again: three matrices of W's size per layer are not kept.
  product_BTO = jax.checkpoint(lambda x_BTI, w: x_BTI @ _delta(w))(x_BTI, w)
  return call.next_fn(x_BTI) + times(product_BTO, call.arrays["scale"])


def _merge(leaves: dict[str, Array], w: dict[str, Array]) -> dict[str, Array]:
  return {"kernel": leaves["kernel"] + w["scale"][..., None, None] * _delta(w)}
