"""A causal language model, and the key/value cache it decodes with."""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxtune.models.config import Config
from jaxtune.models.heads import TaskHead
from jaxtune.models.layers import Embed, Linear
from jaxtune.models.transformer import Context, Trunk


class Cache(NamedTuple):
  """Keys and values of the tokens decoded so far.

  Attributes:
    layers: {"self": (keys, values)}, each (L, B, S, K, H), room for S tokens. After the first step
      of an encoder-decoder also {"cross": (keys, values)}, made of the encoder's states.
    mask: (B, S), false at the padding left of a short prompt, true at every other slot.
    index: (), how many slots are filled.
    encoded: of an encoder-decoder, the encoder's (states (B, S, D), mask (B, S)); the states are
      None once layers["cross"] is there.
  """

  layers: Any
  mask: jax.Array
  index: jax.Array
  encoded: Any = None

  def view(self, length: int):
    """Returns what the next T tokens see, (B, 1, T, S), and their positions (B, T)."""
    slots_S, queries_T = jnp.arange(self.mask.shape[1]), self.index + jnp.arange(length)
    causal_TS = slots_S[None] <= queries_T[:, None]
    positions_BS = jnp.maximum(jnp.cumsum(self.mask, 1) - 1, 0)
    positions_BT = jax.lax.dynamic_slice_in_dim(positions_BS, self.index, length, 1)
    return causal_TS[None, None] & self.mask[:, None, None, :], positions_BT


def new_cache(config: Config, prompt_mask_BT, slots: int) -> Cache:
  """Makes an empty cache of `slots` tokens for left-padded prompts (B, T)."""
  batch, length = prompt_mask_BT.shape
  shape = (config.layers, batch, slots, config.kv_heads, config.head_size)
  empty = jnp.zeros(shape, config.dtype)
  mask = jnp.pad(prompt_mask_BT, ((0, 0), (0, slots - length)), constant_values=True)
  return Cache({"self": (empty, empty)}, mask, jnp.zeros((), jnp.int32))


class Decoder(nn.Module):
  """A causal transformer with a language model's head, or a task's (see `heads`).

  `model.apply(variables, tokens, mask)` gives logits (B, T, V) in fp32, where mask (B, T) is true
  on real tokens (padding on either side). Each row's real tokens are at positions 0, 1, ...
  `segments` (B, T) packs several examples into a row: 1, 2, ... by example, 0 on padding; none sees
  another, and each starts at position 0.
  """

  config: Config

  def setup(self):
    c = self.config
    self.embed = Embed(c.vocabulary, c.width, c.dtype)
    self.trunk = Trunk(c)
    if c.head is not None:
      self.head: Any = TaskHead(c)
    elif not c.tied:
      self.head = Linear(c.width, c.vocabulary, dtype=c.dtype)

  def __call__(self, tokens, mask=None, segments=None):
    if mask is None:
      mask = jnp.ones(tokens.shape, bool)
    length = tokens.shape[1]
    seen_B1TS = jnp.tril(jnp.ones((length, length), bool))[None, None] & mask[:, None, None, :]
    positions_BT = jnp.maximum(jnp.cumsum(mask, 1) - 1, 0)
    if segments is not None:
      seen_B1TS &= (segments[:, :, None] == segments[:, None, :])[:, None]
      starts_BT = jnp.diff(segments, axis=1, prepend=segments[:, :1]) != 0
      first_BT = jax.lax.cummax(jnp.where(starts_BT, positions_BT, 0), axis=1)
      positions_BT = positions_BT - first_BT
    x_BTD, _ = self.trunk(self._embed(tokens), Context(seen_B1TS, positions_BT))
    return self.logits(x_BTD) if self.config.head is None else self.head(x_BTD, mask)

  def decode(self, tokens_BT, cache):
    """Continues a `Cache` by T tokens: returns the last token's logits (B, V) and the cache."""
    context = Context(*cache.view(tokens_BT.shape[1]), cache.layers, cache.index)
    x_BTD, layers = self.trunk(self._embed(tokens_BT), context)
    cache = cache._replace(layers=layers, index=cache.index + tokens_BT.shape[1])
    return self.logits(x_BTD[:, -1:])[:, 0], cache

  def begin_decoding(self, prompts_BT, mask_BT, new_tokens: int):
    """Returns what `decode` reads first, the left-padded prompts, and a cache with room."""
    return prompts_BT, new_cache(self.config, mask_BT, prompts_BT.shape[1] + new_tokens)

  @staticmethod
  def trace_inputs() -> dict:
    """Returns the smallest inputs that reach every module of the model."""
    return {"tokens": jnp.zeros((1, 2), jnp.int32)}

  def _embed(self, tokens_BT):
    x_BTD = self.embed(tokens_BT)
    return x_BTD * jnp.asarray(self.config.embed_scale, x_BTD.dtype)

  def logits(self, x_BTD):
    """Scores hidden states against the vocabulary: (B, T, V) in fp32."""
    c = self.config
    x_BTD = x_BTD * jnp.asarray(c.logit_scale, x_BTD.dtype)
    y = (self.embed.attend(x_BTD) if c.tied else self.head(x_BTD)).astype(jnp.float32)
    return y if c.logit_softcap is None else c.logit_softcap * jnp.tanh(y / c.logit_softcap)
