"""Frozen kernels in 8 or 4 bits, which are dequantised one layer at a time.

The kernels of the layers are stored in fewer bits; embeddings, norms, biases and heads stay as they
are. A quantised kernel is a dict of arrays in its place in the tree, one row of each a layer:

  int8: {"int8" (L, in, out), "scale" (L, out)}: W = scale * int8, where scale is an output
    channel's absmax / 127 (Dettmers et al. 2022, LLM.int8(), section 2.1). One scale for a whole
    column costs next to nothing, and no group of outputs pays for another's outliers.
  nf4: {"nf4" (L, in / 2, out), "scale", "scale_step", "scale_mean"}: W = absmax * LEVELS[nf4], two
    codes a byte, with the absmax of each 64 inputs of an output. Those are stored in 8 bits too,
    absmax = mean + step * scale, with a step for each 256 of them (Dettmers et al. 2023, QLoRA,
    sections 3 and 2; their 8 bits are a float's, these are steps of equal size).
"""

from __future__ import annotations

import re
from functools import partial
from statistics import NormalDist
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxtune import tree

FORMS = ("int8", "nf4")
BLOCK, GROUP = 64, 256
KERNEL = re.compile(r"(.*/)?layers/.*/kernel")


def normal_levels() -> np.ndarray:
  """Returns NF4's 16 levels: quantiles of N(0, 1), 8 above and 7 below zero, scaled to +-1.

  The outermost leaves a tail of (1/32 + 1/30) / 2 (QLoRA, section 3 and appendix E).
  """
  outermost = 1 - (1 / 32 + 1 / 30) / 2
  quantile = np.vectorize(NormalDist().inv_cdf)
  above, below = (quantile(np.linspace(outermost, 0.5, n, endpoint=False)) for n in (8, 7))
  return (np.concatenate([-below, [0.0], above[::-1]]) / above[0]).astype(np.float32)


LEVELS = normal_levels()


def quantises(path: str, shape: tuple[int, ...]) -> bool:
  """Says whether a leaf is a kernel (L, in, out) of the layers, with an even `in`."""
  return KERNEL.fullmatch(path) is not None and len(shape) == 3 and shape[1] % 2 == 0


def store(path: str, array: Any, form: str | None) -> Any:
  """Quantises a leaf if its path and shape say so, else returns it as it is."""
  return _store(array, form) if form and quantises(path, array.shape) else array


def quantised(params: Any, form: str | None) -> Any:
  """Quantises the kernels of a tree of weights; `jax.eval_shape` of it gives the shapes."""
  return tree.unflatten({path: store(path, x, form) for path, x in tree.flatten(params).items()})


def dequantised(params: Any, dtype: Any = jnp.float32) -> Any:
  """Dequantises every kernel of a tree, in `dtype`; other leaves stay as they are."""
  if not hasattr(params, "items"):
    return params
  if any(form in params for form in FORMS):
    return _restore(params).astype(dtype)
  return {name: dequantised(part, dtype) for name, part in params.items()}


def weight(flat: dict[str, Any], path: str) -> jax.Array:
  """Returns the fp32 weight at a path of a flat tree, whether it is quantised or not."""
  if path in flat:
    return flat[path].astype(jnp.float32)
  parts = {p.rpartition("/")[2]: x for p, x in flat.items() if p.startswith(f"{path}/")}
  if not parts:
    raise KeyError(path)
  return dequantised(parts)


def find(paths) -> list[str]:
  """Lists the paths of the quantised kernels, given those of all arrays."""
  parents = [path.rpartition("/") for path in paths]
  return sorted(parent for parent, _, name in parents if name in FORMS)


def bits(params: Any) -> float | None:
  """Returns the bits a weight of the quantised kernels, scales included; None if there are none."""
  flat, shapes = tree.flatten(params), tree.flatten(jax.eval_shape(dequantised, params))
  paths = find(flat)
  inside = [x for p, x in flat.items() if p.rpartition("/")[0] in paths]
  stored = sum(8 * x.size * x.dtype.itemsize for x in inside)
  return stored / sum(shapes[p].size for p in paths) if paths else None


@partial(jax.jit, static_argnums=1)
def _store(array_LIO, form: str) -> dict[str, jax.Array]:
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
  mean = absmax_M.mean()
  centred_M = jnp.pad(absmax_M - mean, (0, -absmax_M.size % GROUP))
  centred_GM = centred_M.reshape(-1, GROUP)
  step_G = jnp.abs(centred_GM).max(1) / 127
  scale_GM = jnp.round(_divide(centred_GM, step_G[:, None])).astype(jnp.int8)
  return {"scale": scale_GM.ravel()[: absmax_M.size], "scale_step": step_G, "scale_mean": mean}


def _divide(x, by):
  return x / jnp.where(by == 0, 1, by)


def _restore(parts: dict[str, Array]) -> Float[Array, "*L I O"]:
  """Dequantises a kernel, given its arrays, to fp32."""
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
