"""AdapterHub's format (adapters 1.3): bottleneck adapters, prefixes, both at once, and heads.

Bottleneck adapters are its SeqBn, DoubleSeqBn, ParBn and AdapterPlus; a prefix is flat, and leaves
positions as they are (`shift=False`). `adapter.safetensors` is always written.
`pytorch_adapter.bin`, which `load_adapter` reads unless told `use_safetensors=True`, is a torch
pickle and is written where torch is installed. A head lies beside them, in files of its own.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np

from jaxtune import peft as methods_
from jaxtune.files import write_tensors
from jaxtune.formats import heads
from jaxtune.formats.adapterhub import bottleneck, layout, prefix
from jaxtune.formats.facts import Facts
from jaxtune.models import hf
from jaxtune.models.heads import Head


def write(pretrained: hf.Pretrained, adapted: methods_.Adapted, folder: Path, facts: Facts) -> None:
  """Writes adapters, prefixes or both, and the head trained beside them, into an existing folder.

  Args:
    adapted: with one method, or several that become a union, of which the format has one of each
      kind.

  Raises:
    UserError: for what the format cannot express.
  """
  layout.check_family(pretrained)
  configs, tensors = [], {}
  for method in adapted.methods:
    writer = prefix if method.kind == "prefix" else bottleneck
    trained, fixed = adapted.overlay.arrays_of(method)
    if method.kind == "prefix":  # a Compacter's shared rule is written as it was trained
      trained = method.reparametrise(trained)
    config, arrays = writer.write(pretrained, method, trained, fixed)
    configs.append(config)
    tensors |= arrays
  config = configs[0] if len(configs) == 1 else {"architecture": "union", "configs": configs}
  common = _common(pretrained, facts.base_name)
  _store(folder, "adapter", common | {"config": config, "name": layout.NAME}, tensors)
  saved, weights = heads.saved(pretrained, adapted)
  if saved:
    _store(folder, "head", common | _labels(pretrained.model.config.head, facts.labels), weights)


def _labels(head: Head | None, labels: tuple[str, ...]) -> dict:
  """Returns the entries about a head: its labels' names, unless it scores a vocabulary."""
  entries = {"config": None, "name": None}  # the one head of a class of transformers
  if head is None or head.kind == "mlm":
    return entries
  names = list(map(str, labels)) or [f"LABEL_{i}" for i in range(head.outputs)]
  label2id = {name: i for i, name in enumerate(names)}
  return entries | {"num_labels": head.outputs, "label2id": label2id}


def _common(pretrained: hf.Pretrained, base_name: str | None) -> dict:
  """Returns the entries about the model, which both config files have."""
  c, stored = pretrained.model.config, pretrained.hf_config.get("architectures")
  known = hf.family_module(pretrained.family).ARCHITECTURES
  expected = known.get("lm" if c.head is None else c.head.kind)
  return {
    "hidden_size": c.width,
    "model_class": stored[0] if c.head is None and stored else expected,
    "model_name": base_name,
    "model_type": pretrained.family,
    "version": "adapters.1.3.0",
  }


def _store(folder: Path, part: str, config: dict, tensors: dict) -> None:
  """Writes the three files of the adapter, or of the head."""
  about, safe, pickled = layout.FILES[part]
  (folder / about).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
  tensors = {name: np.ascontiguousarray(x, np.float32) for name, x in tensors.items()}
  write_tensors(folder / safe, tensors)
  if importlib.util.find_spec("torch"):
    import torch

    torch.save({name: torch.tensor(x) for name, x in tensors.items()}, folder / pickled)
