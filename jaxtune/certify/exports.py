"""Checks the folder of an export before PyTorch loads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from jaxtune import schema
from jaxtune.errors import UserError
from jaxtune.formats.adapterhub.layout import FILES
from jaxtune.formats.files import adapter_config
from jaxtune.formats.peft import layout

WEIGHTS = {"peft": layout.WEIGHTS, "adapterhub": FILES["adapter"][1], "merged": "model.safetensors"}


def check_folder(folder: Path) -> str:
  """Returns the format of an export: "peft", "adapterhub" or "merged".

  Raises:
    UserError: for a folder that is not an export, or whose weights are missing or damaged.
  """
  expected = "expected adapter_config.json with its weights, or a model's config.json"
  if not folder.is_dir():
    raise UserError(f"{folder} is not a folder; {expected}")
  adapter, model = folder / "adapter_config.json", folder / "config.json"
  if adapter.is_file():
    form, _ = adapter_config(adapter)
  elif model.is_file():
    schema.check(str(model), schema.read_json(model), dict[str, Any])
    form = "merged"
  else:
    raise UserError(f"{folder} is not an exported adapter or model: {expected}")
  weights = folder / WEIGHTS[form]
  if not weights.exists():
    raise UserError(f"{folder} lacks {weights.name}: export again")
  try:
    with safe_open(weights, "numpy") as file:
      file.keys()
  except (SafetensorError, OSError) as error:
    raise UserError(f"{weights} is damaged or truncated ({error}): export again") from error
  return form
