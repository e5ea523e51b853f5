"""Reads PEFT's format: adapter_config.json and adapter_model.safetensors (or .bin, with torch).

Every tensor must be one that the config asks for and that the model has; PEFT itself ignores any
other tensor, and leaves missing ones at their start, at most with a warning.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from jaxtune import schema, tree
from jaxtune.errors import UserError, nearest
from jaxtune.formats import files, options
from jaxtune.formats.files import Imported, ImportedMethod, check_shape
from jaxtune.formats.peft import layout, prompts, read_weights, write
from jaxtune.models import hf
from jaxtune.models.heads import is_head

KINDS = {theirs: ours for ours, theirs in layout.TYPES.items()}
# Options that change what an adapter computes, which ours do not have.
REFUSED = {
  "target_parameters": "parameters as targets",
  "trainable_token_indices": "trained tokens",
  "alora_invocation_tokens": "activation by tokens (aLoRA)",
  "arrow_config": "Arrow",
  "use_qalora": "QA-LoRA",
  "lora_bias": "biases of B",
  "layer_replication": "replicated layers",
  "use_effective_conv2d": "convolutions",
}
STARTS = (
  True,
  False,
  None,
  "gaussian",
  "eva",
  "orthogonal",
  "mica",
)  # which leave the base as it is


def read(folder: Path, config: dict, pretrained: hf.Pretrained) -> Imported:
  """Reads an adapter that PEFT, or our own export, wrote.

  Raises:
    UserError: a type or an option that we do not have; tensors that are missing, foreign or of
      another shape.
  """
  kind = _kind(config)
  ranks = list[bool] if kind == "adalora" else options.Size  # AdaLoRA's say which are kept
  schema.check("rank_pattern", config.get("rank_pattern") or {}, dict[str, ranks])
  tensors = files.tensors(folder, layout.WEIGHTS, layout.PICKLE)
  bare = lambda key: key.removeprefix(layout.prefix(kind)).removeprefix("base_model.")
  tensors = {bare(key): x for key, x in tensors.items()}
  if kind == "norms":
    tensors, targets = _norms(tensors, pretrained)
  params, used = _whole(tensors, pretrained)
  rest = {key: x for key, x in tensors.items() if key not in used}
  if kind == "norms":
    files.refuse_foreign(rest, used)
    section, trained, fixed = {"name": "norms", "targets": targets}, {}, {}
  else:
    reader = prompts.read if kind in layout.VIRTUAL else read_weights.read
    section, trained, fixed = reader(kind, config, rest, pretrained)
  _check_head(params, pretrained)
  _check_task(config, pretrained)
  _check_saved(config, used, pretrained)
  source = {"format": "peft", "type": config["peft_type"]}
  source |= {"base": config.get("base_model_name_or_path"), "version": config.get("peft_version")}
  return Imported((ImportedMethod(section, trained, fixed),), params, (), source)


def _kind(config: dict) -> str:
  """Returns our method of an adapter's type."""
  kind = KINDS.get(str(config["peft_type"]))
  if kind is None:
    near = nearest(str(config["peft_type"]), KINDS)
    raise UserError(f"peft_type {config['peft_type']!r} is none that jaxtune reads; {near}")
  for option, what in REFUSED.items():
    if config.get(option):
      raise UserError(f"adapter_config.json has {option}: jaxtune has no {what}")
  start = config.get("init_lora_weights", True)
  if start not in STARTS:
    raise UserError(
      f"adapter_config.json has init_lora_weights={start!r}, which changes the base that PEFT "
      "loads it over: save it as a plain LoRA (path_initial_model_for_weight_conversion)"
    )
  return kind


def _norms(tensors: dict, pretrained: hf.Pretrained) -> tuple[dict, list[str]]:
  """Returns the tensors under the model's own names, and our paths of the trained norms."""
  plain = {key.replace(layout.NORMS, "."): x for key, x in tensors.items()}
  moved = {key.replace(layout.NORMS, ".") for key in tensors if layout.NORMS in key}
  shapes = files.shapes(pretrained)
  paths = {
    row.ours.rpartition("/")[0]
    for row in files.table(pretrained)
    if moved & row.their_names(shapes[row.ours]).keys()
  }
  return plain, sorted(paths)


