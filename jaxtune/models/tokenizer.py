"""Loads the tokenizer of a Hugging Face folder."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from jaxtune import schema
from jaxtune.errors import UserError


def load(name: str | None, folder: Path | None) -> Any:
  """Loads a tokenizer by its name or from the model's folder; returns None if there is none."""
  source = name or folder
  if source is None or (name is None and not any(folder.glob("tokenizer*"))):
    return None
  try:
    return _find(Path(source)).from_pretrained(source, trust_remote_code=False)
  except Exception as error:
    raise UserError(f"the tokenizer in {source} cannot be loaded: {error}") from error


def _find(folder: Path) -> Any:
  """Returns the tokenizer's class; AutoTokenizer, slow to import, if the files do not tell it."""
  if (file := folder / "tokenizer_config.json").is_file() and (folder / "tokenizer.json").is_file():
    entries = schema.read_json(file)
    plain = entries.get("tokenizer_class") in ("PreTrainedTokenizerFast", "TokenizersBackend")
    if plain and "auto_map" not in entries:
      return importlib.import_module("transformers").PreTrainedTokenizerFast
  return importlib.import_module("transformers").AutoTokenizer
