"""The checkpoints of a sweep's programs: how they are named, and which trials each is of."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from jaxtune import config as configs_
from jaxtune.training import checkpoint


def checkpoints(configs: Sequence[dict], workdir: Path) -> Path:
  """Names the folder of a group's checkpoints after its configs."""
  identity = json.dumps(list(map(configs_.unplaced, configs)), sort_keys=True, default=str)
  return workdir / "groups" / hashlib.sha256(identity.encode()).hexdigest()[:16]


def found(configs: Sequence[dict], workdir: Path) -> dict[Path, list[int]]:
  """Returns {folder of checkpoints: the numbers of its trials} of those of a group's trials alone.

  Others of the group may have been done before, or be trained alone.
  """
  text, known = partial(json.dumps, sort_keys=True), {}
  own = {text(as_read(config)): number for number, config in enumerate(configs)}
  for path in sorted((workdir / "groups").glob("[!.]*")):
    numbers = [own[one] for one in map(text, saved(path)) if one in own]
    if numbers and path == checkpoints([configs[i] for i in numbers], workdir):
      known[path] = numbers
  return known


def saved(folder: Path) -> list[dict]:
  """Returns the configs of the trials whose checkpoint a folder holds; [] where there is none."""
  return [_as_now(json.dumps(one)) for one in checkpoint.read_record(folder).get("config", [])]


@functools.lru_cache(maxsize=1024)  # each group of a sweep asks anew
def _as_now(text: str) -> dict:
  return configs_.as_now(json.loads(text))


def as_read(config: dict) -> dict:
  """Returns a completed config as `configs.as_now` returns it."""
  return configs_.unplaced(json.loads(json.dumps(config, default=str)))
