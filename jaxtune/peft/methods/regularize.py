"""Regularisation by noise in training; it trains nothing and stacks with every method."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxtune import peft
from jaxtune.schema import NonNegative, Rate


def method(
  dropout: Rate = 0.0, token_dropout: Rate = 0.0, neftune: NonNegative = 0.0
) -> peft.Method:
  """Adds dropout and noise to the forward pass of the frozen model, in training alone.

  Args:
    dropout: rate at which entries of the embeddings and of every sublayer's output are set to zero
      (Srivastava et al. 2014; where BERT and T5 have theirs).
    token_dropout: rate at which whole input tokens lose their embedding (Gal & Ghahramani 2016).
    neftune: alpha of uniform noise in [-1, 1] * alpha / sqrt(T * D) on the embeddings (Jain et al.
      2023), where T is the row's length without padding, as in the authors' training code; of
      encoder-decoders the padded length, as in transformers.
  """
  numbers = dict(dropout=dropout, token_dropout=token_dropout, neftune=neftune)

  def init(key, sites, frozen):
    residuals = {path: site for path, site in sites.items() if site.kind == "Residual"}
    fixed = {path: site.constants({"dropout": dropout}) for path, site in residuals.items()}
    return {}, fixed | {"embed": sites["embed"].constants(numbers)}

  return peft.Method(
    "regularize", init=init, intercept=_intercept, groupable=tuple(numbers), options=numbers
  )


def _intercept(call: peft.Call, *args: Array) -> Float[Array, "B T D"]:
  """Applies the noise to the embeddings, or dropout to what a residual connection adds."""
  module, arrays = call.module, call.arrays
  if not module.has_rng("dropout"):
    return call.next_fn(*args)
  if "neftune" not in arrays:
    x_BTD, y_BTD = args
    return call.next_fn(x_BTD, call.dropout(y_BTD))
  x_BTD = call.next_fn(*args)
  noise = jax.random.uniform(module.make_rng("dropout"), x_BTD.shape, x_BTD.dtype, -1.0, 1.0)
  mask_BT = module.get_variable("batch", "mask", jnp.ones(x_BTD.shape[:2], bool))
  lengths_B11 = jnp.maximum(mask_BT.sum(1), 1)[:, None, None]
  size_B11 = arrays["neftune"] / jnp.sqrt(lengths_B11 * x_BTD.shape[2])
  x_BTD = x_BTD + noise * size_B11.astype(x_BTD.dtype)
  kept = jax.random.bernoulli(
    module.make_rng("dropout"), 1.0 - arrays["token_dropout"], (*x_BTD.shape[:2], 1)
  )
  return call.dropout(jnp.where(kept, x_BTD, 0))