def _whole(tensors: dict, pretrained: hf.Pretrained) -> tuple[dict, set[str]]:
  """Reads the model's own weights: a head, modules_to_save, biases.

  Returns:
    ({path in our tree: array}, the names that were read).
  """
  shapes, flat = files.shapes(pretrained), tree.flatten(pretrained.params)
  params, used = {}, set()
  for row in files.table(pretrained):
    for name, index in row.their_names(shapes[row.ours]).items():
      module, _, leaf = name.rpartition(".")
      if name in tensors:  # with bias="all" PEFT writes the bias of a head that it saves again
        again = {f"{module}.{copy}.{leaf}" for copy in ("modules_to_save", "original_module")}
        used |= again & tensors.keys()
      key = next((k for k in (name, f"{module}.base_layer.{leaf}") if k in tensors), None)
      if key is None or row.ours not in flat:
        continue
      if row.ours == "embed/embedding" and ".base_layer." not in key and _scores(pretrained):
        raise UserError(
          f"the adapter has trained {key}: PEFT changes it for the lookup alone, where the same "
          "table of this model scores the logits, or serves its decoder too"
        )
      check_shape(key, tensors[key].shape, row.their_shape(shapes[row.ours]))
      used.add(key)
      ours = row.read(tensors[key])
      if ".base_layer." in key and leaf == "weight":  # PEFT's copy of a base's embeddings
        own = np.asarray(flat[row.ours], np.float32)
        if np.abs(ours - own).max() > 2**-7 * np.abs(own).max():  # more than bf16 rounds off
          raise UserError(f"{key} is not the base's own: the adapter is of another base")
        continue
      params.setdefault(row.ours, np.array(flat[row.ours], np.float32))[index] = ours
  return params, used


def _scores(pretrained: hf.Pretrained) -> bool:
  """Says whether the table of embeddings has another use than to look up a decoder's tokens."""
  c = pretrained.model.config
  return c.encoder is not None or (c.tied if c.head is None else c.head.kind == "mlm")


def _check_head(params: dict, pretrained: hf.Pretrained) -> None:
  """Raises UserError for an adapter without the weights of the model's head."""
  if pretrained.model.config.head is None:
    return
  for row in files.table(pretrained):
    saved = row.theirs.split(".")[0] in layout.HEADS and is_head(row.ours, pooler=False)
    needed = saved or row.ours in pretrained.fresh
    if needed and row.ours not in params and row.ours in files.shapes(pretrained):
      raise UserError(
        f"the adapter has no {row.theirs}, which a model with the head "
        f"{pretrained.model.config.head.kind!r} needs: it was trained for another task"
      )


def _check_task(config: dict, pretrained: hf.Pretrained) -> None:
  """Raises UserError for an adapter of another task, whose head may have the same tensors."""
  stated, c = config.get("task_type"), pretrained.model.config
  if c.head is None or c.head.kind == "mlm" or stated not in write.TASKS.values():
    return  # whether there is a head at all, its tensors say
  if stated != (expected := write.task_type(c)):
    raise UserError(
      f"the adapter's task_type is {stated!r}, expected {expected!r} for the head {c.head.kind!r}: "
      "it was trained for another task"
    )


def _check_saved(config: dict, used: set[str], pretrained: hf.Pretrained) -> None:
  """Raises UserError for modules of the config's modules_to_save that the files do not hold."""
  shapes = files.shapes(pretrained)
  rows = [row for row in files.table(pretrained) if row.ours in shapes]
  names = {name for row in rows for name in row.their_names(shapes[row.ours])}
  for module in config.get("modules_to_save") or ():
    inside = {name for name in names if f"{module}." in name}
    if not inside and module not in layout.HEADS:
      raise UserError(f"modules_to_save has {module!r}, which this model has not")
    files.refuse_missing(inside - used)
