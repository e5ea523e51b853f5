"""Reloads an export in real PyTorch and compares its logits with those of the model we trained.

The answer is a file, `certificate.json`, beside the weights it speaks of.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from jaxtune import files, libraries, peft, schema, tree
from jaxtune.certify.batches import arrange as arrange
from jaxtune.certify.batches import make_batches as make_batches
from jaxtune.certify.reloading import THEIR_NAMES as THEIR_NAMES
from jaxtune.certify.reloading import VARIABLE as VARIABLE
from jaxtune.certify.reloading import adapters_interpreter as adapters_interpreter
from jaxtune.certify.reloading import reloader as reloader
from jaxtune.certify.reloading import their_logits as their_logits
from jaxtune.errors import UserError
from jaxtune.files import write_atomically
from jaxtune.formats import loading
from jaxtune.formats.merged import fold
from jaxtune.models import hf, quantize

TOLERANCE = 1e-4  # of logits up to ROUNDED; of larger ones in proportion, as rounding is
ROUNDED = 10.0
BAND = 2**-3  # of the largest logit: how far bf16 activations may lie from PyTorch's fp32
WEIGHTS = {"peft": "adapter_model.safetensors", "adapterhub": "adapter.safetensors"}


class Rejected(UserError):
  """The files give other logits than the model that was trained."""


def certify(
  folder: str | Path,
  pretrained: hf.Pretrained,
  adapted: peft.Adapted,
  *,
  prompts: list[list[int]] | None = None,
  reload: Callable | None = None,
  base_name: str | None = None,
  rounding=None,
) -> dict:
  """Compares the logits of an export, in PyTorch on the CPU in fp32, with ours.

  A batch of prompts padded on the right is run, and one of equal lengths without padding.
  Weights merged in a narrower type are compared with our own, rounded to that type: what the
  rounding costs is `rounding`. An adapter of a model that is held in bf16 is compared over those
  very weights in fp32, and once more as it was trained, with activations in bf16: these may be off
  by 1/8 of the largest logit.

  Args:
    folder: of the export.
    prompts: token ids; the first 8 prompts and 64 tokens of each are used. By default random.
    reload: a running `reloader`, for many certificates; by default one is started in this
      interpreter, and for AdapterHub's format in the one of JAXTUNE_ADAPTERS_PYTHON.
    base_name, rounding: to be stated in the certificate.

  Returns:
    What `certificate.json` holds.

  Raises:
    Rejected: the largest difference exceeds 1e-4, or 1e-5 of the largest logit where that is more;
      the certificate says so.
    UserError: `folder` is not an export, or the libraries cannot load it.
  """
  folder = Path(folder)
  form = check_folder(folder)
  taken, pad = sum(m.positions for m in adapted.methods), loading.pad_token(pretrained)
  batches = make_batches(prompts, pretrained.model.config, taken, pad)
  batches = [arrange(pretrained.model.config, *batch) for batch in batches]
  theirs, versions = their_logits(form, pretrained, folder, batches, reload)
  found = _compare(
    _as_stored(folder, form, pretrained, adapted, batches),
    our_logits(pretrained, peft.untuned(pretrained.params), batches),
    theirs,
    batches,
  )
  narrow = None
  if form != "merged" and pretrained.model.config.dtype == jnp.bfloat16:
    narrow = in_bfloat16(pretrained, adapted, batches, theirs)
  equal = found.pop("passed")
  certificate = {
    "passed": equal and (narrow is None or narrow["passed"]),
    **found,
    "prompts": len(batches[0]["tokens"]),
    "prompts_from": "random tokens" if prompts is None else "the caller",
    "format": form,
    "method": " + ".join(m.name for m in adapted.methods),
    "base": {
      "name": base_name,
      "fingerprint": tree.fingerprint(pretrained.params),
      "quantize": pretrained.model.config.quantize,
    },
    "bfloat16": narrow,
    "rounding": rounding and {"dtype": rounding.dtype, **rounding.overall._asdict()},
    "versions": {**libraries.versions("jax", "flax", "numpy"), "reloaded_in": versions},
    "files": files.hashes(folder, without=("certificate.json",)),
  }
  text = json.dumps(certificate, indent=2, allow_nan=False) + "\n"
  write_atomically(folder / "certificate.json", text)
  files.add(folder / "certificate.json")
  if narrow and not narrow["passed"]:
    raise Rejected(
      f"the model as trained, in bfloat16, differs from PyTorch in float32 by "
      f"{_said(narrow['largest_logit_difference'])}, expected at most {narrow['band']:.3g}"
    )
  if not equal:
    raise Rejected(
      "the export does not equal the trained model: its logits in PyTorch differ by "
      f"{_said(found['largest_logit_difference'])}, expected at most {found['tolerance']:.3g}"
    )
  return certificate


def _as_stored(folder, form, pretrained, adapted, batches):
  """Returns our logits with the weights as the folder holds them, rounded where it rounds them."""
  if form != "merged" or _stored(folder) == "float32":
    return our_logits(pretrained, adapted, batches)
  dtype = hf.DTYPES[_stored(folder)]
  folded, params = fold(pretrained, adapted)
  return our_logits(folded, peft.untuned(jax.tree.map(lambda x: x.astype(dtype), params)), batches)


def _compare(ours, untuned, theirs, batches) -> dict:
  """Says how far PyTorch's logits are from ours, and ours from the untuned model's."""
  apart = [largest_difference(*row) for row in zip(ours, theirs, batches, strict=True)]
  change = max(largest_difference(*row) for row in zip(ours, untuned, batches, strict=True))
  worst = max(apart, key=lambda x: np.inf if np.isnan(x) else x)
  tolerance = TOLERANCE * max(1.0, _largest(theirs) / ROUNDED)
  return {
    "passed": bool(worst <= tolerance),
    "largest_logit_difference": _number(worst),
    "tolerance": tolerance,
    "padded": _number(apart[0]),
    "unpadded": _number(apart[1]),
    "change_from_base": _number(change),
  }


def check_folder(folder: Path) -> str:
  """Returns the format of an export: "peft", "adapterhub" or "merged".

  Raises:
    UserError: for a folder that is none, or whose weights are damaged.
  """
  expected = "expected adapter_config.json with its weights, or a model's config.json"
  if not folder.is_dir():
    raise UserError(f"{folder} is not a folder; {expected}")
  adapter, model = folder / "adapter_config.json", folder / "config.json"
  path = adapter if adapter.exists() else model
  if not path.is_file():
    raise UserError(f"{folder} is not an exported adapter or model: {expected}")
  config = schema.read_json(path)
  schema.check(str(path), config, dict[str, Any])
  form = "merged" if path == model else "adapterhub" if "config" in config else "peft"
  if form == "peft" and "peft_type" not in config:
    raise UserError(
      f"{path} is neither PEFT's (it has no peft_type) nor AdapterHub's (it has no config)"
    )
  weights = folder / WEIGHTS.get(form, "model.safetensors")
  if not weights.exists():
    raise UserError(f"{folder} lacks {weights.name}: export again")
  try:
    with safe_open(weights, "numpy") as file:
      file.keys()
  except (SafetensorError, OSError) as error:
    raise UserError(f"{weights} is damaged or truncated ({error}): export again") from error
  return form


def in_bfloat16(pretrained, adapted: peft.Adapted, batches, theirs) -> dict:
  """Compares the model as it was trained, with activations in bf16, with PyTorch's fp32."""
  ours = our_logits(pretrained, adapted, batches, jnp.bfloat16)
  worst = max(largest_difference(*row) for row in zip(ours, theirs, batches, strict=True))
  band = BAND * _largest(theirs)
  return {"passed": bool(worst <= band), "largest_logit_difference": _number(worst), "band": band}


