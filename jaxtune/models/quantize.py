"""Stores frozen kernels in 8 or 4 bits, and dequantises them one layer at a time.

Only the kernels of the layers are quantised; embeddings, norms, biases and heads stay as they are.
In the tree, a dict of arrays takes the place of the kernel (L, in, out):

  int8: {"int8" (L, in, out), "scale" (L, out)}: W = scale * int8. The scale is absmax / 127 of an
    output's weights (Dettmers et al. 2022, LLM.int8(), section 2.1), so that an outlier in one
    output does not affect the others.
  nf4: {"nf4" (L, in / 2, out), "scale" (L, M), "scale_step" (L, ceil(M / 256)), "scale_mean" (L,)},
    M = ceil(in / 64) * out: W = absmax * LEVELS[code]. Each byte holds the codes of two inputs, the
    first in its low bits. The absmax of each 64 inputs of an output is stored in 8 bits as
    mean + step * scale, with a step for each 256 of them (Dettmers et al. 2023, QLoRA, sections 3
    and 2; there the 8 bits are a float, here they are steps of equal size).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import partial
from statistics import NormalDist
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxtune import sharding, tree

FORMS = ("int8", "nf4")
BLOCK, GROUP = 64, 256
KERNEL = re.compile(r"(.*/)?layers/.*/kernel")


def normal_levels() -> np.ndarray:
  """Returns NF4's 16 levels: 0 and quantiles of N(0, 1), 8 above and 7 below it, scaled to +-1.

  The outermost quantile leaves a tail of (1/32 + 1/30) / 2 (QLoRA, section 3 and appendix E).
  """
  outermost = 1 - (1 / 32 + 1 / 30) / 2
  quantile = np.vectorize(NormalDist().inv_cdf)
  above, below = (quantile(np.linspace(outermost, 0.5, n, endpoint=False)) for n in (8, 7))
  return (np.concatenate([-below, [0.0], above[::-1]]) / above[0]).astype(np.float32)


LEVELS = normal_levels()


def quantises(path: str, shape: tuple[int, ...]) -> bool:
  """Says whether a leaf can be quantised: a kernel (L, in, out) of the layers with an even `in`."""
  return KERNEL.fullmatch(path) is not None and len(shape) == 3 and shape[1] % 2 == 0


def store(path: str, array: Any, form: str | None) -> Any:
  """Returns a leaf quantised if `quantises` says so and `form` is not None, else as it is."""
  return _store(array, form) if form and quantises(path, array.shape) else array


def quantised(params: Any, form: str | None) -> Any:
  """Returns a tree of weights with its kernels quantised, or as it is if `form` is None."""
  return tree.unflatten({path: store(path, x, form) for path, x in tree.flatten(params).items()})


def by_layer(layers_IO: Iterable[Any], form: str) -> dict[str, np.ndarray]:
  """Quantises the layers of a kernel one after another, so that a device never holds two of them.

  Returns:
    What `store` returns for a kernel of these layers, in numpy.
  """
  put = lambda w_IO: jax.device_put(np.asarray(w_IO, np.float32)[None])
  stored = [jax.device_get(_store(put(w_IO), form)) for w_IO in layers_IO]
  return {name: np.concatenate([layer[name] for layer in stored]) for name in stored[0]}


def dequantised(params: Any, dtype: Any = jnp.float32) -> Any:
  """Returns a tree with its quantised kernels in `dtype`; other leaves stay as they are."""
  if not hasattr(params, "items"):
    return params
  if any(form in params for form in FORMS):
    return _restore(params).astype(dtype)
  return {name: dequantised(part, dtype) for name, part in params.items()}


def weight(flat: dict[str, Any], path: str) -> jax.Array:
  """Returns the fp32 weight at a path of a flat tree, whether it is quantised or not.

  Raises:
    KeyError: if there is none.
  """
  if path in flat:
    return flat[path].astype(jnp.float32)
  parts = {p.rpartition("/")[2]: x for p, x in flat.items() if p.startswith(f"{path}/")}
  if not parts:
    raise KeyError(path)
  return dequantised(parts)


def find(paths: Iterable[str]) -> list[str]:
  """Lists the paths of the quantised kernels, given the paths of all arrays of a tree."""
  parents = [path.rpartition("/") for path in paths]
  return sorted(parent for parent, _, name in parents if name in FORMS)


def bits(params: Any) -> float | None:
  """Returns the average bits per quantised weight, scales included; None if none is quantised."""
  flat, shapes = tree.flatten(params), tree.flatten(jax.eval_shape(dequantised, params))
  paths = find(flat)
  inside = [x for p, x in flat.items() if p.rpartition("/")[0] in paths]
  stored = sum(8 * x.size * x.dtype.itemsize for x in inside)
  return stored / sum(shapes[p].size for p in paths) if paths else None


@partial(jax.jit, static_argnums=1)
def _store(array_LIO: Float[Array, "L I O"], form: str) -> dict[str, Array]:
  store_layer = {"int8": _int8, "nf4": _nf4}[form]
  return jax.lax.map(lambda w_IO: store_layer(w_IO.astype(jnp.float32)), array_LIO)


def _int8(w_IO: Float[Array, "I O"]) -> dict[str, Array]:
  scale_O = jnp.abs(w_IO).max(0) / 127
  return {"int8": jnp.round(_divide(w_IO, scale_O[None])).astype(jnp.int8), "scale": scale_O}


def _nf4(w_IO: Float[Array, "I O"]) -> dict[str, Array]:
  inputs = len(w_IO)
  w_GMO = jnp.pad(w_IO, ((0, -inputs % BLOCK), (0, 0))).reshape(-1, BLOCK, w_IO.shape[1])
  absmax_G1O = jnp.abs(w_GMO).max(1, keepdims=True)
  x_IO = _divide(w_GMO, absmax_G1O).reshape(-1, w_IO.shape[1])[:inputs]
  codes_IO = jnp.zeros(x_IO.shape, jnp.uint8)
  for middle in (LEVELS[1:] + LEVELS[:-1]) / 2:
    codes_IO += x_IO > middle
  return {"nf4": codes_IO[::2] | codes_IO[1::2] << 4, **_store_scales(absmax_G1O.ravel())}


def _store_scales(absmax_M: Float[Array, " M"]) -> dict[str, Array]:
  absmax_M = sharding.constrain(absmax_M, None)  # devices would add their parts in another order
  mean = absmax_M.mean()
  centred_M = jnp.pad(absmax_M - mean, (0, -absmax_M.size % GROUP))
  centred_GM = centred_M.reshape(-1, GROUP)
  step_G = jnp.abs(centred_GM).max(1) / 127
  scale_GM = jnp.round(_divide(centred_GM, step_G[:, None])).astype(jnp.int8)
  return {"scale": scale_GM.ravel()[: absmax_M.size], "scale_step": step_G, "scale_mean": mean}


def _divide(x: Array, by: Array) -> Array:
  """Returns x / by, and x where `by` is 0."""
  return x / jnp.where(by == 0, 1, by)


def _restore(parts: dict[str, Array]) -> Float[Array, "*L I O"]:
  """Returns a kernel in fp32, given the arrays that store it, with or without an axis L."""
  if next(parts[form] for form in FORMS if form in parts).ndim == 3:
    return jax.vmap(_restore)(parts)
  if "int8" in parts:
    return parts["int8"].astype(jnp.float32) * parts["scale"][None]
  halves_G2O = jnp.stack([parts["nf4"] & 15, parts["nf4"] >> 4], 1)
  codes_IO = halves_G2O.reshape(-1, halves_G2O.shape[-1])
  scale_M = parts["scale"].astype(jnp.float32)
  steps_M = jnp.repeat(parts["scale_step"], GROUP)[: scale_M.size]
  absmax_GO = (parts["scale_mean"] + steps_M * scale_M).reshape(-1, codes_IO.shape[1])
  return jnp.asarray(LEVELS)[codes_IO] * jnp.repeat(absmax_GO, BLOCK, 0)[: len(codes_IO)]
