"""Describes which keys tokens attend to and which positions they have."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

ANY = -1  # the segment of keys that queries of all segments attend to


class Mask(struct.PyTreeNode):
  """Says which keys each query attends to, by rules that fused kernels know too.

  A query attends to the keys that are real, and for which all further rules hold that are given.
  The query at t is at the slot `start + t` among the S slots of keys.

  Attributes:
    keys: whether a key is real.
    causal: whether a query cannot attend to the slots behind its own.
    start: the slot of the query, with a cache, whose slots are used in a circle: the ones behind
      `start` are the oldest. None without a cache, where queries and keys have the same slots.
    segments: a query attends to keys of its own segment, and to those of the segment ANY. Queries
      and keys then have the same slots.
    open: whether there may be keys of the segment ANY.
    window: a query attends to slots at a distance below this.
    local: whether the window counts in this layer; None where it does.
    front: (P,), more keys, in front of all slots, and whether each is real; every query attends to
      these, whatever the other rules say.
  """

  keys: Bool[Array, "B S"]
  causal: bool = struct.field(pytree_node=False, default=False)
  start: Int[Array, ""] | None = None
  segments: Int[Array, "B S"] | None = None
  open: bool = struct.field(pytree_node=False, default=False)
  window: int | None = struct.field(pytree_node=False, default=None)
  local: Bool[Array, ""] | None = None
  front: Bool[Array, " P"] | None = None

  def array(self, length: int) -> Bool[Array, "B 1 #T _"]:
    """Returns the mask of `length` queries, with one row for all where they see the same keys."""
    seen_B1TS = self.keys[:, None, None]
    ahead_TS = self.ahead(length)
    if self.causal:
      seen_B1TS &= (ahead_TS <= 0)[None, None]
    if self.window is not None:
      near_TS = jnp.abs(ahead_TS) < self.window
      near_TS = near_TS if self.local is None else near_TS | ~self.local
      seen_B1TS &= near_TS[None, None]
    if self.segments is not None:
      of_keys_B1S = self.segments[:, None]
      same_BTS = (self.segments[:, :, None] == of_keys_B1S) | (of_keys_B1S == ANY)
      seen_B1TS &= same_BTS[:, None]
    if self.front is None:
      return seen_B1TS
    front_B1TP = jnp.broadcast_to(self.front, (*seen_B1TS.shape[:-1], len(self.front)))
    return jnp.concatenate([front_B1TP, seen_B1TS], -1)

  def ahead(self, length: int) -> Int[Array, "T S"]:
    """Returns how many slots each key is ahead of each of `length` queries."""
    slots_S = jnp.arange(self.keys.shape[1])
    if self.start is not None:
      return -((self.start - slots_S) % len(slots_S))[None]
    return slots_S[None] - jnp.arange(length)[:, None]


class Context(NamedTuple):
  """Holds what a trunk reads beside the embedded tokens.

  Attributes:
    mask: which keys each token attends to.
    positions: the position of each token.
    cache: `decoder.Cache.layers`, to which the one token is added; {} to begin a cache with the T
      tokens; None without a cache.
    index: the slot of the cache that the token is written to; None without one to add to.
    encoded: the encoder's (states (B, S, D), mask (B, S)); None without an encoder.
    after: how many tokens may follow the last one.
  """

  mask: Mask
  positions: Int[Array, "B T"]
  cache: Any = None
  index: Any = None
  encoded: Any = None
  after: Any = 0


def row_context(mask_BT: Bool[Array, "B T"], causal: bool) -> Context:
  """Returns the context of whole rows, whose real tokens are at positions 0, 1, ...

  A token attends to the real tokens of its row, at which `mask_BT` is true: to all of them, or if
  `causal` to those up to itself.
  """
  return Context(Mask(mask_BT, causal), jnp.maximum(jnp.cumsum(mask_BT, 1) - 1, 0))


class Shared(NamedTuple):
  """Holds what all layers read.

  Attributes:
    index: the slot of the cache that the token is written to; None without one to add to.
    mask: which keys each token attends to, without the window of local layers.
    tables: cos and sin of rotary positions; None for a model without them.
    local_tables: those of local layers; None if they are the same.
    bias: relative biases, which are added to the scores; None for a model without them.
    encoded, encoded_mask: the encoder's states, and which of them are real; None without an
      encoder. The states are also None once the cache holds the keys and values of them.
  """

  index: Any
  mask: Mask
  tables: tuple[Array, Array] | None
  local_tables: tuple[Array, Array] | None
  bias: Float[Array, "1 N T S"] | None
  encoded: Float[Array, "B S D"] | None
  encoded_mask: Mask | None
