"""Text generation with a key/value cache: greedy, temperature, top-k and top-p."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from jaxtune import peft, schema
from jaxtune.errors import UserError
from jaxtune.schema import Count, NonNegative, Share


def generate(
  model: nn.Module,
  adapted: peft.Adapted,
  prompts_BT: Int[Array, "B T"],
  mask_BT: Bool[Array, "B T"],
  *,
  max_new_tokens: int,
  stop_tokens: tuple[int, ...],
  temperature: float = 0.0,
  top_k: int | None = None,
  top_p: float | None = None,
  key: Key[Array, ""] | None = None,
  rows_B: Int[Array, " B"] | None = None,
) -> Int[Array, "B new"]:
  """Continues left-padded prompts, or answers them; pure, to be jitted by the caller.

  An encoder-decoder reads the prompts in its encoder and begins its output with
  `config.decoder_start`, which is not returned.

  Args:
    prompts_BT, mask_BT: token ids and which of them are real; padding is on the left.
    max_new_tokens: how many tokens at most.
    stop_tokens: a row ends with the first token that it draws of these.
    temperature: 0 is greedy; then the other options are not used.
    top_k: draw among the k likeliest tokens.
    top_p: draw among the likeliest tokens that together reach probability p.
    key: of the draws. Each row draws by a key of its own, which is made of `key` and the row's
      number, so that it does not depend on the rows beside it.
    rows_B: numbers of the rows; default 0, 1, 2, ...

  Returns:
    (B, max_new_tokens) token ids; every token after a row's stop token repeats it.
  """
  batch = prompts_BT.shape[0]
  call = lambda method, *args: peft.apply(model, adapted, *args, method=method)
  step = partial(call, model.decode)
  stops = jnp.asarray(stop_tokens)
  rows_B = jnp.arange(batch) if rows_B is None else rows_B
  keys_B = jax.vmap(partial(jax.random.fold_in, key))(rows_B) if temperature else None
  draw = partial(_draw, keys_B=keys_B, temperature=temperature, top_k=top_k, top_p=top_p)

  def body(carry):
    n, done_B, last_B, out_BT, cache = carry
    logits_BV, cache = step(last_B[:, None], cache)
    new_B = jnp.where(done_B, last_B, draw(logits_BV, n))
    out_BT = jax.lax.dynamic_update_slice_in_dim(out_BT, new_B[:, None], n, 1)
    return n + 1, done_B | jnp.isin(new_B, stops), new_B, out_BT, cache

  prompts_BT, mask_BT = make_room(adapted, prompts_BT, mask_BT)
  logits_BV, cache = step(*call(model.begin_decoding, prompts_BT, mask_BT, max_new_tokens))
  first_B = draw(logits_BV, 0)
  out_BT = jnp.broadcast_to(first_B[:, None], (batch, max_new_tokens))
  carry = (jnp.asarray(1), jnp.isin(first_B, stops), first_B, out_BT, cache)
  unfinished = lambda carry: (carry[0] < max_new_tokens) & ~carry[1].all()
  n, _, last_B, out_BT, _ = jax.lax.while_loop(unfinished, body, carry)
  return jnp.where(jnp.arange(max_new_tokens) < n, out_BT, last_B[:, None])


def _draw(
  logits_BV: Float[Array, "B V"],
  n: int | Array,
  keys_B: Key[Array, " B"] | None,
  temperature: float,
  top_k: int | None,
  top_p: float | None,
) -> Int[Array, " B"]:
  """Draws token n of each row with the row's own key; greedily where the temperature is 0."""
  if not temperature:
    return logits_BV.argmax(-1).astype(jnp.int32)
  keys_B = jax.vmap(lambda key: jax.random.fold_in(key, n))(keys_B)
  kept_BV = restrict(logits_BV / temperature, top_k, top_p)
  return jax.vmap(jax.random.categorical)(keys_B, kept_BV).astype(jnp.int32)


def make_room(
  adapted: peft.Adapted, prompts_BT: Int[Array, "B T"], mask_BT: Bool[Array, "B T"]
) -> tuple[Int[Array, "B T_and_P"], Bool[Array, "B T_and_P"]]:
  """Adds positions before each row's first token, for methods that put a prompt there."""
  for method in adapted.methods:
    fixed = peft.arrays_of(method, adapted.hyper)
    slots_P = None if method.virtual_tokens is None else method.virtual_tokens(fixed)
    if slots_P is not None:
      prompts_BT = jnp.pad(prompts_BT, ((0, 0), (len(slots_P), 0)))
      padding_B1 = prompts_BT.shape[1] - slots_P.sum() - mask_BT.sum(1, keepdims=True)
      mask_BT = jnp.arange(prompts_BT.shape[1])[None] >= padding_B1
  return prompts_BT, mask_BT


def restrict(
  logits_BV: Float[Array, "B V"], top_k: int | None, top_p: float | None
) -> Float[Array, "B V"]:
  """Sets the logits of tokens outside the top k, or outside the nucleus of mass p, to -inf.

  The nucleus is that of the top k, where both are given. Of equally likely tokens the first ones
  stay, as with argmax.
  """
  if top_k is None and top_p in (None, 1.0):
    return logits_BV
  order_BV = jnp.argsort(logits_BV, -1, descending=True, stable=True)
  ordered_BV = jnp.take_along_axis(logits_BV, order_BV, -1)
  if top_k is not None:
    kept_1V = (jnp.arange(logits_BV.shape[-1]) < top_k)[None]
    ordered_BV = jnp.where(kept_1V, ordered_BV, -jnp.inf)
  if top_p is not None and top_p < 1:
    p_BV = jax.nn.softmax(ordered_BV)
    before_BV = jnp.cumsum(p_BV, -1) - p_BV
    ordered_BV = jnp.where(before_BV < top_p, ordered_BV, -jnp.inf)
  return jnp.put_along_axis(logits_BV, order_BV, ordered_BV, -1, inplace=False)


def check_options(
  vocabulary: int,
  max_new_tokens: Count,
  temperature: NonNegative,
  top_k: Count | None,
  top_p: Share | None,
) -> None:
  """Raises UserError for sampling options out of range."""
  schema.check_arguments(check_options, locals())
  if top_k is not None and top_k > vocabulary:
    raise UserError(f"top_k is {top_k}, expected at most the vocabulary's {vocabulary}")


def pad_left(
  prompts: list[list[int]], pad: int, length: int
) -> tuple[Int[np.ndarray, "B T"], Bool[np.ndarray, "B T"]]:
  """Pads prompts of at most `length` tokens on the left; returns ids and mask, true on tokens."""
  tokens_BT = np.full((len(prompts), length), pad, np.int32)
  mask_BT = np.zeros((len(prompts), length), bool)
  for i, prompt in enumerate(prompts):
    tokens_BT[i, length - len(prompt) :] = prompt
    mask_BT[i, length - len(prompt) :] = True
  return tokens_BT, mask_BT


def until_stop(tokens: Iterable[int], stop_tokens: tuple[int, ...]) -> list[int]:
  """Returns the generated ids of a row before its first stop token."""
  return list(itertools.takewhile(lambda token: token not in stop_tokens, map(int, tokens)))
