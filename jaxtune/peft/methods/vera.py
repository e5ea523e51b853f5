"""VeRA: y = W x + b * B (d * A x); A, B random and frozen, d, b trained (Kopiczko et al. 2024).

One pair A (R, inputs), B (outputs, R) serves every target: a smaller site reads the first columns
of A and rows of B.
"""

from __future__ import annotations

from functools import partial

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxtune import peft
from jaxtune.errors import UserError
from jaxtune.models.layers import lift
from jaxtune.schema import Finite, Width


def method(
  *, rank: Width = 256, d_initial: Finite = 0.1, targets: tuple[str, ...] = ("q_proj", "v_proj")
) -> peft.Method:
  """Adds a delta of two trained vectors to linear layers (eq. 2).

  Args:
    rank: number of rows of A, columns of B and entries of d. It may exceed the targets' sizes.
    d_initial: value at which d starts; not 0, because b starts at zero. There is no other scale.
    targets: regular expressions, matched against the end of the path of Linear sites.

  A and B are drawn as PEFT does, uniformly from +-sqrt(6 / fan in), where the fan in is the largest
  target's number of inputs for A and the rank for B. Rank 4 draws the first half of what rank 8
  does, apart from the scale of B.
  """
  if not d_initial:
    raise UserError("method.d_initial is 0: as b starts at zero too, nothing would ever move")
  return peft.Method(
    "vera",
    init=partial(_init, rank=rank, d_initial=d_initial, targets=targets),
    intercept=_intercept,
    merge=_merge,
    factors=_factors,
    groupable=("rank", "d_initial"),
    padded_axes={"d": (-1,), "shared:a": (-1,), "shared:b": (-2,)},
    patterns=tuple(targets),
    options=dict(rank=rank, d_initial=d_initial),
  )


def _init(
  key: Array, sites: dict[str, peft.Site], frozen: peft.Frozen, *,
  rank: int, d_initial: float, targets: tuple[str, ...],
) -> tuple[peft.Arrays, peft.Arrays]:  # fmt: skip
  chosen = peft.match(targets, sites, "Linear")
  inputs = max(site.input for site in chosen.values())
  outputs = max(site.output for site in chosen.values())
  a_key, b_key = peft.site_key(key, "a"), peft.site_key(key, "b")
  a_IR = peft.draw(peft.uniform((6 / inputs) ** 0.5), a_key, (inputs, rank), axis=1)
  b_RO = peft.draw(peft.uniform((6 / rank) ** 0.5), b_key, (rank, outputs), axis=0)
  trained, fixed = {}, {}
  for path, site in chosen.items():
    d_LR = jnp.full((*site.lead, rank), d_initial, jnp.float32)
    trained[path] = {"d": d_LR, "b": jnp.zeros((*site.lead, site.output))}
    fixed[path] = {"shared:a": a_IR[: site.input], "shared:b": b_RO[:, : site.output]}
  return trained, fixed


def _intercept(call: peft.Call, x_BTI: Float[Array, "*BT I"]) -> Float[Array, "*BT O"]:
  w = call.cast(x_BTI.dtype)
  low_BTR = x_BTI @ w["shared:a"]
  delta_BTO = (low_BTR * lift(w["d"], low_BTR)) @ w["shared:b"]
  return call.next_fn(x_BTI) + delta_BTO * lift(w["b"], delta_BTO)


def _factors(w: dict[str, Array]) -> tuple[Float[Array, "*L I R"], Float[Array, "*L R O"]]:
  a_LIR = jnp.einsum("ir,...r->...ir", w["shared:a"], w["d"])
  return a_LIR, jnp.einsum("ro,...o->...ro", w["shared:b"], w["b"])


def _merge(leaves: dict[str, Array], w: dict[str, Array]) -> dict[str, Array]:
  a_LIR, b_LRO = _factors(w)
  return {"kernel": leaves["kernel"] + a_LIR @ b_LRO}
