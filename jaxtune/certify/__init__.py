"""Reloads an export in real PyTorch and compares its logits with those of the trained model.

The result is written to `certificate.json`, beside the weights that it certifies.
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
from jaxtune.certify.reloading import check_libraries as check_libraries
from jaxtune.certify.reloading import reloader as reloader
from jaxtune.certify.reloading import their_logits
from jaxtune.errors import UserError
from jaxtune.formats import loading
from jaxtune.formats.merged import Rounding, fold
from jaxtune.models import hf


class Rejected(UserError):
  """Says that the logits of an export differ from those of the model that was trained."""


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

  The model runs on a batch of prompts padded on the right, and on one of equal lengths without
  padding. Weights merged in a narrower type are compared with our own weights rounded to that type;
  `rounding` says what the rounding costs. An adapter of a model in bf16 is compared over the same
  weights in fp32, and a second time as it was trained, with weights and activations in bf16.

  Args:
    folder: the folder of the export.
    prompts: token ids; at most 8 prompts and 64 tokens of each are used. By default random ids.
    reload: a running `reloader`, for many certificates; by default one is started in this
      interpreter, or for AdapterHub's format in the one of JAXTUNE_ADAPTERS_PYTHON.
    base_name, rounding: written into the certificate.

  Returns:
    The content of `certificate.json`.

  Raises:
    Rejected: if a logit differs by more than 1e-4, or than 1e-5 of the largest one if that is more,
      or in bf16 by more than 1/8 of the largest one. The certificate is written all the same.
    UserError: if `folder` is not an export, the libraries cannot load it, or no prompt fits the
      positions that the method leaves.
  """
  folder, config = Path(folder), pretrained.model.config
  form = check_folder(folder)
  positions, pad = sum(m.positions for m in adapted.methods), loading.pad_token(pretrained)
  batches = [arrange(config, *batch) for batch in make_batches(prompts, config, positions, pad)]
  theirs, versions = their_logits(form, pretrained, folder, batches, reload)
  untuned = our_logits(pretrained, peft.untuned(pretrained.params), batches)
  ours = _as_stored(folder, form, pretrained, adapted, batches)
  comparison = compare(ours, untuned, theirs, batches)
  bf16 = None
  if form != "merged" and config.dtype == jnp.bfloat16:
    bf16 = in_bfloat16(pretrained, adapted, batches, theirs)
  base = {"name": base_name, "fingerprint": tree.fingerprint(pretrained.params)}
  certificate = {
    **comparison,
    "passed": comparison["passed"] and (bf16 is None or bf16["passed"]),
    "prompts": len(batches[0]["tokens"]),
    "prompts_from": "random tokens" if prompts is None else "the caller",
    "format": form,
    "method": " + ".join(m.name for m in adapted.methods),
    "base": base | {"quantize": config.quantize},
    "bfloat16": bf16,
    "rounding": rounding and {"dtype": rounding.dtype, **rounding.overall._asdict()},
    "versions": {**libraries.versions("jax", "flax", "numpy"), "reloaded_in": versions},
    "files": files.hashes(folder, without=("certificate.json",)),
  }
  path = folder / "certificate.json"
  files.write_atomically(path, json.dumps(certificate, indent=2, allow_nan=False) + "\n")
  files.add(path)
  _check_passed(comparison, bf16)
  return certificate


def _as_stored(
  folder: Path, form: str, pretrained: hf.Pretrained, adapted: peft.Adapted, batches: list[Batch]
) -> list[np.ndarray]:
  """Returns our logits, with weights rounded as in the folder if it is a merged model."""
  dtype = "float32"
  if form == "merged":
    dtype = json.loads((folder / "config.json").read_text()).get("dtype", dtype)
  if dtype == "float32":
    return our_logits(pretrained, adapted, batches)
  folded, params = fold(pretrained, adapted)
  params = jax.tree.map(lambda x: x.astype(hf.DTYPES[dtype]), params)
  return our_logits(folded, peft.untuned(params), batches)


def _check_passed(comparison: dict, bf16: dict | None) -> None:
  """Raises Rejected for logits that are further apart than is allowed."""
  shown = lambda x: "no finite number" if x is None else f"{x:.3g}"
  if bf16 and not bf16["passed"]:
    raise Rejected(
      f"the model as trained, in bfloat16, differs from PyTorch in float32 by "
      f"{shown(bf16['largest_logit_difference'])}, expected at most {bf16['band']:.3g}"
    )
  if not comparison["passed"]:
    raise Rejected(
      "the export does not equal the trained model: its logits in PyTorch differ by "
      f"{shown(comparison['largest_logit_difference'])}, expected at most "
      f"{comparison['tolerance']:.3g}"
    )
