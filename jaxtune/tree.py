"""Flattens, splits, joins, pads, checks and hashes trees of arrays."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxtune import hosts
from jaxtune.errors import UserError


def flatten(tree: Any) -> dict[str, Any]:
  """Turns nested dicts into {"trunk/norm/scale": leaf}."""
  return traverse_util.flatten_dict(tree, sep="/")


def unflatten(flat: dict[str, Any]) -> dict:
  """Turns {"trunk/norm/scale": leaf} into nested dicts."""
  return traverse_util.unflatten_dict(flat, sep="/")


def partition(tree: Any, chosen: Callable[[str], bool]) -> tuple[dict, dict]:
  """Splits a tree into (the leaves whose path is chosen, the others)."""
  flat = flatten(tree)
  inside = {path: leaf for path, leaf in flat.items() if chosen(path)}
  return unflatten(inside), unflatten({p: x for p, x in flat.items() if p not in inside})


def combine(*trees: Any) -> dict:
  """Joins trees into one; of several leaves at one path the last is kept."""
  return unflatten(reduce(lambda a, b: a | b, map(flatten, trees), {}))


def size(tree: Any) -> int:
  """Counts the numbers in a tree."""
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


@jax.jit
def stack(trees: list[Any]) -> Any:
  """Stacks trees of one structure along a new first axis, padding leaves with zeros.

  Every leaf is padded at the end of each axis to the largest size among the trees, so that trials
  may differ in rank, width or prefix length. Where both factors of a product are zero, their
  gradients are zero too, so the padding stays zero under any elementwise optimizer.
  """

  def join(*leaves: Any) -> jax.Array:
    leaves = [jnp.asarray(leaf) for leaf in leaves]
    shape = [max(sizes) for sizes in zip(*(leaf.shape for leaf in leaves), strict=True)]
    ends = [[n - m for m, n in zip(leaf.shape, shape, strict=True)] for leaf in leaves]
    pad = lambda x, end: jnp.pad(x, [(0, n) for n in end]) if any(end) else x
    return jnp.stack(list(map(pad, leaves, ends)))

  return jax.tree.map(join, *trees)


def crop(tree: Any, like: Any) -> Any:
  """Cuts every leaf to the shape of its counterpart in `like`, to undo the padding of `stack`."""
  return jax.tree.map(lambda x, shape: x[tuple(map(slice, shape.shape))], tree, like)


def check_finite(flat: dict[str, Any], where: str) -> None:
  """Raises UserError where one of {path: array} holds NaN or infinity, as after a divergence."""
  for path, x in flat.items():
    if not np.isfinite(np.asarray(x)).all():
      raise UserError(f"{where}: {path} holds NaN or infinity, expected finite numbers")


def fingerprint(tree: Any) -> str:
  """Returns a hash of names, shapes, types and values; it is the same on all devices."""
  leaves = [
    (path, leaf.shape, str(leaf.dtype), *map(int, _digest(leaf)))
    for path, leaf in sorted(flatten(tree).items())
  ]
  return hashlib.sha256(repr(leaves).encode()).hexdigest()


def _digest(x: jax.Array) -> list[Any]:
  """Sums a hash of each element and its index, for two seeds; devices may add in any order."""
  if x.size >= 2**18:
    return _hashes_on_devices(x)
  x = hosts.fetch(x).ravel()  # numpy is done sooner than XLA compiles a program for this shape
  return _hashes(x, np.arange(x.size, dtype=np.uint32))


@jax.jit
def _hashes_on_devices(x: jax.Array) -> list[Any]:
  """Returns what `_digest` does; each device hashes its own part of the array."""
  strides = [math.prod(x.shape[axis + 1 :]) % 2**32 for axis in range(x.ndim)]
  places = [jax.lax.broadcasted_iota(np.uint32, x.shape, axis) for axis in range(x.ndim)]
  terms = [np.uint32(stride) * at for stride, at in zip(strides, places, strict=True)]
  return _hashes(x, sum(terms, jnp.zeros((), np.uint32)))


def _hashes(x: Any, index: Any) -> list[Any]:
  """Returns the two sums of `_digest`, of an array of numpy or jax and its elements' indices."""
  x = x.astype(np.uint8) if x.dtype == bool else x
  unsigned = {1: np.uint8, 2: np.uint16, 4: np.uint32}[x.dtype.itemsize]
  bits = x.view(unsigned).astype(np.uint32)
  seeds = (np.uint32(0), np.uint32(0x9E3779B9))
  return [_mix(bits ^ _mix(index ^ seed)).sum(dtype=np.uint32) for seed in seeds]


def _mix(h: Any) -> Any:
  """Maps 32-bit words to others, one to one (the finaliser of MurmurHash3)."""
  h = (h ^ (h >> 16)) * np.uint32(0x85EBCA6B)
  h = (h ^ (h >> 13)) * np.uint32(0xC2B2AE35)
  return h ^ (h >> 16)


def over_trials(function: Callable, chunk: int, mesh: Mesh | None = None) -> Callable:
  """Maps function(trial, shared, batch) over the first axis of trial and batch.

  Args:
    function: takes one trial's arrays, the arrays that all trials share, and one trial's batch.
    chunk: how many trials each device computes together, by one vmap; the program loops over the
      chunks. On a CPU choose 1, on an accelerator as many as its memory holds.
    mesh: of the devices. Each part of its axis "trial" takes an equal share of the trials; where
      they do not divide, the last one is computed more than once.
  """
  local, shards = _in_chunks(function, chunk), 1 if mesh is None else mesh.shape["trial"]

  def run(trials: Any, shared: Any, batches: Any) -> Any:
    count = jax.tree.leaves(trials)[0].shape[0]
    each = -(-count // shards)

    def split(x: jax.Array) -> jax.Array:
      if more := shards * each - count:
        x = jnp.concatenate([x, jnp.broadcast_to(x[-1:], (more, *x.shape[1:]))])
      parts = x.reshape(shards, each, *x.shape[1:])
      spec = P("trial", *[P.UNCONSTRAINED] * (parts.ndim - 1))
      return jax.lax.with_sharding_constraint(parts, NamedSharding(mesh, spec))

    mapped = jax.vmap(local, (0, None, 0), spmd_axis_name="trial")
    out = mapped(jax.tree.map(split, trials), shared, jax.tree.map(split, batches))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:count], out)

  return local if shards == 1 else run


def _in_chunks(function: Callable, chunk: int) -> Callable:
  """Does what `over_trials` does for the trials of one part."""

  def run(trials: Any, shared: Any, batches: Any) -> Any:
    count = jax.tree.leaves(trials)[0].shape[0]
    if count == 1:
      squeeze = lambda x: jax.tree.map(lambda leaf: leaf[0], x)
      out = function(squeeze(trials), shared, squeeze(batches))
      return jax.tree.map(lambda leaf: leaf[None], out)
    apply = lambda pair: function(pair[0], shared, pair[1])
    if chunk >= count:
      return jax.vmap(apply)((trials, batches))
    return jax.lax.map(apply, (trials, batches), batch_size=chunk if chunk > 1 else None)

  return run
