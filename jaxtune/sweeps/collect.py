"""Reads the trials of a sweep from its folder: finished ones, and what became of the others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from typing_extensions import TypedDict

from jaxtune import schema
from jaxtune.runs import locks, results
from jaxtune.runs.folder import read_history

SHOWN = ("config.json", "metrics.jsonl", "predictions.jsonl")  # files that a report shows
TUNING = "tuning.json"  # in a sweep's folder; see `curves`
FAILED = "failed.json"  # in a trial's folder; see `Failure`
_FIRST = "step 0 "  # how the detail of a trial begins that has logged nothing


class Failure(TypedDict):
  """What is read of a trial's failed.json."""

  __pydantic_config__ = schema.STRICT
  reason: str


class Curve(TypedDict):
  """What is read of a configuration in a sweep's tuning.json."""

  __pydantic_config__ = schema.STRICT
  rates: list[float]
  losses: list[float | None]
  chosen: float
  at_edge: bool


def read(
  folder: Path,
  names: Sequence[str],
  settings: Sequence[dict],
  configs: Sequence[dict],
  rates: Sequence[Sequence[float]],
) -> tuple[list[dict], list[dict]]:
  """Reads every trial of a sweep that may be under way.

  Args:
    rates: of each trial, the learning rates of which it has the best; [] for none.

  Returns:
    The results of the finished trials, each with its "trial", "settings" (with the seed, whether
    or not it is an axis), "folder" and "own_rate" (whether its learning rate was chosen for its
    configuration), and the trials that have none: these with "method", "state" and "detail" too,
    and empty "final" and "base". The state is running, stopped, waiting or failed.
  """
  finished, unfinished, running = [], [], locks.works(folder)
  for name, setting, config, some in zip(names, settings, configs, rates, strict=True):
    place = folder / "trials" / name
    seeded = setting | {"seed": config["seed"]}
    known = {"trial": name, "settings": seeded, "folder": str(place), "own_rate": bool(some)}
    if result := results.read(place):
      results.check_files(place, result, SHOWN)
      finished.append(result | known)
    else:
      known |= {"method": config["method"]["name"], "final": {}, "base": {}}
      state, detail = state_of(place, running, config["train"]["steps"])
      unfinished.append(known | {"state": state, "detail": detail})
  at_work = [one for one in unfinished if one["state"] == "running"]
  waiting = [one for one in at_work if one["detail"].startswith(_FIRST)]
  if len(waiting) < len(
    at_work
  ):  # for a place: a program begins with the folders of all its trials
    for one in waiting:
      one |= {"state": "waiting", "detail": ""}
  return finished, unfinished


def curves(folder: Path) -> dict[str, Curve]:
  """Reads how a sweep chose the learning rates of its configurations; {} where it chose none."""
  path = folder / TUNING
  if not path.exists():
    return {}
  return schema.read_json(path, dict[str, Curve], "delete it, and start the sweep again")


def state_of(place: Path, running: bool, steps: int) -> tuple[str, str]:
  """Says in a word, and in detail, what becomes of a trial without a result."""
  if (path := place / FAILED).exists():
    return "failed", schema.read_json(path, Failure, "delete it")["reason"]
  history = read_history(place)
  if not history and not (running and place.exists()):
    return "waiting", ""
  step = f"step {history[-1]['step']} " if history else _FIRST
  return "running" if running else "stopped", f"{step}of {steps}"
