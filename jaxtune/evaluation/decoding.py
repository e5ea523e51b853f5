"""The two calls that generation is made of, prefill and decode, for one adapter or for many."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxtune import peft, tree
from jaxtune.models.decoder import ROW_AXES, Cache, map_rows

LARGE = 2**24  # bytes of layers that do not stay in a processor's cache from token to token


class Calls(NamedTuple):
  """What generation calls.

  Attributes:
    prefill: (numbers (R,), prompts (R, T), mask (R, T)) -> (logits (R, V), Cache); the numbers say
      which texts the rows are.
    decode: (numbers (B,), tokens (B,), cache) -> (logits (B, V), cache), with caches in the form
      that `unstack` gives them.
    unstack, stack: (Cache) -> Cache; where the layers are computed in a row, their keys and values
      are kept apart while tokens are decoded.
  """

  prefill: Callable
  decode: Callable
  unstack: Callable
  stack: Callable


def calls(
  model: nn.Module, adapted: peft.Adapted, room: int, which_N: Int[Array, " N"] | None = None
) -> Calls:
  """Returns the calls of a model with one adapter, or with each text's own.

  On a CPU the layers of a large model are computed in a row. A loop over them would copy each
  layer's weights out of the stack for every token. So the weights are taken apart once, and put
  into a stack where they are used, which costs nothing: XLA sees through it. Meanwhile the layers'
  weights are in memory twice.

  Args:
    room: how many tokens may follow a prompt.
    which_N: the adapter of each text; `adapted` then has the arrays of all adapters, stacked.
  """

  def call(method: str, model: nn.Module, adapted: peft.Adapted, numbers_B: Array, *args: Any):
    run = lambda one, *args: peft.apply(model, one, *args, method=getattr(model, method))
    if which_N is None:
      return run(adapted, *args)
    return _by_row(run, adapted, which_N[numbers_B], *args)

  prefill = lambda *args: call("prefill", model, adapted, *args, room)
  # Weights that each adapter has trained in place have an axis of adapters before that of layers.
  own = which_N is not None
  layers, others = tree.partition(
    {"base": adapted.base, "params": {} if own else adapted.tuned["params"]},
    lambda path: path.split("/")[1:3] in (["trunk", "layers"], ["decoder", "layers"]),
  )
  if model.config.runs_on != "cpu" or sum(x.nbytes for x in jax.tree.leaves(layers)) < LARGE:
    same = lambda cache: cache
    return Calls(prefill, lambda *args: call("decode", model, adapted, *args), same, same)
  depth = model.config.layers
  unrolled = model.clone(config=dataclasses.replace(model.config, unroll=depth))
  apart = lambda stacked: [jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(depth)]
  join = lambda parts: jax.tree.map(lambda *layers: jnp.stack(layers), *parts)
  unstack = lambda cache: cache._replace(layers=apart(cache.layers))
  stack = lambda cache: cache._replace(layers=join(cache.layers))
  weights = jax.lax.optimization_barrier(apart(layers))  # not to be taken apart for each token

  def decode(numbers_B: Array, tokens_B: Array, cache: Cache) -> tuple[Array, Cache]:
    whole = tree.combine(join(weights), others)
    params = adapted.tuned["params"] if own else whole.get("params", {})
    tuned = adapted.tuned | {"params": params}
    whole = adapted._replace(base=whole.get("base", {}), tuned=tuned)
    logits_BV, cache = call("decode", unrolled, whole, numbers_B, tokens_B, stack(cache))
    return logits_BV, unstack(cache)

  return Calls(prefill, decode, unstack, stack)


def _by_row(
  run: Callable, adapted: peft.Adapted, which_B: Int[Array, " B"], *args: Any
) -> tuple[Array, Cache]:
  """Calls run(adapter which_B[i], row i of each argument) for all rows; numbers are no rows.

  The base's weights carry no axis of rows, so its products stay those of the whole batch. The
  adapters' own become batched products, a row's x times the row's a and b (the gathered matrix
  product of Punica, Chen et al. 2023), for every method that jaxtune has.
  """
  axes = [ROW_AXES if isinstance(x, Cache) else None if isinstance(x, int) else 0 for x in args]

  def row(overlay: peft.Overlay, *args: Any) -> tuple[Array, Cache]:
    batch = [
      map_rows(lambda axis, y: jnp.expand_dims(y, axis), x) if isinstance(x, Cache)
      else x if axis is None else x[None]
      for x, axis in zip(args, axes, strict=True)
    ]  # fmt: skip
    logits_1V, cache = run(adapted._replace(**overlay._asdict()), *batch)
    return logits_1V[0], map_rows(lambda axis, y: y.squeeze(axis), cache)

  own = jax.tree.map(lambda x: x[which_B], adapted.overlay)
  return jax.vmap(row, (0, *axes), (0, ROW_AXES))(own, *args)
