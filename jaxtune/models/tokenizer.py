"""Loads the tokenizer of a Hugging Face folder."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from jaxtune import schema
from jaxtune.errors import UserError
from jaxtune.files import expanded


def load(name: str | None, folder: Path | None) -> Any:
  """Loads a tokenizer by name or from the model's folder; returns None if that holds none.

  Raises:
    UserError: if it cannot be loaded.
  """
  source = name or folder
  if source is None or (name is None and not any(folder.glob("tokenizer*"))):
    return None
  try:
    place = expanded(source)
    source = place if place.is_dir() else source  # a name on the hub stays as it is
    tokenizer = _tokenizer_class(place).from_pretrained(source, trust_remote_code=False)
  except Exception as error:
    raise UserError(f"the tokenizer in {source} cannot be loaded: {error}") from error
  tokenizer.truncation_side = "right"  # encoders count windows and cuts from the beginning
  return tokenizer


def _tokenizer_class(folder: Path) -> Any:
  """Returns the tokenizer's class: AutoTokenizer, slow to import, only if the files require it."""
  if (file := folder / "tokenizer_config.json").is_file() and (folder / "tokenizer.json").is_file():
    entries = schema.read_json(file)
    plain = entries.get("tokenizer_class") in ("PreTrainedTokenizerFast", "TokenizersBackend")
    if plain and "auto_map" not in entries:
      return importlib.import_module("transformers").PreTrainedTokenizerFast
  return importlib.import_module("transformers").AutoTokenizer
