"""What tokens see and where they stand: of a model's trunk, and of each of its layers."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class Context(NamedTuple):
  """What tokens see, and where they stand, as a trunk reads it.

  Attributes:
    mask: which keys a token sees.
    positions: of the tokens.
    cache: what `decoder.Cache` holds of each layer; None without a cache.
    index: where in the cache the T tokens are written.
    encoded: the encoder's (states (B, S, D), mask (B, S)); None without an encoder.
  """

  mask: Bool[Array, "B 1 T S"]
  positions: Int[Array, "B T"]
  cache: Any = None
  index: Any = None
  encoded: Any = None


def row_context(mask_BT: Bool[Array, "B T"], causal: bool) -> Context:
  """Returns the context of whole rows, whose real tokens are at positions 0, 1, ...

  A token sees every real token, those that `mask_BT` is true on, or where `causal` those up to it.
  """
  length = mask_BT.shape[1]
  seen_TS = jnp.ones((length, length), bool)
  seen_TS = jnp.tril(seen_TS) if causal else seen_TS
  positions_BT = jnp.maximum(jnp.cumsum(mask_BT, 1) - 1, 0)
  return Context(seen_TS[None, None] & mask_BT[:, None, None, :], positions_BT)


class Shared(NamedTuple):
  """What every layer reads alike.

  Attributes:
    index: where in the cache the T tokens are written; None without a cache.
    mask: which keys a token sees.
    near: which of them a local layer sees; None without a window.
    tables, local_tables: rotary angles, None where there are none.
    bias: is added to the scores; None but for relative positions.
    encoded, encoded_mask: the encoder's states and mask; None without one. The states are None too
      where the cache holds the keys and values made of them.
  """

  index: Any
  mask: Bool[Array, "B 1 T S"]
  near: Bool[Array, "1 1 T S"] | None
  tables: tuple[Array, Array] | None
  local_tables: tuple[Array, Array] | None
  bias: Float[Array, "1 N T S"] | None
  encoded: Float[Array, "B S D"] | None
  encoded_mask: Bool[Array, "B 1 1 S"] | None
