"""Draws tokens by their logits: greedily, or with a temperature, top-k and top-p."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jaxtune import schema
from jaxtune.errors import UserError
from jaxtune.schema import Count, NonNegative, Share


def draw(
  logits_BV: Float[Array, "B V"],
  at_B: Int[Array, " B"],
  keys_B: Key[Array, " B"] | None,
  temperature: float,
  top_k: int | None,
  top_p: float | None,
) -> Int[Array, " B"]:
  """Draws token `at_B` of each row with the row's own key; greedily where the temperature is 0.

  One uniform number is drawn for each row, and the first token is taken at which the sum of the
  probabilities so far is above it, which needs no noise for every token of the vocabulary.
  """
  if not temperature:
    return logits_BV.argmax(-1).astype(jnp.int32)
  keys_B = jax.vmap(jax.random.fold_in)(keys_B, at_B)
  p_BV = jax.nn.softmax(restrict(logits_BV / temperature, top_k, top_p))
  # Sums are rounded: a token of probability 0 is not taken, wherever the number falls.
  sums_BV = jnp.where(p_BV > 0, jnp.cumsum(p_BV, -1), 0.0)
  bounds_B1 = jax.vmap(jax.random.uniform)(keys_B)[:, None] * sums_BV.max(-1, keepdims=True)
  return (sums_BV > bounds_B1).argmax(-1).astype(jnp.int32)


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
  vocabulary: int | None,
  max_new_tokens: Count,
  temperature: NonNegative,
  top_k: Count | None,
  top_p: Share | None,
) -> None:
  """Raises UserError for sampling options out of range.

  Args:
    vocabulary: the size of the model's; None before the model is loaded.
  """
  schema.check_arguments(check_options, locals())
  if None not in (top_k, vocabulary) and top_k > vocabulary:
    raise UserError(f"top_k is {top_k}, expected at most the vocabulary's {vocabulary}")
