"""jaxtune: fine-tune language models efficiently in JAX, and compare the ways of doing it honestly.

import jaxtune

config = jaxtune.load_config("configs/quickstart.py")
results = jaxtune.sweep(config, "runs/quickstart")
"""

from __future__ import annotations

import importlib
from typing import Any

__all__ = [
  "Run", "complete", "compose_runs", "evaluate", "export_run", "extract", "fit", "import_adapter",
  "judge_ranks", "knock_out", "load_config", "load_run", "load_runs", "plan", "show", "sweep",
]  # fmt: skip


def __getattr__(name: str) -> Any:
  """Imports `jaxtune.api` when one of its functions is first asked for."""
  if name in __all__:
    return getattr(importlib.import_module("jaxtune.api"), name)
  raise AttributeError(f"module 'jaxtune' has no attribute {name!r}")
