"""PEFT's format: adapter_config.json and adapter_model.safetensors.

A task's head lies beside the method, under the names that PEFT gives `modules_to_save`. Numbers
come from `hyper`, not from the options: the scale that was trained is the scale written.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from functools import partial
from pathlib import Path

import numpy as np

from jaxtune import peft as methods_
from jaxtune import tree
from jaxtune.errors import UserError
from jaxtune.files import write_tensors
from jaxtune.formats import files, heads
from jaxtune.formats.facts import Facts
from jaxtune.formats.peft import configs, layout, prompts, write_weights
from jaxtune.formats.peft.write_weights import Piece
from jaxtune.models import hf, quantize
from jaxtune.models.config import Config
from jaxtune.models.heads import is_head
from jaxtune.models.names import EMBEDDINGS

VERSION = "0.21.2"  # of PEFT, whose reader these files were checked against
TASKS = {
  "classify": "SEQ_CLS",
  "regression": "SEQ_CLS",
  "reward": "SEQ_CLS",
  "tokens": "TOKEN_CLS",
  "qa": "QUESTION_ANS",
}


def write(pretrained: hf.Pretrained, adapted: methods_.Adapted, folder: Path, facts: Facts) -> None:
  """Writes the one method of an adapter, and the head trained beside it, into a folder."""
  (method,) = adapted.methods
  saved, weights = heads.saved(pretrained, adapted)
  trained, fixed = adapted.overlay.arrays_of(method)
  trained = method.reparametrise(trained)
  if method.kind == "prefix":
    config, tensors = prompts.write_prefix(pretrained, trained, fixed)
  elif method.kind in layout.VIRTUAL:
    config, tensors = prompts.write_prompt(method.kind, pretrained, trained, fixed)
  elif method.kind == "norms":
    config, tensors = _norms(pretrained, adapted)
  else:
    _check_sites(pretrained, method.kind, trained, saved)
    config, tensors = _deltas(pretrained, adapted, trained, fixed)
  if method.kind not in layout.VIRTUAL:
    config["modules_to_save"] = sorted(set(saved.values())) or None
  tensors |= {f"{layout.prefix(method.kind)}{name}": x for name, x in weights.items()}
  common = {
    "inference_mode": True,
    "peft_version": VERSION,
    "task_type": task_type(pretrained.model.config),
    "base_model_name_or_path": facts.base_name,
  }
  config = common | config
  tensors = {name: np.ascontiguousarray(x, np.float32) for name, x in tensors.items()}
  write_tensors(folder / layout.WEIGHTS, tensors)
  (folder / layout.CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def task_type(c: Config) -> str:
  """Returns PEFT's name of the task of a model's head."""
  if c.head is None:
    return "CAUSAL_LM" if c.encoder is None else "SEQ_2_SEQ_LM"
  if c.head.kind not in TASKS:
    raise UserError(f"PEFT has no task for a head {c.head.kind!r}: merge it (format='merged')")
  return TASKS[c.head.kind]


def _check_sites(
  pretrained: hf.Pretrained, kind: str, sites: Iterable[str], saved: Collection[str]
) -> None:
  """Refuses a method over weights that were trained in place too.

  And, in an encoder-decoder, over embeddings: PEFT would look token ids up in a table of positions.

  Args:
    saved: paths of the leaves that are saved whole.
  """
  for site in sites:
    if f"{site}/kernel" in saved:
      raise UserError(
        f"{kind} lies over {site}, whose weights were trained themselves, which PEFT cannot "
        "express: use format='merged', or leave it out of method.targets"
      )
    module = site.rpartition("/")[2]
    if module in EMBEDDINGS and pretrained.model.config.encoder is not None:
      raise UserError(
        f"PEFT cannot express an adapter of {site} in an encoder-decoder, whose two halves share "
        "the embeddings of tokens, and where positions are counted within their table: use "
        f"format='merged', or leave {module!r} out of method.targets"
      )


def _deltas(
  pretrained: hf.Pretrained, adapted: methods_.Adapted, trained: dict, fixed: dict
) -> tuple[dict, dict]:
  """Returns the config and the tensors of a method over weights."""
  (method,) = adapted.methods
  kind = method.kind
  weight = partial(quantize.weight, tree.flatten(methods_.weights(adapted)))
  pieces = write_weights.pieces(kind, pretrained, trained, fixed, weight)
  if kind in ("lora", "loha", "adalora"):
    pieces = {m: [write_weights.trim(kind, piece) for piece in ps] for m, ps in pieces.items()}
  config = configs.make(method, pretrained, pieces, fixed)
  tensors = {
    f"{layout.prefix(kind)}{module.format(i)}.{array.theirs}": array.write(piece.arrays[array.ours])
    for module, per_layer in pieces.items()
    for i, piece in enumerate(per_layer)
    for array in layout.arrays(kind, piece.row)
    if array.ours in piece.arrays and (kind == "adalora" or write_weights.rank_of(kind, piece) != 0)
  }
  return config, tensors | (_projections(pieces) if kind == "vera" else {})


def _projections(pieces: dict[str, list[Piece]]) -> dict[str, np.ndarray]:
  """Returns VeRA's one pair of frozen matrices, of which every module reads the start."""
  tensors = {}
  for name, theirs in layout.PROJECTIONS.items():
    arrays = [p.arrays[f"shared:{name}"] for per_layer in pieces.values() for p in per_layer]
    arrays = arrays if name == "a" else [x.T for x in arrays]
    largest = max(arrays, key=len)
    if not all(np.array_equal(x, largest[: len(x)]) for x in arrays):
      raise UserError(
        "PEFT's VERA has one pair of frozen matrices, of which every module reads the start; these "
        "modules have their own: use format='merged'"
      )
    tensors[f"base_model.{theirs}"] = largest.T if name == "a" else largest
  return tensors


def _norms(pretrained: hf.Pretrained, adapted: methods_.Adapted) -> tuple[dict, dict]:
  """Returns the config and the tensors of trained norms, each a whole module (LN_TUNING)."""
  params = adapted.tuned["params"]
  moved = {path for path in tree.flatten(params) if not is_head(path)}
  flat = tree.flatten(tree.combine(adapted.base, params))
  rows = files.table(pretrained)
  module = lambda row: row.theirs.rpartition(".")[0]
  chosen = {module(row) for row in rows if row.ours in moved}
  modules, tensors, targets = {module(row) for row in rows}, {}, set()
  for row in rows:
    if module(row) in chosen:
      leaf = np.asarray(flat[row.ours], np.float32)
      for name, index in row.their_names(leaf.shape).items():
        norm, _, end = name.rpartition(".")
        tensors[f"{layout.prefix('norms')}{norm}{layout.NORMS}{end}"] = leaf[index]
        short = layout.suffix(module(row), modules)
        targets.add(norm if "{}" in short else short)
  return {"peft_type": "LN_TUNING", "target_modules": sorted(targets)}, tensors
