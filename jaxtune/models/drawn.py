"""Draws random weights."""

from __future__ import annotations

from typing import Any

import jax

from jaxtune import sharding, tree
from jaxtune.models.quantize import quantised

DEVIATION = 0.02  # of what layers draw


def weights(model: Any, deviation: float, seed: int, parallel: sharding.Parallel) -> Any:
  """Draws weights in the type of the model, quantised if it is.

  Each device makes its shards alone, of the same bits as one device.

  Args:
    model: a linen module with its `Config`.
    deviation: the standard deviation of kernels and embeddings.
  """
  c = model.config
  scale = lambda path: deviation / DEVIATION if path.endswith(("/kernel", "/embedding")) else 1.0

  def make(key):
    flat = tree.flatten(model.init(key, **model.trace_inputs())["params"])
    params = tree.unflatten({p: (x * scale(p)).astype(c.dtype) for p, x in flat.items()})
    return parallel.within(quantised)(params, c.quantize)

  key = jax.random.key(seed)
  at = None
  if parallel.mesh is not None:
    at = sharding.shardings(parallel.mesh, jax.eval_shape(make, key))
  return jax.jit(make, out_shardings=at)(key)
