"""Defines a causal language model, and the key/value cache it decodes with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxtune import sharding
from jaxtune.models.config import Config
from jaxtune.models.context import ANY, Context, Mask, row_context
from jaxtune.models.heads import TaskHead
from jaxtune.models.layers import Embed, Linear, times
from jaxtune.models.score import Score, in_parts
from jaxtune.models.transformer import Trunk

Places = Sequence[int] | jax.Array  # slots (M,) of every row, or each row's own (B, M)
HEAD = ("embed", "head", "logit_bias")  # what computes logits from states


class Cache(NamedTuple):
  """Holds the keys and values of the tokens processed so far, of B rows.

  Its S slots are used in a circle: behind the last one comes the first, and a new token takes the
  slot of the oldest. So rows that began at different times share one cache.

  Attributes:
    layers: {"self": (keys, values)}, each (L, B, K, S, H). For an encoder-decoder also "cross":
      (keys, values), computed from the encoder's states.
    mask: (B, S), which slots hold a token.
    index: (), the slot of the next token.
    lengths: (B,), how many tokens each row has, which is the position of its next one.
    after: (B,), how many tokens may follow those.
    encoded: (B, S), which of an encoder's states are real; None without an encoder.
  """

  layers: Any
  mask: jax.Array
  index: jax.Array
  lengths: jax.Array
  after: jax.Array
  encoded: Any = None


# The axis of rows in each part of a cache.
ROW_AXES = Cache(layers=1, mask=0, index=None, lengths=0, after=0, encoded=0)


def map_rows(function: Callable, cache: Cache, *others: Cache) -> Cache:
  """Returns a cache of function(axis of rows, array of each cache), with the first one's index."""
  parts = {
    name: jax.tree.map(partial(function, axis), *(getattr(one, name) for one in (cache, *others)))
    for name, axis in ROW_AXES._asdict().items()
    if axis is not None
  }
  return cache._replace(**parts)


