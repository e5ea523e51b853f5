"""Defines an encoder, in which every token attends to every other."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxtune.models.config import Config
from jaxtune.models.context import row_context
from jaxtune.models.heads import Pooler, TaskHead
from jaxtune.models.layers import Embed
from jaxtune.models.transformer import Trunk


class Encoder(nn.Module):
  """Computes a bidirectional transformer with a task's head (see `heads`), or without one.

  `model.apply(variables, tokens, mask, types)` returns the head's scores in fp32, or without a head
  the states (B, T, D). mask (B, T) is true at real tokens, with padding on either side; a row's
  real tokens are at positions 0, 1, ... types (B, T) are 0 in the first text of a pair and 1 in the
  second, by default all 0; a model without token types ignores them.
  """

  config: Config

  def setup(self):
    c = self.config
    self.embed = Embed(c.vocabulary, c.width, c.dtype)
    if c.types:
      self.types = Embed(c.types, c.width, c.dtype)
    self.trunk = Trunk(c)
    if c.head is not None:
      self.head = TaskHead(c)
      if c.head.pooler:
        self.pooler = Pooler(c.width, c.dtype)

  def __call__(
    self,
    tokens: Int[Array, "B T"],
    mask: Bool[Array, "B T"] | None = None,
    types: Int[Array, "B T"] | None = None,
  ) -> Float[Array, "B ..."]:
    c = self.config
    mask_BT = jnp.ones(tokens.shape, bool) if mask is None else mask
    x_BTD = self.embed(tokens)
    if c.types:
      x_BTD += self.types(jnp.zeros_like(tokens) if types is None else types)
    x_BTD, _ = self.trunk(x_BTD, row_context(mask_BT, causal=False))
    if c.head is None:
      return x_BTD
    return self.head(x_BTD, mask_BT, self.pooler if c.head.pooler else None, self.embed.attend)

  @staticmethod
  def trace_inputs() -> dict[str, Int[Array, "B T"]]:
    """Returns small inputs that reach every module of the model."""
    return {"tokens": jnp.zeros((1, 2), jnp.int32)}
