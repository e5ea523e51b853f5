"""Defines a causal language model, and the key/value cache it decodes with."""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxtune import sharding
from jaxtune.models.config import Config
from jaxtune.models.context import Context, Mask, row_context
from jaxtune.models.heads import TaskHead
from jaxtune.models.layers import Embed, Linear
from jaxtune.models.score import Score, in_parts
from jaxtune.models.transformer import Trunk

HEAD = ("embed", "head", "logit_bias")  # what computes logits from states


class Cache(NamedTuple):
  """Holds the keys and values of the tokens processed so far.

  Attributes:
    layers: {"self": (keys, values)}, each (L, B, S, K, H), with room for S tokens. After the first
      step of an encoder-decoder also "cross": (keys, values), computed from the encoder's states.
    mask: (B, S), false at the padding left of a short prompt, true at every other slot.
    index: (), how many slots are filled.
    encoded: the (states (B, S, D), mask (B, S)) of an encoder-decoder's encoder; the states are
      None once layers["cross"] exists.
  """

  layers: Any
  mask: jax.Array
  index: jax.Array
  encoded: Any = None


def new_cache(config: Config, prompt_mask_BT: Bool[Array, "B T"], slots: int) -> Cache:
  """Makes an empty cache with room for `slots` tokens, including the left-padded prompts."""
  batch, length = prompt_mask_BT.shape
  shape = (config.layers, batch, slots, config.kv_heads, config.head_size)
  empty = jnp.zeros(shape, config.dtype)
  mask = jnp.pad(prompt_mask_BT, ((0, 0), (0, slots - length)), constant_values=True)
  return Cache({"self": (empty, empty)}, mask, jnp.zeros((), jnp.int32))


