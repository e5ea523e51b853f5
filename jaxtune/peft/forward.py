"""The forward pass of an adapted model: the one place where methods meet the model."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
from jaxtyping import Array, Key, PyTree

from jaxtune import sharding, tree
from jaxtune.peft.adapted import Adapted, in_parts, reparametrise, weights
from jaxtune.peft.method import Call, Method


def apply(
  model: nn.Module,
  adapted: Adapted,
  *args: Any,
  rng: Key[Array, ""] | None = None,
  method: Callable | None = None,
  backward: bool = False,
  **inputs: Any,
) -> Any:
  """Runs the model with the methods laid over it.

  Call it inside a jitted function, never around one: jax's cache of compiled programs does not see
  interceptors, so a cached program would run without the methods.

  Args:
    adapted: the weights, as `init` returns them; their arrays may be traced.
    *args, **inputs: the model's own arguments, for example tokens (B, T) and mask (B, T).
    rng: a random key, which turns dropout on; None is evaluation.
    method: the model's method to run; by default `__call__`, which alone can run layers in parts.
    backward: whether the result of `__call__` is differentiated. Layers below the `lowest` of a
      method are then run without it.
  """
  methods = [m for m in adapted.methods if m.intercept is not None]
  read = in_parts(adapted) if method is None else {"params": weights(adapted)}
  with nn.intercept_methods(partial(_intercept, methods)):
    return model.apply(
      read | _variables(adapted, methods, inputs, backward),
      *args,
      method=method,
      rngs=None if rng is None else {"dropout": rng},
      **inputs,
    )


def _variables(
  adapted: Adapted, methods: list[Method], inputs: dict[str, Any], backward: bool
) -> dict[str, Any]:
  """Collects what flax lets modules read beside weights: the arrays of methods that intercept."""
  names = {m.name for m in methods}
  # flax's scan needs a slice for each layer, which the arrays of other methods may lack.
  read = lambda arrays: tree.partition(arrays, lambda path: f"/{path}".split("/")[-2] in names)[0]
  shared, scanned = tree.partition(read(adapted.hyper), lambda path: "/shared:" in path)
  variables = {
    "peft": read(reparametrise(adapted.methods, adapted.tuned["peft"])),
    "hyper": scanned,
    "shared": shared,
  }
  if backward:
    variables |= {kind: _from_lowest(methods, variables[kind]) for kind in ("peft", "hyper")}
  # An encoder-decoder embeds two texts with one table, so that neither's mask fits both.
  if inputs.get("mask") is not None and "inputs" not in inputs:
    variables["batch"] = {"embed": {"mask": inputs["mask"]}}
  return variables


def _from_lowest(methods: list[Method], arrays: PyTree) -> PyTree:
  """Returns a tree of methods' arrays without the layers below each one's `Method.lowest`."""
  lowest = {m.name: m.lowest for m in methods}
  cut = lambda path, x: x[lowest[path.split("/")[-2]](len(x)) :] if "/layers/" in path else x
  return tree.unflatten({path: cut(path, x) for path, x in tree.flatten(arrays).items()})


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
      arrays |= sharding.gathered(module.get_variable(collection, m.name, {}))
    if arrays:
      next_fn = partial(m.intercept, Call(module, arrays, next_fn))
  return next_fn(*args, **kwargs)
