"""Reads AdapterHub's format (adapters 1.3), whatever the adapter's name.

It reads bottleneck adapters, Compacters, prefixes, unions of these (MAM), and the head beside them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from jaxtune import schema, tree
from jaxtune.errors import UserError
from jaxtune.formats import files, options
from jaxtune.formats.adapterhub import bottleneck, layout, prefix
from jaxtune.formats.files import Imported, ImportedMethod, check_shape
from jaxtune.models import hf
from jaxtune.models.heads import is_head, named_labels

READERS = {"bottleneck": bottleneck.read, "prefix_tuning": prefix.read}


def read(folder: Path, config: dict, pretrained: hf.Pretrained) -> Imported:
  """Reads an adapter that AdapterHub, or our own export, wrote.

  Raises:
    UserError: for an adapter of another model, with foreign, missing or misshaped tensors, or that
      jaxtune cannot express.
  """
  layout.check_family(pretrained)
  configs = _method_configs(folder, config, pretrained)
  tensors = files.tensors(folder, *layout.FILES["adapter"][1:])
  base, name = layout.base(pretrained), str(config.get("name"))
  if not any(key.startswith(base) for key in tensors):  # saved from a model without a head
    tensors = {base + key: x for key, x in tensors.items()}
  try:
    arrays = [READERS[kind](pretrained, part, name, tensors) for kind, part in configs.items()]
  except KeyError as error:
    raise UserError(f"the adapter in {folder} lacks {error.args[0]}") from error
  except UserError:
    raise
  except (ValueError, IndexError, TypeError) as error:  # of NumPy, about shapes
    raise UserError(f"the adapter in {folder} has tensors of wrong shapes: {error}") from error
  if tensors:  # each reader removes the tensors that it reads
    first = ", ".join(sorted(tensors)[:3])
    raise UserError(f"{len(tensors)} foreign tensors in {folder}, which nothing reads: {first}")
  methods = tuple(_complete(pretrained, *each) for each in arrays)
  params, labels = _head(folder, pretrained)
  source = {"format": "adapterhub", "type": " + ".join(configs), "base": config.get("model_name")}
  source |= {"version": config.get("version"), "name": name}
  return Imported(methods, params, labels, source)


def _method_configs(folder: Path, config: dict, pretrained: hf.Pretrained) -> dict[str, dict]:
  """Returns {architecture: config} of the one method, or of each of a union.

  Raises:
    UserError: for an adapter of another model, and for methods that jaxtune does not read.
  """
  ours = {"model_type": pretrained.family, "hidden_size": pretrained.model.config.width}
  for entry, expected in ours.items():
    if config.get(entry, expected) != expected:
      raise UserError(
        f"the adapter in {folder} is of a base with {entry} {config[entry]}, expected {expected}"
      )
  stated = config["config"]
  configs = stated.get("configs", []) if stated.get("architecture") == "union" else [stated]
  for i, part in enumerate(configs):
    schema.check(f"the adapter's config {i}", part, options.MethodConfig)
  if "version" not in config:  # of adapter-transformers before 3, whose "gelu" was the tanh form
    old = {"gelu": "gelu_new", "gelu_orig": "gelu"}
    configs = [{k: old.get(x, x) if k == "non_linearity" else x for k, x in part.items()}
               for part in configs]  # fmt: skip
  kinds = [part.get("architecture") or "bottleneck" for part in configs]
  if not kinds or not {*kinds} <= READERS.keys():
    raise UserError(
      f"the adapter in {folder} is a {' + '.join(kinds) or 'union of nothing'}, expected a "
      "bottleneck adapter, a Compacter, a prefix or a union of these; save LoRA in PEFT's format"
    )
  if len({*kinds}) < len(kinds):
    raise UserError(f"the union in {folder} has two parts of one kind: {' + '.join(kinds)}")
  return dict(zip(kinds, configs, strict=True))


def _complete(
  pretrained: hf.Pretrained, section: dict, trained: dict, scales: dict
) -> ImportedMethod:
  """Checks the shapes of a method's arrays, and adds its fixed numbers.

  Args:
    scales: {site: the scale of each layer}, which AdapterHub learned; here it is a fixed number.
  """
  expected, fixed = files.initial(section, pretrained)
  for site, arrays in expected.items():
    for name, x in arrays.items():
      check_shape(f"{name} at {site}", trained[site][name].shape, x.shape)
  for site, scale in scales.items():
    check_shape(f"scaling at {site}", scale.shape, fixed[site]["scale"].shape)
    fixed[site]["scale"] = scale
  return ImportedMethod(section, trained, fixed)


def _head(folder: Path, pretrained: hf.Pretrained) -> tuple[dict[str, Any], tuple[str, ...]]:
  """Reads the head beside an adapter: returns ({our path: array}, names of its labels).

  Weights of a language model's head that equal the base's are left out.
  """
  about, safe, pickled = layout.FILES["head"]
  if not (folder / about).exists():
    if any(is_head(path, pooler=False) for path in pretrained.fresh):
      kind = pretrained.model.config.head.kind
      raise UserError(
        f"neither the base nor {folder} has weights of a head {kind!r}: expected {about} and its "
        "weights beside the adapter"
      )
    return {}, ()
  config = schema.read_json(folder / about)
  schema.check(f"{folder / about}: options", config, options.Head)
  c, family = pretrained.model.config, hf.family_module(pretrained.family)
  kind, model_class = "lm" if c.head is None else c.head.kind, config.get("model_class")
  if config.get("config") is not None or model_class != family.ARCHITECTURES.get(kind):
    known = family.ARCHITECTURES
    hint = next((ours for ours in known if known[ours] == model_class), None)
    hint = f"load the model with head={hint!r}" if hint else "save it from a class of transformers"
    raise UserError(f"the head in {folder} is of {model_class}, the model's is {kind!r}: {hint}")
  tensors, params = files.tensors(folder, safe, pickled), {}
  flat = tree.flatten(pretrained.params)
  for row in family.names(c):
    for key in [key for key in (row.theirs, *row.also) if key in tensors]:
      leaf = np.asarray(flat[row.ours], np.float32)
      check_shape(f"{key} in {folder}", tensors[key].shape, row.their_shape(leaf.shape))
      x = np.ascontiguousarray(row.read(tensors.pop(key)))
      if row.ours in pretrained.fresh or kind != "lm" or not np.array_equal(x, leaf):
        params[row.ours] = x
  _check_whole(params, folder, pretrained)
  tied = np.asarray(flat["embed/embedding"], np.float32)
  foreign = sorted(key for key, x in tensors.items() if not np.array_equal(x, tied))
  if foreign:
    raise UserError(f"foreign tensors in the head in {folder}: {', '.join(foreign[:3])}")
  stated = config.get("label2id") or {}
  named = kind in ("classify", "tokens") and len(stated) == c.head.outputs
  return params, named_labels(tuple(sorted(stated, key=stated.get))) if named else ()


def _check_whole(params: dict, folder: Path, pretrained: hf.Pretrained) -> None:
  """Raises UserError for a task's head that lacks a weight, or a pooler that the base lacks too.

  What a language model's head lacks is the base's.
  """
  if pretrained.model.config.head is None:
    return
  for row in files.table(pretrained):
    needed = row.ours in pretrained.fresh or is_head(row.ours, pooler=False)
    if needed and row.ours not in params and row.ours in files.shapes(pretrained):
      raise UserError(f"the head in {folder} lacks {row.theirs}: save all of the model's head")
