"""A finished trial's result.json. It holds its own hash and those of the files beside it."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Required

from typing_extensions import TypedDict

from jaxtune import config as configs_
from jaxtune import hosts, objectives, schema
from jaxtune.errors import UserError, nearest
from jaxtune.files import digest, write_atomically

FILES = (
  "config.json", "metrics.jsonl", "predictions.jsonl", "scores.safetensors", "tuned.safetensors",
)  # fmt: skip


class Report(TypedDict, total=False):
  """What is read of the data's report in result.json."""

  __pydantic_config__ = schema.STRICT
  files: dict[str, str]
  tasks: dict[str, dict[str, Any]]
  general: dict[str, Any] | None
  splits: dict[str, dict[str, Any] | None]
  format: dict[str, dict[str, Any] | None]
  tokenizer: str | None


class Result(TypedDict, total=False):
  """What is read of a run's result.json."""

  __pydantic_config__ = schema.STRICT
  final: Required[dict[str, Any]]
  base: dict[str, Any]
  data: Report
  trained_parameters: int
  base_parameters: int
  best_step: int | None
  diverged_at: int | None
  base_fingerprint: str
  base_config: str
  sources: dict[str, str]
  files: Required[dict[str, str]]
  sha256: Required[str]
  versions: dict[str, str]


class _Optim(TypedDict):
  __pydantic_config__ = schema.STRICT
  learning_rate: float


class _Train(TypedDict):
  __pydantic_config__ = schema.STRICT
  steps: int


class _Objective(TypedDict):
  __pydantic_config__ = schema.STRICT
  name: str


class Config(TypedDict):
  """What is read of the config.json that a run has written."""

  __pydantic_config__ = schema.STRICT
  optim: _Optim
  train: _Train
  objective: _Objective


def write(folder: Path, result: dict) -> dict:
  """Writes a result once all files of the trial are there; returns it with their hashes.

  Of several processes each returns what the first one has written.
  """
  if not hosts.primary():
    hosts.wait("result")
    return read(folder)
  result = json.loads(json.dumps(result, default=str))
  result["files"] = {name: digest(folder / name) for name in FILES if (folder / name).exists()}
  result["sha256"] = hash_of(result)
  write_atomically(folder / "result.json", json.dumps(result, indent=2))
  hosts.wait("result")
  return result


def read(folder: Path) -> dict:
  """Reads a run's result.json; {} for a run that is not finished, or was composed or imported.

  Raises:
    UserError: where its content has changed since it was written, or its hashes are missing.
  """
  path = folder / "result.json"
  if not path.exists():
    return {}
  result = schema.read_json(path, Result, again(folder))
  if result["sha256"] != hash_of(result):
    raise UserError(
      f"{path} is damaged or was edited: its content has another hash than it had when written; "
      f"{again(folder)}"
    )
  return result


def again(folder: Path) -> str:
  """Says what to do about a file of a finished trial that is damaged."""
  return (
    f"put it back, or delete {folder} to train the trial again (trained without its group, it "
    "differs by the rounding of float32, about 1e-8)"
  )


def check_files(folder: Path, result: dict, names: tuple[str, ...] = FILES) -> None:
  """Raises UserError unless files of a finished trial are those that its result was written with.

  Args:
    result: what `read` returned; nothing is checked for {}.
  """
  for name, wanted in result.get("files", {}).items():
    path = folder / name
    if name not in names or (path.is_file() and digest(path) == wanted):
      continue
    wrong = "is damaged or changed" if path.exists() else "is missing"
    raise UserError(f"{path} {wrong} since result.json was written: {again(folder)}")


def diverged(result: dict) -> bool:
  """Says whether a trial's training was not finite at any step, or one of its final metrics is not.

  A trial whose training broke down has diverged even if the weights that it kept are from before
  that step and score well: nobody would choose such a setting.
  """
  return result.get("diverged_at") is not None or any(
    isinstance(value, float) and not math.isfinite(value) for value in result["final"].values()
  )


def best_trial(folder: Path) -> Path:
  """Returns a run's folder: of a sweep's, the trial with the lowest validation (else test) loss.

  Raises:
    UserError: where no trial is finished, all diverged, or their losses cannot be compared.
  """
  if (folder / "tuned.safetensors").exists():
    return folder
  found = {path.parent: read(path.parent) for path in folder.glob("trials/*/result.json")}
  if not found:
    raise _missing(folder)
  held_out = any("validation_loss" in result["final"] for result in found.values())
  losses, name = {}, "validation_loss" if held_out else "test_loss"
  for trial, result in found.items():
    if not diverged(result) and not result.get("exited_at"):
      loss = result["final"].get(name)
      losses[trial] = loss if isinstance(loss, float) else float("inf")
  if not losses:
    raise UserError(f"all trials of {folder} diverged: name one of {folder}/trials itself")
  _check_comparable(folder, sorted(losses))
  return min(sorted(losses), key=losses.get)


def _missing(folder: Path) -> UserError:
  """Says that a folder holds no finished run, and which runs are the nearest to it."""
  path = folder.absolute()
  near = next(place for place in (path, *path.parents) if place.is_dir())
  lost = "" if near == path else f": it is not there, and the nearest folder is {near}"
  found = itertools.chain(near.glob("*/tuned.safetensors"), near.glob("*/trials/*/result.json"))
  runs = {file.relative_to(near).parts[0] for file in found}
  name = (path.relative_to(near).parts or (path.name,))[0]
  known = f"; in {near}, {nearest(name, runs)}" if runs else ""
  return UserError(
    f"{folder} holds no finished run{lost}; expected the folder of a run, with a "
    f"tuned.safetensors, or of a sweep with a finished trial{known}"
  )


def _check_comparable(folder: Path, trials: Sequence[Path]) -> None:
  """Raises UserError where the losses of a sweep's trials are not one function."""
  configs = [configs_.as_now(schema.read_json(trial / "config.json", Config)) for trial in trials]
  of = lambda config: [config.get(name, {}) for name in ("objective", "rollout", "method")]
  sections = [objectives.losses_of(*of(config)) for config in configs]
  for name in dict.fromkeys(itertools.chain(*sections)):
    values = [one.get(name) for one in sections]
    if other := [value for value in values if value != values[0]]:
      raise UserError(
        f"{folder} has no best trial, as {name} is {values[0]} and {other[0]}, on which "
        f"their losses depend: name one of {folder}/trials itself"
      )


def hash_of(content: Mapping[str, Any]) -> str:
  """Returns the hash that JSON holds of itself, as "sha256"."""
  rest = {key: value for key, value in content.items() if key != "sha256"}
  return hashlib.sha256(json.dumps(rest).encode()).hexdigest()
