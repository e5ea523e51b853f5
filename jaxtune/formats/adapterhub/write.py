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
from safetensors.numpy import save_file

from jaxtune import peft as methods_
from jaxtune.formats.adapterhub import bottleneck, names, prefix
from jaxtune.formats.facts import Facts
from jaxtune.formats.peft import write as peft_format
from jaxtune.models import hf

VERSION = "adapters.1.3.0"
FILES = {
  "adapter": ("adapter_config.json", "adapter.safetensors", "pytorch_adapter.bin"),
  "head": ("head_config.json", "model_head.safetensors", "pytorch_model_head.bin"),
}


def write(pretrained: hf.Pretrained, adapted: methods_.Adapted, folder: Path, facts: Facts) -> None:
  """Writes adapters, prefixes or both, and the head trained beside them, into an existing folder.

  Args:
    adapted: with one method, or several that become a union, of which the format has one of each
      kind.

  Raises:
    UserError: for what the format cannot express.
  """
  names.check_family(pretrained)
  methods, tuned, hyper, base = adapted
  parts, tensors = [], {}
  for method in methods:
    module, trained = bottleneck, methods_.arrays_of(method, tuned["peft"])
    if method.kind == "prefix":
      module, trained = prefix, method.realise(trained)
    fixed = methods_.arrays_of(method, hyper)
    config, found = module.make(pretrained, method, trained, fixed)
    parts.append(config)
    tensors |= found
  config = parts[0] if len(parts) == 1 else {"architecture": "union", "configs": parts}
  common = _common(pretrained, facts.base_name)
  _store(folder, "adapter", common | {"config": config, "name": names.NAME} | facts.extra, tensors)
  saved, weights = peft_format.head(pretrained, tuned, base)
  if saved:
    _store(folder, "head", common | _labelled(pretrained.model.config.head, facts.labels), weights)


def _labelled(head, labels) -> dict:
  """States how many labels a head has, and their names; nothing of a language model's."""
  stated = {"config": None, "name": None}  # the one head of a class of transformers
  if head is None or head.kind == "mlm":
    return stated
  named = list(map(str, labels)) or [f"LABEL_{i}" for i in range(head.outputs)]
  label2id = {name: i for i, name in enumerate(named)}
  return stated | {"num_labels": head.outputs, "label2id": label2id}


def _common(pretrained, base_name) -> dict:
  """States what both config files say of the model."""
  c, stored = pretrained.model.config, pretrained.hf_config.get("architectures")
  known = hf.family_module(pretrained.family).ARCHITECTURES
  own = known.get("lm" if c.head is None else c.head.kind)
  return {
    "hidden_size": c.width,
    "model_class": stored[0] if c.head is None and stored else own,
    "model_name": base_name,
    "model_type": pretrained.family,
    "version": VERSION,
  }


def _store(folder: Path, part: str, config: dict, tensors: dict) -> None:
  about, safe, pickled = FILES[part]
  (folder / about).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
  tensors = {name: np.ascontiguousarray(x, np.float32) for name, x in tensors.items()}
  save_file(tensors, folder / safe, {"format": "pt"})
  if importlib.util.find_spec("torch"):
    import torch

    torch.save({name: torch.tensor(x) for name, x in tensors.items()}, folder / pickled)
