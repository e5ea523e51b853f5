"""How an export names models, files and folders: nothing tells where they lay on a machine."""

from __future__ import annotations

import re
from pathlib import Path

from jaxtune.data import sources

HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def base_reference(name: str | Path | None) -> str | None:
  """Names a base in the files of an export: by its name on the hub, or as "./" and its folder's.

  So a card tells nothing of the machine it was written on, and nobody loads a model of the hub
  that happens to have the name of somebody's folder.
  """
  if name is None:
    return None
  path = Path(name).expanduser()
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
    place = Path(text).expanduser()
    inside = len(place.parts) > 1 and (place.is_absolute() or place.exists())
  except (OSError, ValueError, RuntimeError):  # a text that is none
    inside = False
  return place.name if inside else text


def on_hub(name: str) -> bool:
  """Says whether a data set's name is one of the hub."""
  named = HUB_NAME.fullmatch(name.split(":")[0]) and "/" in name
  return bool(named) and sources.kind(name) is None and not Path(name).exists()
