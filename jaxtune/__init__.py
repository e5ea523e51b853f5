"""jaxtune: fine-tune language models efficiently in JAX, and compare the ways of doing it honestly.

import jaxtune

config = jaxtune.load_config("configs/quickstart.py")
results = jaxtune.sweep(config, "runs/quickstart")
"""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
  """Imports the functions of `jaxtune.api` when they are first asked for."""
  if name.startswith("_"):
    raise AttributeError(name)
  import importlib

  api = importlib.import_module("jaxtune.api")
  if name in api.__all__:
    return getattr(api, name)
  raise AttributeError(f"module 'jaxtune' has no attribute {name!r}")
