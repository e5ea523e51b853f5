"""Libraries that take seconds to load, and that few commands use."""

from __future__ import annotations

import importlib
from typing import Any


class Module:
  """Stands for a module, which is imported when something of it is asked for."""

  def __init__(self, name: str):
    self._name = name

  def __getattr__(self, attribute: str) -> Any:
    return getattr(importlib.import_module(self._name), attribute)
