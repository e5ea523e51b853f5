"""Makes random draws that do not depend on what else is drawn."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, Shaped


def site_key(key: Key[Array, ""], *names: str) -> Key[Array, ""]:
  """Derives the random key of a named place, which does not depend on what else is trained.

  Args:
    names: for example a site's path and an array's name.
  """
  for name in names:
    key = jax.random.fold_in(key, zlib.crc32(name.encode()))
  return key


def uniform(bound: float) -> Callable:
  """Returns an initializer (key, shape) -> array, uniform between -bound and bound."""
  return partial(jax.random.uniform, minval=-bound, maxval=bound)


def draw(
  initializer: Callable, key: Key[Array, ""], shape: tuple[int, ...], axis: int
) -> Shaped[Array, ...]:
  """Draws an array in which each slice along an axis has a random key of its own.

  So an array with 4 slices, for example of rank 4, equals the first 4 slices of one with 8 and the
  same key.

  Args:
    initializer: (key, shape) -> array, such as `jax.nn.initializers.normal()`.
    axis: the axis of the slices: that of ranks, bottleneck widths or virtual tokens.
  """
  slice_shape = list(shape)
  count = slice_shape.pop(axis)
  keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(count))
  slices = jax.vmap(lambda k: initializer(k, tuple(slice_shape)))(keys)
  return jnp.moveaxis(slices, 0, axis)
