"""Defines the stack of layers that every model is built around.

`Config` states what differs between families, and each family's file how a Hugging Face folder maps
to it. `decoder`, `encoder` and `seq2seq` add embeddings and heads.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import Scope
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from jaxtune import sharding
from jaxtune.models import parts, quantize, split
from jaxtune.models.config import Config
from jaxtune.models.context import Context, Mask, Shared
from jaxtune.models.layers import ACTIVATIONS, Attend, Embed, Linear, Norm, RelativeBias, Residual
from jaxtune.models.rope import rope_tables, rotate

# What is stored of a block for the backward pass; None stores all that it needs.
SAVED = {
  False: None,
  True: jax.checkpoint_policies.nothing_saveable,
  "linear": jax.checkpoint_policies.save_only_these_names("linear"),
  "auto": jax.checkpoint_policies.save_only_these_names("linear"),  # until one is chosen
}


class Attention(nn.Module):
  """Computes grouped-query attention of a sequence to itself, or with `cross` to the encoder."""

  config: Config
  cross: bool = False

  def setup(self):
    c = self.config
    linear = partial(Linear, use_bias=c.qkv_bias, dtype=c.dtype)
    source_width = c.encoder.width if self.cross else c.width
    self.q_proj = linear(c.width, c.heads * c.head_size)
    self.k_proj = linear(source_width, c.kv_heads * c.head_size)
    self.v_proj = linear(source_width, c.kv_heads * c.head_size)
    self.o_proj = Linear(c.heads * c.head_size, c.width, c.o_bias, c.dtype)
    self.attend = Attend(c.attention, c.scale, c.softcap, c.platform)
    if c.qk_norm is None:
      self.q_norm = self.k_norm = None
    else:
      heads, kv_heads = (1, 1) if c.qk_norm == "head" else (c.heads, c.kv_heads)
      self.q_norm = c.norm(heads * c.head_size, False)
      self.k_norm = c.norm(kv_heads * c.head_size, False)

  def __call__(
    self,
    x_BTD: Float[Array, "B T D"],
    source_BSD: Float[Array, "B _ _"] | None,
    cache: tuple[Array, Array] | None,
    mask: Mask,
    *,
    tables: tuple[Array, Array] | None = None,
    bias_1NTS: Float[Array, "1 N T S"] | None = None,
    index: Int[Array, ""] | None = None,
  ) -> tuple[Float[Array, "B T D"], tuple[Array, Array]]:
    """Returns the output, and the (keys, values) that were attended to, each (B, K, S, H).

    Args:
      source_BSD: the states that keys and values are computed from; None if `cache` holds all.
      cache: (keys, values), into which the new ones are written at slot `index`; None to attend to
        the new ones alone.
      tables: cos and sin of rotary positions.
    """
    q_BTNH = self._heads(self.q_proj(x_BTD), self.q_norm, tables)
    if source_BSD is not None:
      k_BSKH = self._heads(self.k_proj(source_BSD), self.k_norm, tables)
      v_BSKH = self._heads(self.v_proj(source_BSD))
      write = lambda old, new: jax.lax.dynamic_update_slice_in_dim(old, new, index, 2)
      whole = (split.heads(x_BSKH, gather=True) for x_BSKH in (k_BSKH, v_BSKH))
      new = tuple(x_BSKH.transpose(0, 2, 1, 3) for x_BSKH in whole)
      cache = new if cache is None else jax.tree.map(write, cache, new)
    k_BKSH, v_BKSH = cache
    y_BTNH = self.attend(
      q_BTNH, k_BKSH.transpose(0, 2, 1, 3), v_BKSH.transpose(0, 2, 1, 3), mask, bias_1NTS
    )
    return self.o_proj(split.heads(y_BTNH).reshape(*x_BTD.shape[:2], -1)), cache

  def _heads(
    self,
    y_BTO: Float[Array, "B T O"],
    norm: Norm | None = None,
    tables: tuple[Array, Array] | None = None,
  ) -> Float[Array, "B T _ H"]:
    """Splits features into heads, with the norm before or after the split, and rotates them."""
    if norm is not None and self.config.qk_norm == "all":
      y_BTO = norm(y_BTO)
    y_BTNH = y_BTO.reshape(*y_BTO.shape[:2], -1, self.config.head_size)
    if norm is not None and self.config.qk_norm == "head":
      y_BTNH = norm(y_BTNH)
    y_BTNH = y_BTNH if tables is None else rotate(y_BTNH, tables)
    return checkpoint_name(split.heads(y_BTNH), "linear")


class FeedForward(nn.Module):
  """Computes down(act(up(x))), or the gated form down(act(gate(x)) * up(x))."""

  config: Config

  def setup(self):
    c = self.config
    linear = partial(Linear, use_bias=c.ffn_bias, dtype=c.dtype)
    if c.gated:
      self.gate_proj = linear(c.width, c.ffn)
    self.up_proj = linear(c.width, c.ffn)
    self.down_proj = linear(c.ffn, c.width)

  def __call__(self, x_BTD: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    act, gated = ACTIVATIONS[self.config.activation], self.config.gated
    project = lambda linear: checkpoint_name(linear(x_BTD), "linear")
    up_BTF = project(self.up_proj)
    return self.down_proj(act(project(self.gate_proj)) * up_BTF if gated else act(up_BTF))


class Block(nn.Module):
  """Runs one layer: self-attention, cross-attention if there is an encoder, and feed-forward."""

  config: Config

  def setup(self):
    c = self.config
    self.attn, self.mlp = Attention(c), FeedForward(c)
    residual = partial(Residual, c.norm if c.order == "post" else None)
    self.attn_residual, self.mlp_residual = residual(), residual()
    if c.encoder is not None:
      self.cross, self.cross_residual = Attention(c, cross=True), residual()
    slots = ("attn", "mlp") if c.encoder is None else ("attn", "cross", "mlp")
    before = slots if c.order in ("pre", "sandwich", "parallel") else ()
    after = slots if c.order in ("out", "sandwich") else ()
    names = [f"{slot}_norm" for slot in before] + [f"{slot}_out_norm" for slot in after]
    self.norms = {name: c.norm(name=name) for name in names}

  def __call__(
    self,
    x_BTD: Float[Array, "B T D"],
    cache: dict[str, tuple[Array, Array]] | None,
    flags: dict[str, Bool[Array, ""]],
    shared: Shared,
  ) -> tuple[Float[Array, "B T D"], dict[str, tuple[Array, Array]] | None]:
    """Returns the states, and the updated cache of this layer, or None if there was no cache.

    Args:
      cache: {"self": (keys, values), "cross": ...} of this layer; {} to begin it.
      flags: {"local", "first"}: whether this layer is local, and whether it is the first.
    """
    c, old, new = self.config, cache or {}, {}
    x_BTD = sharding.constrain(x_BTD, *sharding.TOKENS)
    mask, tables = shared.mask, shared.tables
    if c.window is not None:
      mask = mask.replace(window=c.window, local=None if c.local is None else flags["local"])
    if shared.local_tables is not None:
      choose = lambda local, full: jnp.where(flags["local"], local, full)
      tables = jax.tree.map(choose, shared.local_tables, tables)
    input_BTD = x_BTD
    h_BTD = self._normed("attn_norm", x_BTD)
    if not c.first_norm:
      h_BTD = jnp.where(flags["first"], x_BTD, h_BTD)
    y_BTD, new["self"] = self.attn(
      h_BTD, h_BTD, old.get("self"), mask,
      tables=tables, bias_1NTS=shared.bias, index=shared.index,
    )  # fmt: skip
    x_BTD = self.attn_residual(x_BTD, self._normed("attn_out_norm", y_BTD))
    if c.encoder is not None:
      h_BTD = self._normed("cross_norm", x_BTD)
      y_BTD, new["cross"] = self.cross(h_BTD, shared.encoded, old.get("cross"), shared.encoded_mask)
      x_BTD = self.cross_residual(x_BTD, self._normed("cross_out_norm", y_BTD))
    h_BTD = self._normed("mlp_norm", input_BTD if c.order == "parallel" else x_BTD)
    y_BTD = self._normed("mlp_out_norm", self.mlp(h_BTD))
    x_BTD = sharding.constrain(self.mlp_residual(x_BTD, y_BTD), *sharding.TOKENS)
    return x_BTD, None if cache is None else new

  def _normed(self, name: str, x_BTD: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    """Applies the norm of this name, if the layer has it."""
    return self.norms[name](x_BTD) if name in self.norms else x_BTD


class Trunk(nn.Module):
  """Runs embedded tokens through learned positions, the scanned layers and the final norm.

  Which of the positions, the norm of embeddings and the final norm there are depends on `Config`.
  The mask and the positions are arguments, so that a method can move or extend them.
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
    block, policy = self._block()
    self.layers = nn.scan(
      block if policy is None else nn.remat(block, prevent_cse=False, policy=policy),
      variable_axes={"params": 0, "peft": 0, "hyper": 0},
      variable_broadcast="shared",
      split_rngs={"params": True, "dropout": True},
      in_axes=(0, 0, nn.broadcast),
      length=c.layers,
      unroll=c.unroll,
      check_constancy_invariants=False,  # the check would trace the block twice
    )(c)
    if c.order != "post":
      self.norm = c.norm()

  def __call__(
    self, x_BTD: Float[Array, "B T D"], context: Context
  ) -> tuple[Float[Array, "B T D"], Any]:
    """Returns the states, and None, or with a cache (the layers' updated one, its real slots)."""
    c = self.config
    if c.rope is None and c.relative is None:
      x_BTD = x_BTD + self.positions(context.positions + c.position_offset)
    if c.embed_norm:
      x_BTD = self.embed_norm(x_BTD)
    x_BTD = sharding.constrain(x_BTD, *sharding.TOKENS)
    arrays = {kind: own["layers"] for kind, own in self.variables.items() if "layers" in own}
    if parts.needed(arrays, c.layers):
      x_BTD, cache = self._in_parts(arrays, x_BTD, context), None
    else:
      x_BTD, cache = self.layers(x_BTD, context.cache, self._flags(), self._shared(context))
    x_BTD = x_BTD if c.order == "post" else self.norm(x_BTD)
    return x_BTD, None if context.cache is None else (cache, context.mask.keys)

  def _in_parts(
    self, arrays: dict[str, Any], x_BTD: Float[Array, "B T D"], context: Context
  ) -> Float[Array, "B T D"]:
    """Runs the layers as `self.layers` does, with the same random numbers, but by `parts.run`."""
    c, (block, policy), shared = self.config, self._block(), self._shared(context)
    keys = jax.tree.map(lambda key: jax.random.split(key, c.layers), self.layers.scope.rngs)

    def layer(variables: dict, x_BTD: Array, of_layer: tuple) -> Array:
      flags, keys = of_layer
      return block(c, parent=Scope(variables, keys, mutable=False))(x_BTD, None, flags, shared)[0]

    return parts.run(layer, arrays, x_BTD, (self._flags(), keys), policy, c.unroll)

  def _block(self) -> tuple[Callable, Callable | None]:
    """Returns the class of the layers, and what is stored of one for the backward pass.

    Kernels that are quantised, or split by "fsdp", are made whole inside the block, so that only
    one layer's are in memory at a time. The backward pass makes them again: this needs
    rematerialisation, which without `remat` stores the results of all matrix products and computes
    only what lies between them again.
    """
    c = self.config
    block, policy = Block, SAVED[c.remat]
    if not self.is_initializing() and (c.quantize is not None or sharding.gathers()):
      whole = lambda params: quantize.dequantised(sharding.gathered(params), dtype=c.dtype)
      block = nn.map_variables(Block, "params", whole)
      policy = policy or jax.checkpoint_policies.dots_saveable
    return block, policy

  def _flags(self) -> dict[str, Bool[Array, " L"]]:
    """Returns the flags in which layers differ, so that one scanned block serves them all."""
    count, local = self.config.layers, self.config.local
    local_L = jnp.asarray([True] * count if local is None else local)
    return {"local": local_L, "first": jnp.arange(count) == 0}

  def _shared(self, context: Context) -> Shared:
    """Computes what all layers read: rotary tables and relative biases."""
    c = self.config
    mask, positions_BT, _, index, encoded, _ = context
    ropes = c.rope, c.local_rope
    by_length = any(rope is not None and rope.by_length for rope in ropes)
    lengths_BT = _lengths(context) if by_length else None
    tables, local_tables = (
      None if rope is None else rope_tables(rope, c.head_size, positions_BT, lengths_BT)
      for rope in ropes
    )
    # Padding is at the ends of a row, so slots are as far apart as the tokens in them.
    ahead_TS = mask.ahead(positions_BT.shape[1])
    bias_1NTS = None if c.relative is None else self.relative(ahead_TS)
    crossed = (None, None) if encoded is None else (encoded[0], Mask(encoded[1]))
    return Shared(index, mask, tables, local_tables, bias_1NTS, *crossed)


def _lengths(context: Context) -> Int[Array, "B T"]:
  """Returns the length of the sequence that each token belongs to, virtual tokens included.

  During generation, that is the length of the prompt and of all tokens that may follow.
  """
  last_BT = context.positions
  if context.index is None:  # the last query that attends to a token is the end of its sequence
    seen_BTS = context.mask.array(last_BT.shape[1])[:, 0]
    last_BT = jnp.where(seen_BTS, last_BT[:, :, None], 0).max(1)
  return 1 + last_BT + context.after
