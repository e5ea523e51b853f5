"""IA3: activations are rescaled by trained vectors that start at one (Liu et al. 2022, sec. 3.3).

In the paper, "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context
Learning", keys become l_k * K, values l_v * V, and the hidden layer of the feed-forward network
l_ff * act(W_1 x).
"""

from __future__ import annotations

from functools import partial

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxtune import peft
from jaxtune.errors import UserError
from jaxtune.models.layers import times


def method(
  *, targets: tuple[str, ...] = ("k_proj", "v_proj"), feedforward: tuple[str, ...] = ("down_proj",)
) -> peft.Method:
  """Multiplies outputs of some linear layers, and inputs of others, by trained vectors.

  Args:
    targets: regular expressions, matched against the end of the path of Linear sites whose outputs
      are multiplied: y = l * (W x + b). The defaults also hit an encoder-decoder's cross-attention.
    feedforward: the same for sites whose inputs are multiplied: y = W (l_in * x) + b. One of the
      two may be empty, and no site may be hit by both.

  All vectors start at one, so that training starts from the base, and are exempt from weight decay.
  """
  if not targets and not feedforward:
    raise UserError("method.targets and method.feedforward are empty: expected one target at least")
  return peft.Method(
    "ia3",
    init=partial(_init, targets=targets, feedforward=feedforward),
    intercept=_intercept,
    merge=_merge,
    patterns=(*targets, *feedforward),
    options=dict(targets=tuple(targets), feedforward=tuple(feedforward)),
  )


def _init(
  key: Array, sites: dict[str, peft.Site], frozen: peft.Frozen, *,
  targets: tuple[str, ...], feedforward: tuple[str, ...],
) -> tuple[peft.Arrays, peft.Arrays]:  # fmt: skip
  hit = lambda patterns: peft.match(patterns, sites, "Linear") if patterns else {}
  outputs, inputs = hit(targets), hit(feedforward)
  if both := outputs.keys() & inputs.keys():
    raise UserError(
      f"{min(both)} is hit by method.targets and by method.feedforward; expected one of them"
    )
  trained = {path: {"l": jnp.ones((*s.lead, s.output))} for path, s in outputs.items()}
  trained |= {p: {"l_in": jnp.ones((*s.lead, s.input))} for p, s in inputs.items()}
  return trained, {}


def _intercept(call: peft.Call, x_BTI: Float[Array, "*BT I"]) -> Float[Array, "*BT O"]:
  if "l_in" in call.arrays:
    return call.next_fn(times(x_BTI, call.arrays["l_in"]))
  return times(call.next_fn(x_BTI), call.arrays["l"])


def _merge(leaves: dict[str, Array], vectors: dict[str, Array]) -> dict[str, Array]:
  if "l_in" in vectors:
    return {"kernel": leaves["kernel"] * vectors["l_in"][..., :, None]}
  factors = {"kernel": vectors["l"][..., None, :], "bias": vectors["l"]}
  return {name: leaf * factors[name] for name, leaf in leaves.items()}
