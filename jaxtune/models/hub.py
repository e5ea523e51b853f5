"""Finds the folder of a model, and reads its config.json."""

from __future__ import annotations

import os
from pathlib import Path

from jaxtune import schema
from jaxtune.errors import UserError

# Weights that some repositories hold once more, in another form or under other names.
COPIES = ["consolidated*", "*/*.safetensors"]


def resolve(path: str) -> Path:
  """Returns a model's folder, which is local or is downloaded from the hub."""
  expanded = os.path.expanduser(path)  # Path raises on some text that os.path accepts
  if path and os.path.isdir(expanded):
    return Path(expanded)
  is_local = os.path.exists(expanded) or path.startswith((".", "/", "~")) or path.count("/") > 1
  if not path or is_local:
    raise UserError(
      f"model.path is {schema.shown(path)}, which is not a folder; expected one with a config.json"
    )
  from huggingface_hub import snapshot_download

  try:
    patterns = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
    return Path(snapshot_download(path, allow_patterns=patterns, ignore_patterns=COPIES))
  except Exception as error:
    raise UserError(
      f"model.path is {schema.shown(path)}, expected a local folder or a model on the hub, which "
      f"gave none ({type(error).__name__}): check the spelling and the network"
    ) from error


def read_config(folder: Path) -> dict:
  """Reads config.json, with the start tokens of generation_config.json in place of its own."""
  if not (folder / "config.json").is_file():
    raise UserError(f"{folder} is not a model folder: it has no config.json")
  config = schema.read_json(folder / "config.json")
  generation = folder / "generation_config.json"
  settings = schema.read_json(generation) if generation.is_file() else {}
  for name, entries in (("config.json", config), ("generation_config.json", settings)):
    schema.check(f"{folder / name}", entries, dict)
  starts = ("decoder_start_token_id", "forced_bos_token_id")
  return config | {name: settings[name] for name in starts if settings.get(name) is not None}
