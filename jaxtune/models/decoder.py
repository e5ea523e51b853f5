"""A pre-norm decoder: the forward pass that GPT-2, Llama and their relatives share.

What differs between families is stated once, in `Config`; how a Hugging Face folder maps to it is
in the family's own file (`gpt2`, `llama`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxtune.models.layers import (
  ACTIVATIONS,
  Attend,
  Embed,
  Linear,
  Norm,
  Residual,
  Rope,
  rope_tables,
  rotate,
)


@dataclass(frozen=True)
class Config:
  """The shape of a decoder, and how it is computed.

  Attributes:
    positions: the longest sequence (tokens, prefix included) the model can place.
    rope: rotary positions; None means a learned table of `positions` rows (GPT-2).
    centre_norm: LayerNorm with bias where true, RMSNorm where false.
    gated: the feed-forward is down(act(gate(x)) * up(x)), else down(act(up(x))).
    dtype: of activations and matrix products; softmax, norms and logits are fp32.
    remat: recompute each block's activations in the backward pass instead of storing them.
    unroll: how many layers one iteration of the layer loop runs.
  """

  vocabulary: int
  width: int
  layers: int
  heads: int
  kv_heads: int
  head_size: int
  ffn: int
  positions: int
  epsilon: float = 1e-5
  rope: Rope | None = Rope()
  centre_norm: bool = False
  activation: str = "silu"
  gated: bool = True
  attention_bias: bool = False
  ffn_bias: bool = False
  tied: bool = True
  dtype: Any = jnp.float32
  remat: bool = False
  unroll: int = 1
  attention: str | None = None

  def norm(self, name=None):
    return Norm(self.width, self.epsilon, self.centre_norm, self.dtype, name=name)


class Cache(NamedTuple):
  """Keys and values of the tokens decoded so far.

  Attributes:
    keys_values: two arrays (L, B, S, K, H), room for S tokens.
    mask: (B, S), false at the padding left of a short prompt, true at every other slot.
    index: (), how many slots are filled.
  """

  keys_values: tuple[jax.Array, jax.Array]
  mask: jax.Array
  index: jax.Array


def new_cache(config: Config, prompt_mask_BT, slots: int) -> Cache:
  """Makes an empty cache of `slots` tokens for left-padded prompts (B, T)."""
  batch, length = prompt_mask_BT.shape
  shape = (config.layers, batch, slots, config.kv_heads, config.head_size)
  empty = jnp.zeros(shape, config.dtype)
  mask = jnp.pad(prompt_mask_BT, ((0, 0), (0, slots - length)), constant_values=True)
  return Cache((empty, empty), mask, jnp.zeros((), jnp.int32))


class Attention(nn.Module):
  """Grouped-query self-attention over the given keys, or over those of the cache."""

  config: Config

  def setup(self):
    c = self.config
    linear = partial(Linear, use_bias=c.attention_bias, dtype=c.dtype)
    self.q_proj = linear(c.width, c.heads * c.head_size)
    self.k_proj = linear(c.width, c.kv_heads * c.head_size)
    self.v_proj = linear(c.width, c.kv_heads * c.head_size)
    self.o_proj = linear(c.heads * c.head_size, c.width)
    self.attend = Attend(c.attention)

  def __call__(self, x_BTD, cache, index, mask_B1TS, tables):
    split = lambda y: y.reshape(*y.shape[:2], -1, self.config.head_size)
    q, k, v = split(self.q_proj(x_BTD)), split(self.k_proj(x_BTD)), split(self.v_proj(x_BTD))
    if tables is not None:
      q, k = rotate(q, tables), rotate(k, tables)
    if cache is not None:
      write = lambda old, new: jax.lax.dynamic_update_slice_in_dim(old, new, index, 1)
      k, v = cache = jax.tree.map(write, cache, (k, v))
    y_BTNH = self.attend(q, k, v, mask_B1TS)
    return self.o_proj(y_BTNH.reshape(*x_BTD.shape[:2], -1)), cache


class FeedForward(nn.Module):
  """down(act(up(x))), or the gated form down(act(gate(x)) * up(x))."""

  config: Config

  def setup(self):
    c = self.config
    linear = partial(Linear, use_bias=c.ffn_bias, dtype=c.dtype)
    if c.gated:
      self.gate_proj = linear(c.width, c.ffn)
    self.up_proj = linear(c.width, c.ffn)
    self.down_proj = linear(c.ffn, c.width)

  def __call__(self, x_BTD):
    act, up = ACTIVATIONS[self.config.activation], self.up_proj(x_BTD)
    return self.down_proj(act(self.gate_proj(x_BTD)) * up if self.config.gated else act(up))


class Block(nn.Module):
  """One layer: x + attention(norm(x)), then x + feed_forward(norm(x))."""

  config: Config

  def setup(self):
    self.attn_norm, self.mlp_norm = self.config.norm(), self.config.norm()
    self.attn, self.mlp = Attention(self.config), FeedForward(self.config)
    self.attn_residual, self.mlp_residual = Residual(), Residual()

  def __call__(self, x_BTD, cache, index, mask_B1TS, tables):
    y_BTD, cache = self.attn(self.attn_norm(x_BTD), cache, index, mask_B1TS, tables)
    x_BTD = self.attn_residual(x_BTD, y_BTD)
    return self.mlp_residual(x_BTD, self.mlp(self.mlp_norm(x_BTD))), cache


class Trunk(nn.Module):
  """Runs embedded tokens x (B, T, D) through all layers, scanned, and the final norm.

  Takes mask (B, 1, T, S) and positions (B, T) explicitly, so that a method can move or extend
  them. `cache` is None or (keys, values), each (L, B, S, K, H); `index` is where T is written.
  """

  config: Config

  def setup(self):
    c = self.config
    if c.rope is None:
      self.positions = Embed(c.positions, c.width, c.dtype)
    self.layers = nn.scan(
      nn.remat(Block, prevent_cse=False) if c.remat else Block,
      variable_axes={"params": 0, "peft": 0, "hyper": 0},
      split_rngs={"params": True, "dropout": True},
      in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast),
      length=c.layers,
      unroll=c.unroll,
    )(c)
    self.norm = c.norm()

  def __call__(self, x_BTD, cache, index, mask_B1TS, positions_BT):
    c, tables = self.config, None
    if c.rope is None:
      x_BTD = x_BTD + self.positions(positions_BT)
    else:
      tables = rope_tables(c.rope, c.head_size, positions_BT)
    x_BTD, cache = self.layers(x_BTD, cache, index, mask_B1TS, tables)
    return self.norm(x_BTD), cache


class Decoder(nn.Module):
  """A causal language model.

  `model.apply(variables, tokens_BT, mask_BT)` gives logits (B, T, V) in fp32, where mask is true on
  real tokens (padding on either side). Each row's real tokens are at positions 0, 1, ...
  """

  config: Config

  def setup(self):
    c = self.config
    self.embed = Embed(c.vocabulary, c.width, c.dtype)
    self.trunk = Trunk(c)
    if not c.tied:
      self.head = Linear(c.width, c.vocabulary, dtype=c.dtype)

  def __call__(self, tokens_BT, mask_BT=None):
    if mask_BT is None:
      mask_BT = jnp.ones(tokens_BT.shape, bool)
    length = tokens_BT.shape[1]
    causal_TS = jnp.tril(jnp.ones((length, length), bool))
    mask_B1TS = causal_TS[None, None] & mask_BT[:, None, None, :]
    positions_BT = jnp.maximum(jnp.cumsum(mask_BT, 1) - 1, 0)
    x_BTD, _ = self.trunk(self.embed(tokens_BT), None, None, mask_B1TS, positions_BT)
    return self.logits(x_BTD)

  def decode(self, tokens_BT, cache):
    """Continues a `Cache` by T tokens: returns the last token's logits (B, V) and the cache."""
    length, slots = tokens_BT.shape[1], cache.mask.shape[1]
    mask_BS = cache.mask
    causal_TS = jnp.arange(slots)[None] <= cache.index + jnp.arange(length)[:, None]
    positions_BS = jnp.maximum(jnp.cumsum(mask_BS, 1) - 1, 0)
    positions_BT = jax.lax.dynamic_slice_in_dim(positions_BS, cache.index, length, 1)
    x_BTD, keys_values = self.trunk(
      self.embed(tokens_BT),
      cache.keys_values,
      cache.index,
      causal_TS[None, None] & mask_BS[:, None, None, :],
      positions_BT,
    )
    cache = cache._replace(keys_values=keys_values, index=cache.index + length)
    return self.logits(x_BTD[:, -1:])[:, 0], cache

  def logits(self, x_BTD):
    """Scores hidden states against the vocabulary: (B, T, V) in fp32."""
    y = self.embed.attend(x_BTD) if self.config.tied else self.head(x_BTD)
    return y.astype(jnp.float32)
