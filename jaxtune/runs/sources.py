"""What a trial reads beside its base and its data: the adapters it starts from, and its rewards."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxtune import objectives, peft
from jaxtune.errors import UserError
from jaxtune.evaluation import rewards
from jaxtune.files import digest, expanded
from jaxtune.runs import results

RUN = ("tuned.safetensors",)  # what is read of a run, and of an adapter of another library
ADAPTER = ("adapter_config.json", "*.safetensors", "*.bin")


def digests(config: dict[str, Any]) -> dict[str, str]:
  """Returns {path: SHA-256} of the files of adapters and rewards that a config names."""
  return {str(path): _digest(path, path.stat().st_mtime_ns) for path in _files(config)}


def check_foreign(config: dict[str, Any], folder: Path) -> None:
  """Raises UserError where a run names Python code that may have come with it.

  The run may be somebody else's, whose code is not to be run by judging a model: so no code in its
  folder is, nor in the folder around that, unless the command was started within the latter.
  """
  folder = folder.resolve()
  folder = folder.parents[1] if folder.parent.name == "trials" else folder  # that of the sweep
  around = folder.parent
  at_home = Path.cwd().is_relative_to(around)
  for path in map(rewards.file_of, config["rollout"]["rewards"]):
    if path is None:
      continue
    if path.resolve().is_relative_to(folder):
      where, way = "in its own", "copy the file to where the config of your own names it"
    elif path.resolve().is_relative_to(around) and not at_home:
      where, way = "beside its", f"start the command in {around} if the file is yours"
    else:
      continue
    raise UserError(
      f"{folder} has a reward {where} folder, {path}, which is not run, as the folder may be "
      f"somebody else's: {way}"
    )


def check_start(config: dict[str, Any], folder: Path) -> None:
  """Raises UserError where an adapter that a run's loss compares with has changed since.

  Args:
    folder: of the run, whose result has the hashes; nothing is checked without one.
  """
  if not objectives.references(config["objective"], config["method"]):
    return
  known, now = results.read(folder).get("sources", {}), digests(config)
  for path, wanted in known.items():
    if now.get(path) != wanted:
      raise UserError(
        f"{path}, which {folder} started from, is not as it was then, and is what its "
        "loss compares with: put it back"
      )


def _files(config: dict[str, Any]) -> Iterator[Path]:
  starts = [section.get("start") for section in peft.sections(config["method"]).values()]
  judges = [one.removeprefix(rewards.MODEL) for one in config["rollout"]["rewards"]
            if one.startswith(rewards.MODEL)]  # fmt: skip
  for folder in [expanded(name) for name in (*starts, *judges) if name]:
    folder = results.best_trial(folder) if (folder / "trials").is_dir() else folder
    names = RUN if (folder / RUN[0]).exists() else ADAPTER
    yield from sorted({path for name in names for path in folder.glob(name)})
  for path in map(rewards.file_of, config["rollout"]["rewards"]):
    if path is not None and path.is_file():
      yield path


@functools.lru_cache(maxsize=1024)  # a sweep's trials read the same
def _digest(path: Path, written: int) -> str:
  return digest(path)
