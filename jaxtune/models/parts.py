"""Runs a stack of layers in several scans, where some arrays belong to its last layers alone.

One scan runs its backward pass through all layers, and returns a gradient of whole stacks, even if
only the last layers are trained. In a scan of its own, a layer below these has no gradients of
weights, and if nothing below it is trained either, no backward pass: nothing is stored for one.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from operator import itemgetter
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxtune import tree

# The collections whose arrays may belong to the last layers alone.
SHORT = ("last", "peft", "hyper")


def needed(variables: dict[str, PyTree], depth: int) -> bool:
  """Says whether some of the layers' arrays take the place of others, or are not in all layers."""
  arrays = [x for kind in SHORT for x in jax.tree.leaves(variables.get(kind))]
  return "last" in variables or any(len(x) < depth for x in arrays)


def run(
  layer: Callable[[dict, Array, PyTree], Array],
  variables: dict[str, PyTree],
  x_BTD: Float[Array, "B T D"],
  of_layers: PyTree,
  policy: Callable | None,
  unroll: int,
) -> Float[Array, "B T D"]:
  """Runs one scan from each layer with which arrays of `SHORT` begin to the next such layer.

  Args:
    layer: (variables, x, of_layer) -> x, with one layer's slices of `variables` and `of_layers`.
    variables: flax's collections of the layers. Arrays in `SHORT` that are shorter than L are those
      of the last layers, and the others have no such array; "last" takes the place of "params".
    of_layers: what else each layer reads, arrays (L, ...).
    policy: what is stored of a layer for the backward pass; None for all but its own "params": they
      are taken out of the stack where they are read, as stored they would be a copy.
  """
  depth = len(jax.tree.leaves(of_layers)[0])
  short = tree.flatten({kind: variables[kind] for kind in SHORT if kind in variables})
  params, shared = tree.flatten(variables["params"]), variables.get("shared", {})
  first = {path: depth - len(x) for path, x in short.items()}
  for start, stop in itertools.pairwise(sorted({0, depth, *first.values()})):
    own = {p: x[start - first[p] : stop - first[p]] for p, x in short.items() if first[p] <= start}
    frozen = {p: x for p, x in params.items() if f"last/{p}" not in own}

    def step(x_BTD: Array, slices: tuple, frozen: dict = frozen) -> tuple[Array, None]:
      i, own, of_layer = slices
      read = {p: jax.lax.dynamic_index_in_dim(x, i, keepdims=False) for p, x in frozen.items()}
      one = tree.unflatten(own)
      one["params"] = tree.combine(tree.unflatten(read), one.pop("last", {}))
      return layer(one | {"shared": shared}, x_BTD, of_layer), None

    step = jax.checkpoint(step, prevent_cse=False, policy=policy or _all_but_slices)
    of_part = jax.tree.map(itemgetter(slice(start, stop)), of_layers)
    x_BTD, _ = jax.lax.scan(step, x_BTD, (jnp.arange(start, stop), own, of_part), unroll=unroll)
  return x_BTD


def _all_but_slices(primitive: Any, *_: Any, **__: Any) -> bool:
  """Says whether a result is stored: `dynamic_index_in_dim` consists of the two that are not."""
  return primitive.name not in ("dynamic_slice", "squeeze")
