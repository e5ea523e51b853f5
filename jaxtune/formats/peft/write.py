"""PEFT's format: adapter_config.json and adapter_model.safetensors.

A task's head lies beside the method, under the names that PEFT gives `modules_to_save`. Numbers
come from `hyper`, not from the options: the scale that was trained is the scale written.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from jaxtune import peft as methods_
from jaxtune import tree
from jaxtune.errors import UserError
from jaxtune.formats.facts import Facts
from jaxtune.formats.peft import configs, layout, write_prompts, write_weights
from jaxtune.formats.peft.write_prompts import seen_for as seen_for
from jaxtune.models import hf, quantize
from jaxtune.models.heads import is_head

VERSION = "0.21.2"  # of PEFT, whose reader these files were checked against
KINDS = tuple(layout.TYPES)
PROMPTS = ("prompt", "p_tuning")
TASKS = {
  "classify": "SEQ_CLS",
  "regression": "SEQ_CLS",
  "reward": "SEQ_CLS",
  "tokens": "TOKEN_CLS",
  "qa": "QUESTION_ANS",
}
COMMON = {
  "inference_mode": True,
  "peft_version": VERSION,
}


def write(pretrained: hf.Pretrained, adapted: methods_.Adapted, folder: Path, facts: Facts) -> None:
  """Writes the one method of an adapter, and the head trained beside it, into a folder."""
  (method,), tuned, hyper, base = adapted
  trained = methods_.arrays_of(method, methods_.realise((method,), tuned["peft"]))
  fixed, task = methods_.arrays_of(method, hyper), task_type(pretrained.model.config)
  saved, own = head(pretrained, tuned, base)
  if method.kind == "prefix":
    config, tensors = write_prompts.prefix(pretrained, trained, fixed)
  elif method.kind in PROMPTS:
    config, tensors = write_prompts.prompt(method.kind, pretrained, trained, fixed)
  elif method.kind == "norms":
    config, tensors = norms(pretrained, tuned, base)
  else:
    config, tensors = deltas(pretrained, method, trained, fixed, tuned, base, saved)
  stands_before = method.kind in ("prefix", *PROMPTS)
  if not stands_before:
    config["modules_to_save"] = sorted(set(saved.values())) or None
  place = "base_model." if stands_before else "base_model.model."
  tensors |= {f"{place}{name}": x for name, x in own.items()}
  named = {"task_type": task, "base_model_name_or_path": facts.base_name}
  config = COMMON | named | config | facts.extra
  tensors = {name: np.ascontiguousarray(x, np.float32) for name, x in tensors.items()}
  save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
  (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")


def task_type(c) -> str:
  """Names what PEFT calls the task of a model's head."""
  if c.head is None:
    return "CAUSAL_LM" if c.encoder is None else "SEQ_2_SEQ_LM"
  if c.head.kind not in TASKS:
    raise UserError(f"PEFT has no task for a head {c.head.kind!r}: merge it (format='merged')")
  return TASKS[c.head.kind]


def head(pretrained, tuned, base) -> tuple[dict, dict]:
  """Finds what of the model itself an adapter's files must hold: its head, and what was trained.

  Returns:
    ({path of a leaf: the torch module it is saved with}, {torch name: array}).
  """
  moved = tree.flatten(tuned["params"])
  flat = tree.flatten(base) | moved
  task, saved, found = pretrained.model.config.head is not None, {}, {}
  for row in layout.table(pretrained):
    trained = row.ours in (*moved, *pretrained.fresh) and is_head(row.ours)
    if trained or task and is_head(row.ours, pooler=False):
      leaf, words = np.asarray(flat[row.ours], np.float32), row.theirs.split(".")
      saved[row.ours] = "pooler" if row.ours.startswith("pooler/") else words[0]
      found[row.theirs] = np.zeros(row.their_shape(leaf.shape), np.float32)
      row.write(leaf, found[row.theirs])
  return saved, found


def deltas(pretrained, method, trained, fixed, tuned, base, saved=()) -> tuple[dict, dict]:
  """Describes a method over weights: returns its config and tensors.

  Raises:
    UserError: where it lies over a leaf that is `saved` itself, over an encoder-decoder's
      embeddings, or over parts of a fused module that its type cannot tell apart.
  """
  kind = method.kind
  for site in trained:
    if f"{site}/kernel" in saved:
      raise UserError(
        f"{kind} lies over {site}, whose weights were trained themselves, which PEFT cannot "
        "express: use format='merged', or leave it out of method.targets"
      )
    if site == "embed" and pretrained.model.config.encoder is not None:
      raise UserError(
        "PEFT cannot express an adapter of the embeddings that an encoder and a decoder share: "
        "leave 'embed' out of method.targets"
      )
  weight = partial(quantize.weight, tree.flatten(base) | tree.flatten(tuned["params"]))
  found = write_weights.pieces(kind, pretrained, trained, fixed, weight)
  if kind in ("lora", "loha", "adalora"):
    found = {
      m: [write_weights.trim(kind, piece) for piece in pieces] for m, pieces in found.items()
    }
  config = configs.make(kind, method, pretrained, found, fixed)
  tensors = {
    f"base_model.model.{module.format(i)}.{array.theirs}": array.write(piece.arrays[array.ours])
    for module, pieces in found.items()
    for i, piece in enumerate(pieces)
    for array in layout.arrays(kind, piece.row)
    if array.ours in piece.arrays and (kind == "adalora" or write_weights.rank_of(kind, piece) != 0)
  }
  return config, tensors | (_projections(found) if kind == "vera" else {})


def _projections(found: dict) -> dict[str, np.ndarray]:
  """Finds VeRA's one pair, of which every module reads the start."""
  pieces, tensors = [piece for per_layer in found.values() for piece in per_layer], {}
  for name in ("a", "b"):
    own = [p.arrays[f"shared:{name}"] for p in pieces]
    own = own if name == "a" else [x.T for x in own]
    largest = max(own, key=len)
    if not all(np.array_equal(x, largest[: len(x)]) for x in own):
      raise UserError(
        "PEFT's VERA has one pair of frozen matrices, of which every module reads the start; these "
        "modules have their own: use format='merged'"
      )
    tensors[f"base_model.vera_{name.upper()}"] = largest.T if name == "a" else largest
  return tensors


def norms(pretrained, tuned, base) -> tuple[dict, dict]:
  """Describes trained norms, each a module of its own, whole (LN_TUNING)."""
  moved = {path for path in tree.flatten(tuned["params"]) if not is_head(path)}
  flat = tree.flatten(tree.combine(base, tuned["params"]))
  rows = layout.table(pretrained)
  module = lambda row: row.theirs.rpartition(".")[0]
  chosen = {module(row) for row in rows if row.ours in moved}
  every, tensors, targets = {module(row) for row in rows}, {}, set()
  for row in rows:
    if module(row) in chosen:
      leaf = np.asarray(flat[row.ours], np.float32)
      for name, index in row.their_names(leaf.shape).items():
        place, _, end = name.rpartition(".")
        tensors[f"base_model.model.{place}.ln_tuning_layers.{end}"] = leaf[index]
        short = layout.suffix(module(row), every)
        targets.add(place if "{}" in short else short)
  return {"peft_type": "LN_TUNING", "target_modules": sorted(targets)}, tensors
