"""Computes the logits of our model, and how far those of PyTorch are from them."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxtune import peft
from jaxtune.models import hf, quantize

# The largest allowed difference of logits whose largest is at most ROUNDED. Above, it grows in
# proportion to that, as the rounding of fp32 does.
TOLERANCE = 1e-4
ROUNDED = 10.0
BAND = 2**-3  # of the largest logit: how far bf16 activations may lie from PyTorch's fp32
Batch = dict[str, np.ndarray]


def our_logits(
  pretrained: hf.Pretrained, adapted: peft.Adapted, batches: list[Batch], dtype: Any = jnp.float32
) -> list[np.ndarray]:
  """Returns our logits on each batch, in fp32, from weights and activations in `dtype`."""
  model = pretrained.model
  model = model.clone(config=dataclasses.replace(model.config, dtype=dtype, attention=None))
  base = jax.tree.map(lambda x: jnp.asarray(x, dtype), quantize.dequantised(adapted.base))
  if adapted.methods:
    laid = lambda arrays: peft.Adapted(adapted.methods, *arrays)
    apply = lambda arrays, **batch: peft.apply(model, laid(arrays), **batch)
    run = partial(jax.jit(apply), (*adapted.overlay, base))
  else:
    run = partial(_plain_logits, model, base)
  cast = lambda batch: {n: x.astype(bool if "mask" in n else np.int32) for n, x in batch.items()}
  with jax.default_matmul_precision("highest"):
    logits = [run(**cast(batch)) for batch in batches]
  return [np.asarray(x.astype(jnp.float32)) for x in logits]


@partial(jax.jit, static_argnums=0)
def _plain_logits(model: Any, params: Any, **batch: Any) -> jax.Array:
  return model.apply({"params": params}, **batch)


def compare(
  ours: list[np.ndarray], untuned: list[np.ndarray], theirs: list[np.ndarray], batches: list[Batch]
) -> dict:
  """Returns how far PyTorch's logits are from ours, and ours from the untuned model's.

  Args:
    batches: two batches, with padding and without.
  """
  differences = [largest_difference(*row) for row in zip(ours, theirs, batches, strict=True)]
  change = max(largest_difference(*row) for row in zip(ours, untuned, batches, strict=True))
  worst = float(np.max(differences))  # NaN if any is, unlike Python's max
  tolerance = TOLERANCE * max(1.0, _largest(theirs) / ROUNDED)
  return {
    "passed": bool(worst <= tolerance),
    "largest_logit_difference": _number(worst),
    "tolerance": tolerance,
    "padded": _number(differences[0]),
    "unpadded": _number(differences[1]),
    "change_from_base": _number(change),
  }


def in_bfloat16(
  pretrained: hf.Pretrained, adapted: peft.Adapted, batches: list[Batch], theirs: list[np.ndarray]
) -> dict:
  """Compares the logits of our model in bf16, as it was trained, with PyTorch's in fp32."""
  ours = our_logits(pretrained, adapted, batches, jnp.bfloat16)
  differences = [largest_difference(*row) for row in zip(ours, theirs, batches, strict=True)]
  worst, band = float(np.max(differences)), BAND * _largest(theirs)
  return {"passed": bool(worst <= band), "largest_logit_difference": _number(worst), "band": band}


def largest_difference(ours: np.ndarray, theirs: np.ndarray, batch: Batch) -> float:
  """Returns the largest absolute difference at real tokens: infinity if shapes differ, or NaN."""
  theirs = theirs[..., 0] if theirs.shape == (*ours.shape, 1) else theirs  # a single score
  if ours.shape != theirs.shape:
    return float("inf")
  difference = np.abs(ours - theirs)
  real = batch["mask"].astype(bool)
  return float((difference[real] if difference.ndim == 3 else difference).max())


def _largest(logits: list[np.ndarray]) -> float:
  """Returns the largest finite absolute logit, or 0 if there is none."""
  return max(float(np.abs(x[np.isfinite(x)]).max(initial=0)) for x in logits)


def _number(x: float) -> float | None:
  """Returns a finite number as it is, and None for any other, which JSON cannot hold."""
  return x if np.isfinite(x) else None
