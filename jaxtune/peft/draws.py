"""Random draws that stay the same whatever else is drawn."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp


def site_key(key: jax.Array, *names: str) -> jax.Array:
  """Derives the random key of a named place, the same whatever else is trained."""
  for name in names:
    key = jax.random.fold_in(key, zlib.crc32(name.encode()))
  return key


def draw_columns(sample: Callable[[jax.Array], jax.Array], key: jax.Array, count: int) -> jax.Array:
  """Stacks sample(key_i) for i < count as a new last axis.

  Each column has a key of its own, so that the draw of rank 4 is the start of that of rank 8.
  """
  keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(count))
  return jnp.moveaxis(jax.vmap(sample)(keys), 0, -1)