def our_logits(pretrained, adapted: peft.Adapted, batches, dtype=jnp.float32) -> list[np.ndarray]:
  """Runs our model in fp32, whatever type it was trained in.

  Args:
    dtype: of weights and activations instead.
  """
  model = pretrained.model
  model = model.clone(config=dataclasses.replace(model.config, dtype=dtype, attention=None))
  base = jax.tree.map(lambda x: jnp.asarray(x, dtype), quantize.dequantised(adapted.base))
  if adapted.methods:
    apply = lambda base, **batch: peft.apply(model, adapted._replace(base=base), **batch)
    run = jax.jit(apply)
  else:
    run = partial(_plain_logits, model)
  cast = lambda batch: {
    name: x.astype(bool if "mask" in name else np.int32) for name, x in batch.items()
  }
  with jax.default_matmul_precision("highest"):
    logits = [run(base, **cast(batch)) for batch in batches]
  return [np.asarray(x.astype(jnp.float32)) for x in logits]


@partial(jax.jit, static_argnums=0)
def _plain_logits(model, params, **batch):
  return model.apply({"params": params}, **batch)


def largest_difference(ours, theirs, batch) -> float:
  """Returns the largest absolute difference at real tokens; infinite where shapes differ."""
  theirs = theirs[..., 0] if theirs.shape == (*ours.shape, 1) else theirs  # a single score
  if ours.shape != theirs.shape:
    return float("inf")
  apart = np.abs(ours - theirs)
  return float((apart[batch["mask"].astype(bool)] if apart.ndim == 3 else apart).max())


def _largest(logits: list[np.ndarray]) -> float:
  """Returns the largest finite absolute logit; 0 where there is none."""
  return max(float(np.abs(x[np.isfinite(x)]).max(initial=0)) for x in logits)


def _stored(folder: Path) -> str:
  """Returns the type that a merged folder's config.json says its weights are stored in."""
  return json.loads((folder / "config.json").read_text()).get("dtype", "float32")


def _number(x: float) -> float | None:
  return x if np.isfinite(x) else None


def _said(x: float | None) -> str:
  return "no finite number" if x is None else f"{x:.3g}"
