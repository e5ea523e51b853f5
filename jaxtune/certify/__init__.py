"""Reloads an export in real PyTorch and compares its logits with those of the model we trained.

The result is a file, `certificate.json`, beside the weights that it certifies.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxtune import files, libraries, peft, tree
from jaxtune.certify.batches import arrange, make_batches
from jaxtune.certify.exports import WEIGHTS as WEIGHTS
from jaxtune.certify.exports import check_folder
from jaxtune.certify.logits import TOLERANCE as TOLERANCE
from jaxtune.certify.logits import Batch, compare, in_bfloat16, our_logits
from jaxtune.certify.reloading import VARIABLE as VARIABLE
from jaxtune.certify.reloading import adapters_interpreter as adapters_interpreter
from jaxtune.certify.reloading import reloader as reloader
from jaxtune.certify.reloading import their_logits
from jaxtune.errors import UserError
from jaxtune.formats import loading
from jaxtune.formats.merged import Rounding, fold
from jaxtune.models import hf


class Rejected(UserError):
  """The error of an export whose logits are not those of the model that was trained."""


def certify(
  folder: str | Path,
  pretrained: hf.Pretrained,
  adapted: peft.Adapted,
  *,
  prompts: list[list[int]] | None = None,
  reload: Callable | None = None,
  base_name: str | None = None,
  rounding: Rounding | None = None,
) -> dict:
  """Compares the logits of an export, in PyTorch on the CPU in fp32, with ours.

  A batch of prompts padded on the right is run, and one of equal lengths without padding.
  Weights merged in a narrower type are compared with our own, rounded to that type; `rounding` says
  what the rounding costs. An adapter of a model that is held in bf16 is compared over the same
  weights in fp32, and once more as it was trained, with activations in bf16, whose logits may be
  off by 1/8 of the largest one.

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
  folder, config = Path(folder), pretrained.model.config
  form = check_folder(folder)
  positions, pad = sum(m.positions for m in adapted.methods), loading.pad_token(pretrained)
  batches = [arrange(config, *batch) for batch in make_batches(prompts, config, positions, pad)]
  theirs, versions = their_logits(form, pretrained, folder, batches, reload)
  untuned = our_logits(pretrained, peft.untuned(pretrained.params), batches)
  ours = _as_stored(folder, form, pretrained, adapted, batches)
  comparison = compare(ours, untuned, theirs, batches)
  narrow = None
  if form != "merged" and config.dtype == jnp.bfloat16:
    narrow = in_bfloat16(pretrained, adapted, batches, theirs)
  base = {"name": base_name, "fingerprint": tree.fingerprint(pretrained.params)}
  certificate = {
    **comparison,
    "passed": comparison["passed"] and (narrow is None or narrow["passed"]),
    "prompts": len(batches[0]["tokens"]),
    "prompts_from": "random tokens" if prompts is None else "the caller",
    "format": form,
    "method": " + ".join(m.name for m in adapted.methods),
    "base": base | {"quantize": config.quantize},
    "bfloat16": narrow,
    "rounding": rounding and {"dtype": rounding.dtype, **rounding.overall._asdict()},
    "versions": {**libraries.versions("jax", "flax", "numpy"), "reloaded_in": versions},
    "files": files.hashes(folder, without=("certificate.json",)),
  }
  path = folder / "certificate.json"
  files.write_atomically(path, json.dumps(certificate, indent=2, allow_nan=False) + "\n")
  files.add(path)
  _check_passed(comparison, narrow)
  return certificate


def _as_stored(
  folder: Path,
  form: str,
  pretrained: hf.Pretrained,
  adapted: peft.Adapted,
  batches: list[Batch],
) -> list[np.ndarray]:
  """Returns our logits; of a merged folder in a narrow type, with the weights rounded to it."""
  dtype = "float32"
  if form == "merged":
    dtype = json.loads((folder / "config.json").read_text()).get("dtype", dtype)
  if dtype == "float32":
    return our_logits(pretrained, adapted, batches)
  folded, params = fold(pretrained, adapted)
  params = jax.tree.map(lambda x: x.astype(hf.DTYPES[dtype]), params)
  return our_logits(folded, peft.untuned(params), batches)


def _check_passed(comparison: dict, narrow: dict | None) -> None:
  """Raises Rejected for logits that are further apart than is allowed."""
  shown = lambda x: "no finite number" if x is None else f"{x:.3g}"
  if narrow and not narrow["passed"]:
    raise Rejected(
      f"the model as trained, in bfloat16, differs from PyTorch in float32 by "
      f"{shown(narrow['largest_logit_difference'])}, expected at most {narrow['band']:.3g}"
    )
  if not comparison["passed"]:
    raise Rejected(
      "the export does not equal the trained model: its logits in PyTorch differ by "
      f"{shown(comparison['largest_logit_difference'])}, expected at most "
      f"{comparison['tolerance']:.3g}"
    )
