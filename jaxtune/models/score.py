"""Scores targets by logits of which only a part is in memory at a time."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from jaxtune import sharding

Score = Callable[[Array, Array], tuple[Array, PyTree]]


def in_parts(
  logits: Callable[[PyTree, PyTree, Array, Array], Array],
  score: Score,
  part: int,
  weights: tuple[PyTree, PyTree],
  x_BTD: Float[Array, "B T D"],
  targets_BT: Int[Array, "B T"],
) -> tuple[Float[Array, "B T"], PyTree]:
  """Returns score(logits(*weights, x, i), targets) of part i of the tokens, for all parts, joined.

  The forward pass of a training step computes the gradient of the states too, so that the backward
  pass needs no logits; it computes them again only if a weight that makes logits is trained.

  Args:
    score: (logits (B, T, V), targets) -> (losses (B, T), others). Each token's losses depend on its
      own logits alone; no gradient goes through the others.
    part: how many tokens of each row a part has; on a mesh, from each device of "sequence".
    weights: trees of which the first may be trained.
  """

  def of_part(tuned, fixed, i, x_BtD, targets_Bt):
    return score(logits(tuned, fixed, x_BtD, i), targets_Bt)

  return _run(of_part, part, *weights, x_BTD, targets_BT)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _run(
  of_part: Callable, part: int, tuned: PyTree, fixed: PyTree, x_BTD: Array, targets_BT: Array
):
  step = lambda i, tokens: (i + 1, of_part(tuned, fixed, i, *tokens))
  return _join(jax.lax.scan(step, 0, _split(part, x_BTD, targets_BT))[1], x_BTD)


def _forward(of_part: Callable, part: int, *arguments: PyTree) -> tuple[PyTree, tuple]:
  """Returns what `_run` does, and what `_backward` needs: the gradient of the states (B, T, D)."""
  trained = any(leaf.perturbed for leaf in jax.tree.leaves(arguments[0], is_leaf=_is_leaf))
  read = partial(jax.tree.map, lambda leaf: leaf.value, is_leaf=_is_leaf)
  tuned, fixed, x_BTD, targets_BT = values = read(arguments)

  def step(i, tokens):
    call = lambda x: of_part(tuned, fixed, i, x, tokens[1])
    losses_Bt, pull, others = jax.vjp(call, tokens[0], has_aux=True)
    return i + 1, ((losses_Bt, others), pull(jnp.ones_like(losses_Bt))[0])

  parts = jax.lax.scan(step, 0, _split(part, x_BTD, targets_BT))[1]
  out, gradient_BTD = _join(parts, x_BTD)
  return out, (gradient_BTD, values if trained else None)


def _backward(of_part: Callable, part: int, saved: tuple, cotangents: tuple) -> tuple:
  """Returns the gradients of `_run`'s arguments; those of the weights only if one is trained."""
  (gradient_BTD, values), weights_BT = saved, cotangents[0]
  of_x_BTD = gradient_BTD * weights_BT[..., None].astype(gradient_BTD.dtype)
  if values is None:
    return None, None, of_x_BTD, None
  tuned, fixed, x_BTD, targets_BT = values

  def step(carry, tokens):
    (i, total), (x_BtD, targets_Bt, weights_Bt) = carry, tokens
    pull = jax.vjp(lambda w: of_part(w, fixed, i, x_BtD, targets_Bt)[0], tuned)[1]
    return (i + 1, jax.tree.map(jnp.add, total, pull(weights_Bt)[0])), None

  zeros = jax.tree.map(jnp.zeros_like, tuned)
  (_, total), _ = jax.lax.scan(step, (0, zeros), _split(part, x_BTD, targets_BT, weights_BT))
  return total, None, of_x_BTD, None


_run.defvjp(_forward, _backward, symbolic_zeros=True)


def _is_leaf(node: Any) -> bool:
  """Says whether a node is what `custom_vjp` gives for an array: a value that may be perturbed."""
  return hasattr(node, "perturbed")


def _split(part: int, *arrays: Array) -> tuple[Array, ...]:
  """Splits tokens (B, T, ...) into parts (count, B, shards * part, ...), the last ones padded.

  Every part has tokens of all `shards` of the sequence, so that no device waits for another one.
  """
  shards = sharding.size("sequence")

  def split(x_BT):
    rows, length, *rest = x_BT.shape
    each = -(-length // shards)
    count = -(-each // part)
    pad = lambda x, axis, by: jnp.pad(x, [(0, by * (i == axis)) for i in range(x.ndim)])
    by_shard = pad(x_BT, 1, shards * each - length).reshape(rows, shards, each, *rest)
    parts = pad(by_shard, 2, count * part - each).reshape(rows, shards, count, part, *rest)
    return jnp.moveaxis(parts, 2, 0).reshape(count, rows, shards * part, *rest)

  return tuple(map(split, arrays))


def _join(parts: PyTree, like_BT: Array) -> PyTree:
  """Joins parts (count, B, shards * part, ...) to as many tokens (B, T, ...) as `like_BT` has."""
  (rows, length), shards = like_BT.shape[:2], sharding.size("sequence")
  each = -(-length // shards)

  def join(x):
    count, _, tokens, *rest = x.shape
    by_shard = jnp.moveaxis(x.reshape(count, rows, shards, tokens // shards, *rest), 0, 2)
    whole = by_shard.reshape(rows, shards, -1, *rest)[:, :, :each].reshape(rows, -1, *rest)
    return whole[:, :length]

  return jax.tree.map(join, parts)
