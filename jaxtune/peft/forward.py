"""The forward pass of an adapted model: the one place where methods meet the model."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
from jaxtyping import Array, Key

from jaxtune import tree
from jaxtune.peft.adapted import Adapted, reparametrise, weights
from jaxtune.peft.method import Call, Method


def apply(
  model: nn.Module,
  adapted: Adapted,
  *args: Any,
  rng: Key[Array, ""] | None = None,
  method: Callable | None = None,
  **inputs: Any,
) -> Any:
  """Runs the model with the methods laid over it.

  Call it inside a jitted function, never around one: jax's cache of compiled programs does not see
  interceptors, so a cached program would run without the methods.

  Args:
    adapted: the weights, as `init` returns them; their arrays may be traced.
    *args, **inputs: the model's own arguments, for example tokens (B, T) and mask (B, T).
    rng: a random key, which turns dropout on; None is evaluation.
    method: the model's method to run, by default `__call__`.
  """
  methods = [m for m in adapted.methods if m.intercept is not None]
  with nn.intercept_methods(partial(_intercept, methods)):
    return model.apply(
      _variables(adapted, methods, inputs),
      *args,
      method=method,
      rngs=None if rng is None else {"dropout": rng},
      **inputs,
    )


def _variables(adapted: Adapted, methods: list[Method], inputs: dict[str, Any]) -> dict[str, Any]:
  """Collects what flax lets modules read: weights, and the arrays of methods that intercept."""
  names = {m.name for m in methods}
  # flax's scan needs a slice for each layer, which the arrays of other methods may lack.
  read = lambda arrays: tree.partition(arrays, lambda path: f"/{path}".split("/")[-2] in names)[0]
  shared, scanned = tree.partition(read(adapted.hyper), lambda path: "/shared:" in path)
  variables = {
    "params": weights(adapted),
    "peft": read(reparametrise(adapted.methods, adapted.tuned["peft"])),
    "hyper": scanned,
    "shared": shared,
  }
  # An encoder-decoder embeds two texts with one table, so that neither's mask fits both.
  if inputs.get("mask") is not None and "inputs" not in inputs:
    variables["batch"] = {"embed": {"mask": inputs["mask"]}}
  return variables


def _intercept(
  methods: list[Method], next_fn: Callable, args: tuple, kwargs: dict, context: Any
) -> Any:
  """Wraps a module's call by each method with arrays there; the last method is the outermost."""
  if context.method_name != "__call__":
    return next_fn(*args, **kwargs)
  module = context.module
  for m in methods:
    arrays: dict[str, Array] = {}
    for collection in ("hyper", "shared", "peft"):
      arrays |= module.get_variable(collection, m.name, {})
    if arrays:
      next_fn = partial(m.intercept, Call(module, arrays, next_fn))
  return next_fn(*args, **kwargs)
