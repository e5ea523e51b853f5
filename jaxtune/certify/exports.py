"""The folder of an export, before PyTorch loads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from jaxtune import schema
from jaxtune.errors import UserError
from jaxtune.formats.adapterhub.layout import FILES
from jaxtune.formats.peft import layout

WEIGHTS = {"peft": layout.WEIGHTS, "adapterhub": FILES["adapter"][1], "merged": "model.safetensors"}


def check_folder(folder: Path) -> str:
  """Returns the format of an export: "peft", "adapterhub" or "merged".

  Raises:
    UserError: for a folder that is none, or whose weights are damaged.
  """
  expected = "expected adapter_config.json with its weights, or a model's config.json"
  if not folder.is_dir():
    raise UserError(f"{folder} is not a folder; {expected}")
  adapter, model = folder / "adapter_config.json", folder / "config.json"
  path = adapter if adapter.exists() else model
  if not path.is_file():
    raise UserError(f"{folder} is not an exported adapter or model: {expected}")
  config = schema.read_json(path)
  schema.check(str(path), config, dict[str, Any])
  form = "merged" if path == model else "adapterhub" if "config" in config else "peft"
  if form == "peft" and "peft_type" not in config:
    raise UserError(
      f"{path} is neither PEFT's (it has no peft_type) nor AdapterHub's (it has no config)"
    )
  weights = folder / WEIGHTS[form]
  if not weights.exists():
    raise UserError(f"{folder} lacks {weights.name}: export again")
  try:
    with safe_open(weights, "numpy") as file:
      file.keys()
  except (SafetensorError, OSError) as error:
    raise UserError(f"{weights} is damaged or truncated ({error}): export again") from error
  return form


def stored_type(folder: Path) -> str:
  """Returns the type that a merged folder's config.json says its weights are stored in."""
  return json.loads((folder / "config.json").read_text()).get("dtype", "float32")
