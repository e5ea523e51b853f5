"""Makes optimizers whose numbers are arrays, so that trials with other numbers share a program."""

from __future__ import annotations

import re
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from jaxtune import tree
from jaxtune.models.heads import is_head
from jaxtune.schema import Natural, NonNegative, Positive, Rate

NUMBERS = ("learning_rate", "warmup", "weight_decay", "head_ratio")
# Names of the leaves without weight decay: biases ("up_bias", "bias2"), scales ("norm_scale"), the
# vectors of IA3 and the magnitudes of DoRA.
UNDECAYED = re.compile(r"(.*_)?(bias.*|scale)|l|l_in|magnitude")


def make(
  numbers: dict[str, Any] | None = None,
  steps: int = 1,
  *,
  name: Literal["adamw", "lion", "sgd"] = "adamw",
  learning_rate: NonNegative = 1e-3,
  schedule: Literal["constant", "linear", "cosine"] = "linear",
  warmup: Natural = 0,
  weight_decay: NonNegative = 0.0,
  head_ratio: NonNegative = 1.0,
  clip: Positive | None = 1.0,
  b1: Rate = 0.9,
  b2: Rate = 0.999,
  epsilon: Positive = 1e-8,
) -> optax.GradientTransformation:
  """Makes an elementwise optimizer, so that padded trials stay equal to their solo runs.

  Args:
    numbers: traced values that replace learning_rate, warmup and weight_decay.
    steps: number of steps of the run, after which "linear" and "cosine" have reached zero.
    name: "adamw", "lion" or "sgd" (with momentum b1).
    learning_rate: the peak.
    warmup: number of steps in which the learning rate rises linearly, from peak / warmup at the
      first one.
    weight_decay: decoupled; not applied to the leaves in UNDECAYED.
    head_ratio: learning rate of a head's own weights and BERT's pooler over that of everything
      else. A task has such a head, and so has a language model whose output is not tied to its
      embeddings. `scale` applies it, and not this optimizer.
    clip: largest global norm of the gradient; None for no limit.
    b1, b2, epsilon: numbers of the optimizer; sgd uses b1 alone, and lion no epsilon.
  """
  given = {"learning_rate": learning_rate, "warmup": warmup, "weight_decay": weight_decay}
  numbers = given | (numbers or {})
  rate = lambda count: numbers["learning_rate"] * share(schedule, count, numbers["warmup"], steps)
  decay = {"weight_decay": numbers["weight_decay"], "mask": _decayed}
  rule = {
    "adamw": lambda: optax.adamw(rate, b1, b2, epsilon, **decay),
    "lion": lambda: optax.lion(rate, b1, b2, **decay),
    "sgd": lambda: optax.chain(
      optax.trace(b1), optax.add_decayed_weights(**decay), optax.scale_by_learning_rate(rate)
    ),
  }[name]()
  return rule if clip is None else optax.chain(optax.clip_by_global_norm(clip), rule)


def scale(changes: PyTree, hyper: PyTree, head_ratio: Float[Array, ""] | float) -> PyTree:
  """Multiplies an update where the learning rate differs: at a head, and at arrays with a "rate:X".

  Their weight decay is thus multiplied too, as in an optimizer with groups of parameters.

  Args:
    hyper: the methods' fixed numbers; "rate:X" is the ratio for the trained array X of a site.
  """
  rates = tree.flatten(hyper)
  flat = tree.flatten(changes)
  for path, change in flat.items():
    place, _, name = path.removeprefix("peft/").rpartition("/")
    rate = rates.get(f"{place}/rate:{name}")
    if path.startswith("params/") and is_head(path.removeprefix("params/")):
      rate = head_ratio
    if rate is not None:
      flat[path] = change * rate.reshape(rate.shape + (1,) * (change.ndim - rate.ndim))
  return {"params": {}, "peft": {}} | tree.unflatten(flat)


def share(schedule: str, count: Array | int, warmup: Array | int, steps: int) -> Array:
  """Returns the share of the peak learning rate at the update after `count` updates."""
  rise = jnp.minimum((count + 1) / jnp.maximum(warmup, 1), 1.0)
  remaining = jnp.clip((steps - count) / jnp.maximum(steps - warmup, 1), 0.0, 1.0)
  if schedule == "constant":
    remaining = 1.0
  elif schedule == "cosine":
    remaining = 0.5 * (1 + jnp.cos(jnp.pi * (1 - remaining)))
  return jnp.where(count < warmup, rise, remaining)


def _decayed(params: PyTree) -> PyTree:
  """Returns whether each leaf has weight decay."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: UNDECAYED.fullmatch(path[-1].key) is None, params
  )