class LanguageModel(nn.Module):
  """Provides what decoders and encoder-decoders share: embeddings, a head, decoding with a cache.

  A subclass adds `trunk`, the layers whose states the logits are computed from.
  """

  config: Config

  def setup(self):
    c = self.config
    self.embed = Embed(c.vocabulary, c.width, c.dtype)
    if c.head is not None:
      self.head: Any = TaskHead(c)
    elif not c.tied:
      self.head = Linear(c.width, c.vocabulary, dtype=c.dtype)
    if c.logit_bias:
      self.logit_bias = self.param("logit_bias", nn.initializers.zeros, (1, c.vocabulary))

  def decode(self, tokens_BT: Int[Array, "B T"], cache: Cache) -> tuple[Float[Array, "B V"], Cache]:
    """Processes the T tokens after those in the cache.

    Returns:
      The last token's logits in fp32, and the cache with the T tokens added. The first call
      replaces an encoder's states by the keys and values of cross-attention.
    """
    index, length = cache.index, tokens_BT.shape[1]
    mask = Mask(cache.mask, causal=True, start=index)
    positions_BS = jnp.maximum(jnp.cumsum(cache.mask, 1) - 1, 0)
    positions_BT = jax.lax.dynamic_slice_in_dim(positions_BS, index, length, 1)
    context = Context(mask, positions_BT, cache.layers, index, cache.encoded)
    x_BTD, layers = self.trunk(self.embed_tokens(tokens_BT), context)
    encoded = None if cache.encoded is None else (None, cache.encoded[1])
    cache = cache._replace(layers=layers, index=index + length, encoded=encoded)
    return self.logits(x_BTD[:, -1:])[:, 0], cache

  def embed_tokens(self, tokens_BT: Int[Array, "B T"]) -> Float[Array, "B T D"]:
    """Returns the embeddings of tokens, multiplied by `Config.embed_scale`."""
    x_BTD = self.embed(tokens_BT)
    return x_BTD * jnp.asarray(self.config.embed_scale, x_BTD.dtype)

  def logits(self, x_BTD: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
    """Returns the logits of states over the vocabulary, converted to fp32."""
    c = self.config
    x_BTD = x_BTD * jnp.asarray(c.logit_scale, x_BTD.dtype)
    y_BTV = (self.embed.attend(x_BTD) if c.tied else self.head(x_BTD)).astype(jnp.float32)
    y_BTV = sharding.constrain(y_BTV, sharding.ROWS, None, "tensor")
    if c.logit_softcap is not None:
      y_BTV = c.logit_softcap * jnp.tanh(y_BTV / c.logit_softcap)
    return y_BTV + self.logit_bias.astype(jnp.float32)[None] if c.logit_bias else y_BTV

  def score(self, function: Score, x_BTD: Float[Array, "B T D"], targets_BT: Int[Array, "B T"]):
    """Returns function(logits (B, T, V), targets (B, T)), as `score.in_parts` computes it.

    A part has `Config.scored_together` tokens on each device.
    """
    part = max(self.config.scored_together // sharding.rows_of_a_device(len(x_BTD)), 1)
    if part >= x_BTD.shape[1]:
      return function(self.logits(x_BTD), targets_BT)
    model, variables = self.unbind()
    head = lambda arrays: {name: x for name, x in arrays.items() if name in HEAD}
    fixed = {name: head(arrays) for name, arrays in variables.items()}
    fixed["key"] = self.make_rng("dropout") if self.has_rng("dropout") else None
    tuned = {name: fixed.pop(name) for name in ("params", "peft") if name in fixed}
    tuned["params"] = sharding.gathered(tuned["params"])  # once for all parts

    def logits(tuned, fixed, x_BtD, i):
      others = dict(fixed)
      key = others.pop("key")
      rngs = None if key is None else {"dropout": jax.random.fold_in(key, i)}
      return model.apply(tuned | others, x_BtD, method="logits", rngs=rngs)

    return in_parts(logits, function, part, (tuned, fixed), x_BTD, targets_BT)

  @nn.nowrap
  def trace_inputs(self) -> dict[str, Int[Array, "B T"]]:
    """Returns small inputs that reach every module of the model."""
    names = ("tokens",) if self.config.encoder is None else ("tokens", "inputs")
    return {name: jnp.zeros((1, 2), jnp.int32) for name in names}


class Decoder(LanguageModel):
  """Computes a causal transformer with a language model's head, or a task's (see `heads`).

  `model.apply(variables, tokens, mask)` returns logits (B, T, V) in fp32, or what a task's head
  returns. mask (B, T) is true at real tokens, with padding on either side; a row's real tokens are
  at positions 0, 1, ... `segments` (B, T) packs several examples into a row: 1, 2, ... by example,
  0 at padding. Tokens then attend only to their own example, whose positions start at 0. With
  `score` and `targets` it returns score(logits, targets), without all logits (see `score`).
  """

  def setup(self):
    super().setup()
    self.trunk = Trunk(self.config)

  def __call__(
    self,
    tokens: Int[Array, "B T"],
    mask: Bool[Array, "B T"] | None = None,
    segments: Int[Array, "B T"] | None = None,
    score: Score | None = None,
    targets: Int[Array, "B T"] | None = None,
  ) -> Any:
    mask_BT = jnp.ones(tokens.shape, bool) if mask is None else mask
    context = row_context(mask_BT, causal=True)
    if segments is not None:
      starts_BT = jnp.diff(segments, axis=1, prepend=segments[:, :1]) != 0
      first_BT = jax.lax.cummax(jnp.where(starts_BT, context.positions, 0), axis=1)
      mask = context.mask.replace(segments=segments)
      context = Context(mask, context.positions - first_BT)
    x_BTD, _ = self.trunk(self.embed_tokens(tokens), context)
    if score is not None:
      return self.score(score, x_BTD, targets)
    return self.logits(x_BTD) if self.config.head is None else self.head(x_BTD, mask_BT)

  def begin_decoding(
    self, prompts_BT: Int[Array, "B T"], mask_BT: Bool[Array, "B T"], new_tokens: int
  ) -> tuple[Int[Array, "B T"], Cache]:
    """Returns the tokens for the first call of `decode`, the prompts, and an empty cache."""
    return prompts_BT, new_cache(self.config, mask_BT, prompts_BT.shape[1] + new_tokens)
