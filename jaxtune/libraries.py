"""Imports libraries when they are first used, and finds their versions."""

from __future__ import annotations

import importlib
from importlib import metadata
from typing import Any


class Lazy:
  """Stands for a module that takes seconds to import and that few commands need.

  It is imported when one of its attributes is used.
  """

  def __init__(self, name: str):
    self._name = name

  def __getattr__(self, attribute: str) -> Any:
    return getattr(importlib.import_module(self._name), attribute)


def versions(*names: str) -> dict[str, str]:
  """Returns the versions of libraries; "source" for one that runs without being installed."""
  known = {}
  for name in names:
    try:
      known[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
      known[name] = "source"
  return known
