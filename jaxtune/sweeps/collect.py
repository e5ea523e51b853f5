"""Reads the trials of a sweep from its folder: finished ones, and what became of the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from typing_extensions import TypedDict

from jaxtune import schema
from jaxtune.runs import locks, results
from jaxtune.runs.folder import read_history
from jaxtune.sweeps import groups

SHOWN = ("config.json", "metrics.jsonl", "predictions.jsonl")  # files that a report shows
TUNING = "tuning.json"  # in a sweep's folder; see `curves`
FAILED = "failed.json"  # in a trial's folder; see `Failure`


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
  states: dict[str, tuple[str, int]] = {}
  for name, setting, config, some in zip(names, settings, configs, rates, strict=True):
    place = folder / "trials" / name
    seeded = setting | {"seed": config["seed"]}
    known = {"trial": name, "settings": seeded, "folder": str(place), "own_rate": bool(some)}
    if result := results.read(place):
      results.check_files(place, result, SHOWN)
      finished.append(result | known)
    else:
      states[name] = state_of(place, running)
      known |= {"method": config["method"]["name"], "final": {}, "base": {}}
      unfinished.append(known | {"steps": config["train"]["steps"]})
  if ("running", 0) in states.values():
    states = with_waiting(states, programs_of(names, configs))
  for one in unfinished:
    state, step = states[one["trial"]]
    one |= {"state": state, "detail": _detail(Path(one["folder"]), state, step, one.pop("steps"))}
  return finished, unfinished


def _detail(place: Path, state: str, step: int, steps: int) -> str:
  """Says why a trial failed, or how far it is."""
  if state == "failed":
    return schema.read_json(place / FAILED, Failure, "delete it")["reason"]
  return "" if state == "waiting" else f"step {step} of {steps}"


def curves(folder: Path) -> dict[str, Curve]:
  """Reads how a sweep chose the learning rates of its configurations; {} where it chose none."""
  path = folder / TUNING
  if not path.exists():
    return {}
  return schema.read_json(path, dict[str, Curve], "delete it, and start the sweep again")


def state_of(place: Path, running: bool) -> tuple[str, int]:
  """Says in a word what becomes of a trial without a result, and the last step that it logged."""
  history = read_history(place)
  step = history[-1]["step"] if history else 0
  if (place / FAILED).exists():
    return "failed", step
  if not history and not (running and place.exists()):
    return "waiting", 0
  return "running" if running else "stopped", step


def programs_of(names: Sequence[str], configs: Sequence[dict]) -> dict[str, int]:
  """Returns {trial: the number of its compiled program}."""
  members = groups.groups(list(configs))
  return {names[i]: number for number, group in enumerate(members) for i in group}


def with_waiting(
  states: Mapping[str, tuple[str, int]], programs: Mapping[str, int]
) -> dict[str, tuple[str, int]]:
  """Returns the states of trials; those wait that have logged nothing while their program trains.

  A program begins with the folders of all its trials, of which some may wait for a place.

  Args:
    states: {trial: what `state_of` returns}.
    programs: what `programs_of` returns; other trials are each by themselves.
  """
  busy = {programs.get(name) for name, one in states.items() if one[0] == "running" and one[1]}
  waits = lambda name: name in programs and programs[name] in busy
  return {
    name: ("waiting", 0) if one == ("running", 0) and waits(name) else one
    for name, one in states.items()
  }
