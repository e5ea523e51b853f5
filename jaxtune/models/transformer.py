"""The stack of layers that every model is built around.

What differs between families is stated once, in `Config`; how a Hugging Face folder maps to it is
in the family's own file. `decoder`, `encoder` and `seq2seq` put embeddings and heads around it.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxtune.models import quantize
from jaxtune.models.config import Config
from jaxtune.models.layers import (
  ACTIVATIONS,
  Attend,
  Embed,
  Linear,
  RelativeBias,
  Residual,
)
from jaxtune.models.rope import rope_tables, rotate


class Context(NamedTuple):
  """What tokens see, and where they stand, as a trunk reads it.

  Attributes:
    mask: (B, 1, T, S), which keys a token sees.
    positions: (B, T).
    cache: what `decoder.Cache` holds of each layer; None without a cache.
    index: where in the cache the T tokens are written.
    encoded: the encoder's (states (B, S, D), mask (B, S)); None without an encoder.
  """

  mask: Any
  positions: Any
  cache: Any = None
  index: Any = None
  encoded: Any = None


class Shared(NamedTuple):
  """What every layer reads alike.

  Attributes:
    index: where in the cache the T tokens are written; None without a cache.
    mask: (B, 1, T, S), which keys a token sees.
    near: (1, 1, T, S), which of them a local layer sees; None without a window.
    tables, local_tables: rotary angles, None where there are none.
    bias: (1, N, T, S), added to the scores; None but for relative positions.
    encoded, encoded_mask: the encoder's states (B, S, D) and (B, 1, 1, S); None without one. The
      states are None too where the cache holds the keys and values made of them.
  """

  index: Any
  mask: Any
  near: Any
  tables: Any
  local_tables: Any
  bias: Any
  encoded: Any
  encoded_mask: Any


class Attention(nn.Module):
  """Grouped-query attention over the sequence itself, or over the encoder's states."""

  config: Config
  cross: bool = False

  def setup(self):
    c = self.config
    linear = partial(Linear, use_bias=c.qkv_bias, dtype=c.dtype)
    width = c.encoder.width if self.cross else c.width
    self.q_proj = linear(c.width, c.heads * c.head_size)
    self.k_proj = linear(width, c.kv_heads * c.head_size)
    self.v_proj = linear(width, c.kv_heads * c.head_size)
    self.o_proj = Linear(c.heads * c.head_size, c.width, c.o_bias, c.dtype)
    self.attend = Attend(c.attention, c.scale, c.softcap)
    if c.qk_norm == "head":
      self.q_norm, self.k_norm = c.norm(c.head_size, False), c.norm(c.head_size, False)
    elif c.qk_norm == "all":
      self.q_norm = c.norm(c.heads * c.head_size, False)
      self.k_norm = c.norm(c.kv_heads * c.head_size, False)

  def __call__(
    self,
    x_BTD: Float[Array, "B T D"],
    source_BSD: Float[Array, "B M W"] | None,
    cache: tuple | None,
    mask_B1TS: Bool[Array, "B 1 T S"],
    *,
    tables: tuple | None = None,
    bias_1NTS: Float[Array, "1 N T S"] | None = None,
    index: Any = None,
  ) -> tuple[Float[Array, "B T D"], tuple]:
    """Returns the output, and the cache: (keys, values), with those of `source_BSD` written in.

    `source_BSD` None: the cache holds all keys and values already.
    """
    q_BTNH, cache = self._query(x_BTD), self._keys_values(source_BSD, cache, tables, index)
    if tables is not None:
      q_BTNH = rotate(q_BTNH, tables)
    y_BTNH = self.attend(q_BTNH, *cache, mask_B1TS, bias_1NTS)
    return self.o_proj(y_BTNH.reshape(*x_BTD.shape[:2], -1)), cache

  def _split(self, y_BTM):
    return y_BTM.reshape(*y_BTM.shape[:2], -1, self.config.head_size)

  def _query(self, x_BTD):
    q_BTM = self.q_proj(x_BTD)
    return self._normed_heads(q_BTM, self.q_norm if self.config.qk_norm else None)

  def _normed_heads(self, y_BTM, norm):
    """Splits features into heads, normalised as a whole before or one by one behind it."""
    if norm is None:
      return self._split(y_BTM)
    return self._split(norm(y_BTM)) if self.config.qk_norm == "all" else norm(self._split(y_BTM))

  def _keys_values(self, source_BSD, cache, tables, index):
    if source_BSD is None:
      return cache
    k_BSM, v_BSKH = self.k_proj(source_BSD), self._split(self.v_proj(source_BSD))
    k_BSKH = self._normed_heads(k_BSM, self.k_norm if self.config.qk_norm else None)
    if tables is not None:
      k_BSKH = rotate(k_BSKH, tables)
    if cache is None:
      return k_BSKH, v_BSKH
    write = lambda old, new: jax.lax.dynamic_update_slice_in_dim(old, new, index, 1)
    return jax.tree.map(write, cache, (k_BSKH, v_BSKH))


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

  def __call__(self, x_BTD: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    act, up_BTF = ACTIVATIONS[self.config.activation], self.up_proj(x_BTD)
    gated = self.config.gated
    return self.down_proj(act(self.gate_proj(x_BTD)) * up_BTF if gated else act(up_BTF))


class Block(nn.Module):
  """One layer: attention, attention over the encoder where there is one, and feed-forward."""

  config: Config

  def setup(self):
    c = self.config
    self.attn, self.mlp = Attention(c), FeedForward(c)
    residual = partial(Residual, c.norm if c.order == "post" else None)
    self.attn_residual, self.mlp_residual = residual(), residual()
    if c.encoder is not None:
      self.cross, self.cross_residual = Attention(c, cross=True), residual()
    names = ("attn", "mlp") if c.encoder is None else ("attn", "cross", "mlp")
    if c.order in ("pre", "sandwich", "parallel"):
      self.norms = {name: c.norm(name=f"{name}_norm") for name in names}
    if c.order in ("out", "sandwich"):
      self.out_norms = {name: c.norm(name=f"{name}_out_norm") for name in names}

  def __call__(
    self, x_BTD: Float[Array, "B T D"], cache: dict | None, flags: dict, shared: Shared
  ) -> tuple[Float[Array, "B T D"], dict | None]:
    c, old, new = self.config, cache or {}, {}
    mask_B1TS, tables = shared.mask, shared.tables
    if shared.near is not None:
      mask_B1TS = mask_B1TS & (shared.near | ~flags["local"])
    if shared.local_tables is not None:
      choose = lambda near, far: jnp.where(flags["local"], near, far)
      tables = jax.tree.map(choose, shared.local_tables, tables)
    before_BTD = x_BTD
    h_BTD = self._before("attn", x_BTD)
    if not c.first_norm:
      h_BTD = jnp.where(flags["first"], x_BTD, h_BTD)
    y_BTD, new["self"] = self.attn(
      h_BTD, h_BTD, old.get("self"), mask_B1TS,
      tables=tables, bias_1NTS=shared.bias, index=shared.index,
    )  # fmt: skip
    x_BTD = self.attn_residual(x_BTD, self._after("attn", y_BTD))
    if c.encoder is not None:
      h_BTD = self._before("cross", x_BTD)
      y_BTD, new["cross"] = self.cross(h_BTD, shared.encoded, old.get("cross"), shared.encoded_mask)
      x_BTD = self.cross_residual(x_BTD, self._after("cross", y_BTD))
    h_BTD = self._before("mlp", before_BTD if c.order == "parallel" else x_BTD)
    y_BTD = self._after("mlp", self.mlp(h_BTD))
    return self.mlp_residual(x_BTD, y_BTD), new if old else None

  def _before(self, name, x_BTD):
    return self.norms[name](x_BTD) if self.config.order not in ("post", "out") else x_BTD

  def _after(self, name, y_BTD):
    return self.out_norms[name](y_BTD) if self.config.order in ("out", "sandwich") else y_BTD


class Trunk(nn.Module):
  """Runs embedded tokens x (B, T, D) through all layers, scanned, and the final norm.

  Takes the mask and the positions explicitly, so that a method can move or extend them.
  """

  config: Config

  def setup(self):
    c = self.config
    if c.rope is None and c.relative is None:
      self.positions = Embed(c.positions + c.position_offset, c.width, c.dtype)
    if c.relative is not None:
      self.relative = RelativeBias(*c.relative, c.heads, not c.causal)
    if c.embed_norm:
      self.embed_norm = c.norm()
    self.layers = nn.scan(
      self._block(),
      variable_axes={"params": 0, "peft": 0, "hyper": 0},
      variable_broadcast="shared",
      split_rngs={"params": True, "dropout": True},
      in_axes=(0, 0, nn.broadcast),
      length=c.layers,
      unroll=c.unroll,
    )(c)
    if c.order != "post":
      self.norm = c.norm()

  def __call__(
    self, x_BTD: Float[Array, "B T D"], context: Context
  ) -> tuple[Float[Array, "B T D"], Any]:
    """Returns the states, and the cache with the keys and values of the T tokens."""
    c = self.config
    if c.rope is None and c.relative is None:
      x_BTD = x_BTD + self.positions(context.positions + c.position_offset)
    if c.embed_norm:
      x_BTD = self.embed_norm(x_BTD)
    x_BTD, cache = self.layers(x_BTD, context.cache, self._flags(), self._shared(context))
    return (x_BTD if c.order == "post" else self.norm(x_BTD)), cache

  def _block(self):
    """Wraps the block so that only one layer's kernels are whole, forward and backward.

    Without rematerialisation all products are stored, and what is made again from a quantised
    kernel is the kernel itself, and what lies between the products.
    """
    c = self.config
    if c.quantize is None or self.is_initializing():
      return nn.remat(Block, prevent_cse=False) if c.remat else Block
    whole = partial(quantize.dequantised, dtype=c.dtype)
    policy = None if c.remat else jax.checkpoint_policies.dots_saveable
    return nn.remat(nn.map_variables(Block, "params", whole), prevent_cse=False, policy=policy)

  def _flags(self):
    """Numbers in which the layers differ: one scanned block serves them all."""
    c = self.config
    local = jnp.ones(c.layers, bool) if c.local is None else jnp.asarray(c.local)
    return {"local": local, "first": jnp.arange(c.layers) == 0}

  def _shared(self, context: Context) -> Shared:
    """Makes what every layer reads alike."""
    c = self.config
    mask_B1TS, positions_BT, _, index, encoded = context
    lengths_BT = None
    if any(rope.by_length for rope in (c.rope, c.local_rope) if rope is not None):
      lengths_BT = _lengths(index, mask_B1TS, positions_BT)
    tables = lambda rope: (
      None if rope is None else rope_tables(rope, c.head_size, positions_BT, lengths_BT)
    )
    # Distances between slots are distances between tokens, wherever the padding is.
    start = 0 if index is None else index
    queries_T1 = start + jnp.arange(mask_B1TS.shape[2])[:, None]
    ahead_TS = jnp.arange(mask_B1TS.shape[3])[None] - queries_T1
    near_11TS = None if c.window is None else (jnp.abs(ahead_TS) < c.window)[None, None]
    bias_1NTS = None if c.relative is None else self.relative(ahead_TS)
    states, mask_BS = (None, None) if encoded is None else encoded
    seen_B11S = None if mask_BS is None else mask_BS[:, None, None]
    both = tables(c.rope), tables(c.local_rope)
    return Shared(index, mask_B1TS, near_11TS, *both, bias_1NTS, states, seen_B11S)


def _lengths(index, mask_B1TS, positions_BT):
  """Returns how long the sequence is that each token belongs to, (B, T), a prefix included.

  With a cache, it is that of the prompt and of all tokens that the cache has room for.
  """
  if index is None:  # a sequence ends with the last token that sees it
    seen_BTS = mask_B1TS[:, 0]
    return 1 + jnp.where(seen_BTS, positions_BT[:, :, None], 0).max(1)
  slots_1T = (index + jnp.arange(positions_BT.shape[1]))[None]
  return positions_BT + mask_B1TS.shape[3] - slots_1T
