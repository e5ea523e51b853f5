"""Imports libraries when they are first used, and finds versions and jaxtune's own commit."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import subprocess
import sys
from importlib import metadata
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any


class Lazy:
  """Stands for a module that takes seconds to import and that few commands need.

  It is imported when one of its attributes is used.
  """

  def __init__(self, name: str):
    self._name = name

  def __getattr__(self, attribute: str) -> Any:
    return getattr(importlib.import_module(self._name), attribute)


def run_file(path: str | Path) -> ModuleType:
  """Runs a user's Python file as a module, under a name that no other module has."""
  name = f"jaxtune_file:{os.path.abspath(path)}"
  loader = SourceFileLoader(name, str(path))
  module = importlib.util.module_from_spec(importlib.util.spec_from_loader(name, loader))
  sys.modules[name] = module  # where dataclasses, for one, look it up
  loader.exec_module(module)
  return module


def quieten() -> None:
  """Keeps libraries from printing what a user need not know."""
  logging.getLogger("absl").setLevel(logging.CRITICAL)  # its errors are also raised
  os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
  os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # else it warns that PyTorch is missing


def versions(*names: str) -> dict[str, str]:
  """Returns the versions of libraries; "source" for one that runs without being installed."""
  known = {}
  for name in names:
    try:
      known[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
      known[name] = "source"
  return known


def commit() -> str | None:
  """Returns the git commit of the checkout that jaxtune runs from, or None if that is not known.

  It ends in "-dirty" where files of the checkout were changed since.
  """
  root = Path(__file__).parents[1]
  if not (root / ".git").exists():  # installed, maybe within the checkout of another project
    return None
  command = [
    "git",
    "-C",
    str(root),
    "describe",
    "--always",
    "--dirty",
    "--abbrev=40",
    "--exclude=*",
  ]
  try:
    done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
  except (OSError, subprocess.SubprocessError):
    return None
  return done.stdout.strip()
