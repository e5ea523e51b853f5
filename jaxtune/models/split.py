"""How a mesh splits what attention reads: rows, tokens and heads."""

from __future__ import annotations

import jax
from jax.sharding import PartitionSpec

from jaxtune import sharding


def axes_of_heads(count: int) -> tuple[str, ...]:
  """Returns the axes that split the heads of attention, of which keys have `count`.

  Where it divides them, "sequence" gives each device whole rows of some heads (Jacobs et al. 2023).
  All then have equally much to do, also if a token attends to those before it alone.
  """
  axes = ("tensor", "sequence")
  return axes if sharding.splits(count, *axes) else axes[:1]


def heads(x_BTNH: jax.Array, gather: bool = False) -> jax.Array:
  """Splits the tokens of queries, keys or values by "sequence", or gathers those of each row."""
  free = PartitionSpec.UNCONSTRAINED  # "tensor" may split the axis of heads
  if sharding.size("sequence") == 1:
    return x_BTNH
  return sharding.constrain(x_BTNH, sharding.ROWS, None if gather else "sequence", free, free)
