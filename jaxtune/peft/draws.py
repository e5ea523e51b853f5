"""Random draws that stay the same whatever else is drawn."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, Shaped


def site_key(key: Key[Array, ""], *names: str) -> Key[Array, ""]:
  """Derives the random key of a named place, which does not depend on what else is trained."""
  for name in names:
    key = jax.random.fold_in(key, zlib.crc32(name.encode()))
  return key


def uniform(bound: float) -> Callable:
  """Returns an initializer that draws from the interval of -bound to bound."""
  return partial(jax.random.uniform, minval=-bound, maxval=bound)


def draw(
  initializer: Callable, key: Key[Array, ""], shape: tuple[int, ...], axis: int
) -> Shaped[Array, ...]:
  """Draws an array of which each slice along an axis has a random key of its own.

  So along its axis of ranks, an array of rank 4 is the start of the one of rank 8.

  Args:
    initializer: (key, shape) -> array, such as `jax.nn.initializers.normal()`.
    axis: along which the slices lie: of ranks, widths or virtual tokens.
  """
  slice_shape = list(shape)
  count = slice_shape.pop(axis)
  keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(count))
  slices = jax.vmap(lambda k: initializer(k, tuple(slice_shape)))(keys)
  return jnp.moveaxis(slices, 0, axis)
