"""Reads adapters that others wrote, in PEFT's and AdapterHub's formats, into our arrays.

The arrays are those that our own training would have made: they can be trained further, compared,
composed and exported again. Nothing in a folder is executed, and a tensor that nothing reads is an
error.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path

import jax

from jaxtune import peft as methods_
from jaxtune import schema, tree
from jaxtune.errors import UserError
from jaxtune.files import expanded
from jaxtune.formats import files, options
from jaxtune.formats.files import Imported
from jaxtune.models import hf
from jaxtune.models.heads import classes


def check_folder(folder: str | Path) -> Path:
  """Returns the path of an adapter's folder; raises UserError for a folder that is none."""
  folder = expanded(folder)
  if not (folder / "adapter_config.json").is_file():
    raise UserError(
      f"{folder} is no adapter: it has no adapter_config.json; expected a folder that PEFT, "
      "AdapterHub or `jaxtune export` wrote"
    )
  return folder


def read(folder: str | Path, pretrained: hf.Pretrained) -> Imported:
  """Reads an adapter's folder, in the format of its adapter_config.json.

  Raises:
    UserError: for a folder that is no adapter, is damaged, or does not fit the model.
  """
  folder = check_folder(folder)
  path = folder / "adapter_config.json"
  form, config = files.adapter_config(path)
  expected = {"peft": options.Peft, "adapterhub": options.AdapterHub}[form]
  schema.check(f"{path}: options", config, expected)
  named = config.get("base_model_name_or_path") or config.get("model_name")
  files.check_base(named, pretrained)
  reader = importlib.import_module(f"jaxtune.formats.{form}.read")
  return reader.read(folder, config, pretrained)


def check_named(
  imported: Imported,
  pretrained: hf.Pretrained,
  labels: Sequence[str] | None,
  names: Sequence[str],
  where: str | Path,
) -> None:
  """Raises UserError for a head of which nothing says what its outputs are called.

  Neither its files do, nor data.labels, nor the base's config.json; names that are numbers do.

  Args:
    labels: data.labels.
    names: the labels of the data.
    where: the adapter's folder, for the error.
  """
  head = pretrained.model.config.head
  if "head/out/kernel" not in imported.params or head.kind not in ("classify", "tokens"):
    return
  known = hf.family_module(pretrained.family).ARCHITECTURES
  own = pretrained.folder and classes(known, pretrained.hf_config, head.kind)
  if not (imported.labels or labels or own or all(map(str.isdigit, names))):
    raise UserError(
      f"the head in {where} names no labels, expected data.labels in the order of its outputs"
    )


def adapt(imported: Imported, pretrained: hf.Pretrained) -> methods_.Adapted:
  """Returns a model's weights with an imported adapter laid over them."""
  methods, trained, fixed = methods_.build(imported.section), {}, {}
  for method, arrays in zip(methods, imported.methods, strict=True):
    trained |= methods_.by_path(method, arrays.trained)
    fixed |= methods_.by_path(method, arrays.fixed)
  nested = lambda xs: jax.device_put(tree.unflatten(xs))
  moved, flat = imported.params, tree.flatten(pretrained.params)
  base = tree.unflatten({path: x for path, x in flat.items() if path not in moved})
  tuned = {"params": nested(moved), "peft": nested(trained)}
  return methods_.Adapted(methods, tuned, nested(fixed), base)
