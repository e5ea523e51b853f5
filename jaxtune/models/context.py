"""Describes which keys tokens attend to and which positions they have."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class Context(NamedTuple):
  """Holds what a trunk reads beside the embedded tokens.

  Attributes:
    mask: true where a token may attend to a key.
    positions: the position of each token.
    cache: `decoder.Cache.layers`; None without a cache.
    index: the slot of the cache that the first of the T tokens is written to; None without a cache.
    encoded: the encoder's (states (B, S, D), mask (B, S)); None without an encoder.
  """

  mask: Bool[Array, "B 1 T S"]
  positions: Int[Array, "B T"]
  cache: Any = None
  index: Any = None
  encoded: Any = None


def row_context(mask_BT: Bool[Array, "B T"], causal: bool) -> Context:
  """Returns the context of whole rows, whose real tokens are at positions 0, 1, ...

  A token attends to the real tokens of its row, at which `mask_BT` is true: to all of them, or if
  `causal` to those up to itself.
  """
  length = mask_BT.shape[1]
  seen_TS = jnp.ones((length, length), bool)
  seen_TS = jnp.tril(seen_TS) if causal else seen_TS
  positions_BT = jnp.maximum(jnp.cumsum(mask_BT, 1) - 1, 0)
  return Context(seen_TS[None, None] & mask_BT[:, None, None, :], positions_BT)


class Shared(NamedTuple):
  """Holds what all layers read.

  Attributes:
    index: the slot of the cache that the first of the T tokens is written to; None without a cache.
    mask: true where a token may attend to a key.
    window_mask: true at keys within the window of local layers; None without a window.
    tables: cos and sin of rotary positions; None for a model without them.
    local_tables: those of local layers; None if they are the same.
    bias: relative biases, which are added to the scores; None for a model without them.
    encoded, encoded_mask: the encoder's states and mask; None without an encoder. The states are
      also None once the cache holds the keys and values computed from them.
  """

  index: Any
  mask: Bool[Array, "B 1 T S"]
  window_mask: Bool[Array, "1 1 T S"] | None
  tables: tuple[Array, Array] | None
  local_tables: tuple[Array, Array] | None
  bias: Float[Array, "1 N T S"] | None
  encoded: Float[Array, "B S D"] | None
  encoded_mask: Bool[Array, "B 1 1 S"] | None