def replace_rows(
  cache: Cache, new: Cache, rows_R: Int[Array, " R"], chosen_R: Bool[Array, " R"]
) -> Cache:
  """Replaces the chosen ones of a cache's rows by those of a new cache, of as many slots.

  The last token of every new row comes to the slot before the cache's next one.
  """
  turned = lambda x, axis: jnp.roll(x, cache.index - new.index, axis)
  self_attention = jax.tree.map(partial(turned, axis=3), new.layers["self"])
  new = new._replace(layers=new.layers | {"self": self_attention}, mask=turned(new.mask, 1))

  def put(axis: int, old: Array, rows: Array) -> Array:
    at = (slice(None),) * axis + (rows_R,)
    chosen = chosen_R.reshape(-1, *[1] * (old.ndim - axis - 1))
    return old.at[at].set(jnp.where(chosen, rows, old[at]))

  return map_rows(put, cache, new)


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

  def begin_cache(
    self, tokens_BT: Int[Array, "B T"], context: Context, room: int
  ) -> tuple[Float[Array, "B V"], Cache]:
    """Processes the first T tokens, padded on the left.

    Args:
      context: of whole rows.
      room: how many tokens may follow.

    Returns:
      The last token's logits in fp32, and a cache that has as many more slots.
    """
    context = context._replace(cache={}, after=room)
    x_BTD, (layers, mask_BS) = self.trunk(self.embed_tokens(tokens_BT), context)
    grown = lambda x: jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, room), (0, 0)))
    cache = Cache(
      layers | {"self": jax.tree.map(grown, layers["self"])},
      jnp.pad(mask_BS, ((0, 0), (0, room))),
      jnp.asarray(mask_BS.shape[1] % (mask_BS.shape[1] + room)),
      mask_BS.sum(1),
      jnp.full(len(mask_BS), room),
      None if context.encoded is None else context.encoded[1],
    )
    return self.logits(x_BTD[:, -1:])[:, 0], cache

  def decode(self, tokens_B: Int[Array, " B"], cache: Cache) -> tuple[Float[Array, "B V"], Cache]:
    """Processes the next token of each row; returns its logits in fp32, and the updated cache."""
    index, after_B = cache.index, cache.after - 1
    mask_BS = cache.mask.at[:, index].set(True)
    mask = Mask(mask_BS, causal=True, start=index)
    encoded = None if cache.encoded is None else (None, cache.encoded)
    context = Context(mask, cache.lengths[:, None], cache.layers, index, encoded, after_B[:, None])
    x_B1D, (layers, _) = self.trunk(self.embed_tokens(tokens_B[:, None]), context)
    cache = cache._replace(
      layers=layers, mask=mask_BS, index=(index + 1) % mask_BS.shape[1],
      lengths=cache.lengths + 1, after=after_B,
    )  # fmt: skip
    return self.logits(x_B1D)[:, 0], cache

  def embed_tokens(self, tokens_BT: Int[Array, "B T"]) -> Float[Array, "B T D"]:
    """Returns the embeddings of tokens, multiplied by `Config.embed_scale`."""
    x_BTD = self.embed(tokens_BT)
    return x_BTD * jnp.asarray(self.config.embed_scale, x_BTD.dtype)

  def logits(self, x_BTD: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
    """Returns the logits of states over the vocabulary, converted to fp32."""
    c = self.config
    x_BTD = times(x_BTD, c.logit_scale)
    y_BTV = (self.embed.attend(x_BTD) if c.tied else self.head(x_BTD)).astype(jnp.float32)
    y_BTV = sharding.constrain(y_BTV, *sharding.TOKENS, "tensor")
    if c.logit_softcap is not None:
      y_BTV = c.logit_softcap * jnp.tanh(y_BTV / c.logit_softcap)
    return y_BTV + self.logit_bias.astype(jnp.float32)[None] if c.logit_bias else y_BTV

  def score(self, function: Score, x_BTD: Float[Array, "B T D"], targets_BT: Int[Array, "B T"]):
    """Returns function(logits (B, T, V), targets (B, T)), as `score.in_parts` computes it.

    A part has `Config.scored_together` tokens on each device.
    """
    rows = max(len(x_BTD) // sharding.size(*sharding.ROWS), 1)  # of a device
    part = max(self.config.scored_together // rows, 1)
    if part * sharding.size("sequence") >= x_BTD.shape[1]:
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

    # Traced now: by the backward pass, flax has forgotten the methods that act on the head.
    part_BtD = x_BTD[:, : part * sharding.size("sequence")]
    traced, read = jax.closure_convert(logits, tuned, fixed, part_BtD, jnp.zeros((), jnp.int32))
    call = lambda tuned, fixed, x_BtD, i: traced(tuned[0], fixed, x_BtD, i, *tuned[1])
    return in_parts(call, function, part, ((tuned, read), fixed), x_BTD, targets_BT)

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
  0 at padding. Tokens then attend only to their own example, whose positions start at 0. `branches`
  (B, T) lets several continuations of a prompt share its tokens: 0 at the prompt, which is at the
  start of the row, and 1, 2, ... by continuation. `types` (B, T), which the tokenizer may give for
  two texts, are ignored. With `score` and `targets` it returns score(logits, targets), without all
  logits (see `score`), of the slots `places` alone where these are given; with `states` also the
  states (B, T, D) that these logits are computed from.
  """

  def setup(self):
    super().setup()
    self.trunk = Trunk(self.config)

  def __call__(
    self,
    tokens: Int[Array, "B T"],
    mask: Bool[Array, "B T"] | None = None,
    segments: Int[Array, "B T"] | None = None,
    branches: Int[Array, "B T"] | None = None,
    types: Int[Array, "B T"] | None = None,
    *,
    score: Score | None = None,
    targets: Int[Array, "B T"] | None = None,
    places: Places | None = None,
    states: bool = False,
  ) -> Any:
    mask_BT = jnp.ones(tokens.shape, bool) if mask is None else mask
    context = row_context(mask_BT, causal=True)
    if segments is not None:
      context = _split(context, segments, 0)
    if branches is not None:
      prompt_BT = branches == 0
      context = _split(context, branches, (mask_BT & prompt_BT).sum(1, keepdims=True))
      segments = jnp.where(prompt_BT, ANY, branches)
      context = context._replace(mask=context.mask.replace(segments=segments, open=True))
    x_BTD, _ = self.trunk(self.embed_tokens(tokens), context)
    if score is not None:
      x_BTD = at(x_BTD, places)
      scored = self.score(score, x_BTD, targets)
      return (scored, x_BTD) if states else scored
    return self.logits(x_BTD) if self.config.head is None else self.head(x_BTD, mask_BT)

  def prefill(
    self, prompts_BT: Int[Array, "B T"], mask_BT: Bool[Array, "B T"], room: int
  ) -> tuple[Float[Array, "B V"], Cache]:
    """Processes prompts that are padded on the left; see `begin_cache`."""
    return self.begin_cache(prompts_BT, row_context(mask_BT, causal=True), room)


def _split(
  context: Context, segments_BT: Int[Array, "B T"], before_B1: Int[Array, "B 1"] | int
) -> Context:
  """Lets tokens attend to their own segment alone, whose positions start at `before`.

  Those of the first segment start at 0.
  """
  starts_BT = jnp.diff(segments_BT, axis=1, prepend=segments_BT[:, :1]) != 0
  first_BT = jax.lax.cummax(jnp.where(starts_BT, context.positions - before_B1, 0), axis=1)
  return Context(context.mask.replace(segments=segments_BT), context.positions - first_BT)


def at(x_BTD: Float[Array, "B T D"], places: Places | None) -> Float[Array, "B M D"]:
  """Returns the states of some slots of each row, the same ones or each row's own; None: all."""
  if places is None:
    return x_BTD
  places = jnp.asarray(places)
  return x_BTD[:, places] if places.ndim == 1 else jnp.take_along_axis(x_BTD, places[..., None], 1)
