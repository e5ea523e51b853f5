"""Names models, files and folders in an export, without their paths on this machine."""

from __future__ import annotations

import re
from pathlib import Path

from jaxtune.data import sources
from jaxtune.files import expanded

HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def base_reference(name: str | Path | None) -> str | None:
  """Returns a base's name for the files of an export: the hub's, or "./" and its folder's name.

  The "./" keeps a reader from loading a model of the hub that has the name of somebody's folder.
  """
  if name is None:
    return None
  path = expanded(name)
  hub = next((part for part in path.parts if part.startswith("models--")), None)
  if hub is not None:  # in the hub's cache
    return hub.removeprefix("models--").replace("--", "/")
  if HUB_NAME.fullmatch(str(name)) and not path.exists():
    return str(name)
  return f"./{path.resolve().name}"


def is_local(base_name: str | None) -> bool:
  """Says whether a base's reference is a folder."""
  return base_name is not None and base_name.startswith("./")


def last_part(text: str) -> str:
  """Returns the last part of a path of this machine, and any other text as it is."""
  try:
    path = Path(text).expanduser()
    is_path = len(path.parts) > 1 and (path.is_absolute() or path.exists())
  except (OSError, ValueError, RuntimeError):  # a text that is no path
    is_path = False
  return path.name if is_path else text


def on_hub(name: str) -> bool:
  """Says whether a data set's name is one of the hub."""
  like_hub = HUB_NAME.fullmatch(name.split(":")[0]) and "/" in name
  return bool(like_hub) and sources.kind(name) is None and not Path(name).exists()
