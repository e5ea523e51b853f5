"""Weight deltas merged in fp32 into a plain Hugging Face folder, and what the cast then loses."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxtune import peft, tree
from jaxtune.errors import UserError, nearest
from jaxtune.export import loading
from jaxtune.models import hf, quantize


class Loss(NamedTuple):
  """What casting base + delta to the stored type does to the delta.

  Attributes:
    error: |cast(base + delta) - (base + delta)| / |delta|, Frobenius norms; 0 without a delta.
    lost: share of the entries with a delta whose stored value is the cast of the base alone.
  """

  error: float
  lost: float


class Rounding(NamedTuple):
  """The loss of a cast: over all changed tensors, and {path in our tree: its own}."""

  dtype: str
  overall: Loss
  tensors: dict[str, Loss]


def write(pretrained, methods, tuned, hyper, base, folder: Path, dtype: str, labels) -> Rounding:
  """Writes base + delta as a folder that `from_pretrained` of the head's class loads.

  Args:
    labels: names of a head's labels; None: those of the base's config.json.
    dtype: the type weights are stored in, "float32" or "bfloat16". A tied model stays tied.
  """
  if dtype not in hf.DTYPES:
    raise UserError(f"unknown dtype {dtype!r}. {nearest(dtype, hf.DTYPES)}")
  params = peft.merge(methods, base, tuned, hyper)
  if loading.reads_padding(pretrained):
    padding = {"pad_token_id": loading.pad_token(pretrained)}
    pretrained = pretrained._replace(hf_config=pretrained.hf_config | padding)
  hf.save(pretrained, params, folder, dtype, labels)
  if pretrained.folder and (pretrained.folder / "generation_config.json").exists():
    shutil.copy(pretrained.folder / "generation_config.json", folder)  # it holds stop tokens
  return rounding(quantize.dequantised(pretrained.params), params, dtype)


def rounding(before: Any, after: Any, dtype: str) -> Rounding:
  """Measures what storing the fp32 weights `after` as `dtype` loses of their delta to `before`."""
  cast = lambda x: x.astype(hf.DTYPES[dtype]).astype(np.float32)
  before, sums = tree.flatten(before), {}
  for path, leaf in tree.flatten(after).items():
    new, old = np.asarray(leaf, np.float32), np.asarray(before[path]).astype(np.float32)
    delta, stored = new - old, cast(new)
    changed = delta != 0
    if changed.any():
      square = lambda x: float(np.sum(np.square(x, dtype=np.float64)))
      lost = int((changed & (stored == cast(old))).sum())
      sums[path] = np.array([square(stored - new), square(delta), lost, changed.sum()])
  loss = lambda s: Loss(float(np.sqrt(s[0] / s[1])), float(s[2] / s[3]))
  overall = loss(sum(sums.values())) if sums else Loss(0.0, 0.0)
  return Rounding(dtype, overall, {path: loss(s) for path, s in sums.items()})
