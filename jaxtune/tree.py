"""Trees of arrays as flat {path: leaf} dicts: split, joined, padded and fingerprinted."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util


def flatten(tree: Any) -> dict[str, Any]:
  """Turns nested dicts into {"trunk/norm/scale": leaf}."""
  return traverse_util.flatten_dict(tree, sep="/")


def unflatten(flat: dict[str, Any]) -> dict:
  """Turns {"trunk/norm/scale": leaf} into nested dicts."""
  return traverse_util.unflatten_dict(flat, sep="/")


def partition(tree: Any, chosen: Callable[[str], bool]) -> tuple[dict, dict]:
  """Splits a tree by path into (leaves that are chosen, the others)."""
  flat = flatten(tree)
  inside = {path: leaf for path, leaf in flat.items() if chosen(path)}
  return unflatten(inside), unflatten({p: x for p, x in flat.items() if p not in inside})


def combine(*trees: Any) -> dict:
  """Joins trees into one; at a path that several hold, the last one's leaf stays."""
  return unflatten(reduce(lambda a, b: a | b, map(flatten, trees), {}))


def size(tree: Any) -> int:
  """Counts the numbers in a tree."""
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def stack(trees: list[Any]) -> Any:
  """Stacks trees of one structure along a new first axis, padding leaves with zeros.

  Every leaf is padded at the end of each axis to the largest among the trees: ranks, widths and
  prefix lengths become arrays. Zeros in both factors of a product get a zero gradient, so the
  padding stays zero under any elementwise optimizer.
  """
  def join(*leaves):
    leaves = [jnp.asarray(leaf) for leaf in leaves]
    shape = [max(sizes) for sizes in zip(*(leaf.shape for leaf in leaves), strict=True)]
    pad = lambda x: jnp.pad(x, [(0, n - m) for m, n in zip(x.shape, shape, strict=True)])
    return jnp.stack([pad(leaf) for leaf in leaves])

  return jax.tree.map(join, *trees)


def crop(tree: Any, like: Any) -> Any:
  """Cuts every leaf to the shape of the leaf in `like`: undoes the padding of `stack`."""
  return jax.tree.map(lambda x, shape: x[tuple(map(slice, shape.shape))], tree, like)


def fingerprint(tree: Any) -> str:
  """Hashes names, shapes, types and values; equal trees have equal fingerprints everywhere."""

  @jax.jit
  def digest(x):
    bits = jax.lax.bitcast_convert_type(x, {2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize])
    bits = bits.astype(jnp.uint32).ravel()
    mixed = (bits + 1) * (jnp.arange(bits.size, dtype=jnp.uint32) * 2654435761 + 97)
    return mixed.sum(dtype=jnp.uint32), (mixed ^ (mixed >> 15)).sum(dtype=jnp.uint32)

  parts = [
    (path, leaf.shape, str(leaf.dtype), *map(int, digest(leaf)))
    for path, leaf in sorted(flatten(tree).items())
  ]
  return hashlib.sha256(repr(parts).encode()).hexdigest()
