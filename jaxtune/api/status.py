"""Says how far the trials of a sweep, or a run, are; reads their folder, and writes nothing."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any, NamedTuple

from jaxtune import schema
from jaxtune.api import sweep
from jaxtune.errors import UserError
from jaxtune.runs import folder as folders
from jaxtune.runs import locks, results
from jaxtune.sweeps import collect


class Status(NamedTuple):
  """How far a trial is.

  Attributes:
    name: of the trial, or of the run's folder.
    state: "done", "left early", "failed", "diverged", "running" or "waiting"; a trial that has
      begun, and is not done, is "stopped" where no process works in the folder.
    step, steps: updates done, as far as they are logged, and in all.
    loss: the last validation loss, or the last training loss where there is none; or None.
    best: the lowest validation loss, or None.
    seconds_left: until the last step, at the pace so far; None where it is not known.
  """

  name: str
  state: str
  step: int
  steps: int
  loss: float | None = None
  best: float | None = None
  seconds_left: float | None = None


def status(workdir: str | Path) -> list[Status]:
  """Returns how far each trial of a sweep is, or the one run in a folder.

  Raises:
    UserError: for a folder that is of neither.
  """
  workdir = Path(workdir)
  if not (workdir / "config.json").exists():
    raise UserError(f"{workdir} has no config.json: expected the folder of a sweep or a run")
  config, works = schema.read_json(workdir / "config.json"), locks.works(workdir)
  if not config.get("sweep"):
    return [_of_trial(workdir.absolute().name, workdir, config["train"]["steps"], works)]
  names, _, configs = sweep.expand(config, 10**9)
  places = [(name, workdir / "trials" / name) for name in names]
  if not (workdir / "tuning.json").exists():  # the learning rates are being chosen
    places = [(f"tuning/{one.name}", one) for one in sorted(workdir.glob("tuning/*"))] + places
  steps = configs[0]["train"]["steps"]
  of_name = {name: one["train"]["steps"] for name, one in zip(names, configs, strict=True)}
  return [_of_trial(name, place, of_name.get(name, steps), works) for name, place in places]


def _of_trial(name: str, folder: Path, steps: int, works: bool) -> Status:
  history, result = folders.read_history(folder), results.read(folder)
  losses = [row["validation_loss"] for row in history if "validation_loss" in row]
  finite = [loss for loss in losses if math.isfinite(loss)]
  trained = [row["train_loss"] for row in history if "train_loss" in row]
  step = max((row["step"] for row in history), default=0)
  known = dict(loss=(losses or trained or [None])[-1], best=min(finite, default=None))
  if result:
    state = "diverged" if results.diverged(result) else "done"
    state = "left early" if result.get("exited_at") else state
    return Status(name, state, result.get("stopped_at", step), steps, **known)
  state, left = collect.state_of(folder, works, steps)[0], None
  if step and state == "running":
    began, last = ((folder / name).stat().st_mtime for name in ("config.json", "metrics.jsonl"))
    left = max((last - began) / step * (steps - step) - (time.time() - last), 0.0)
  return Status(name, state, step, steps, **known, seconds_left=left)


def text(found: list[Status]) -> str:
  """Lays statuses out, a line each, below one that counts them."""
  counts: dict[str, int] = {}
  for one in found:
    counts[one.state] = counts.get(one.state, 0) + 1
  width = max(len(one.name) for one in found)
  lines = [", ".join(f"{count} {state}" for state, count in counts.items())]
  for one in found:
    cells = [f"{one.name:{width}}", f"{one.state:10}", f"{one.step:>6,} of {one.steps:,}"]
    cells += [_number("loss", one.loss), _number("best", one.best)]
    if one.seconds_left is not None:
      cells.append(f"{duration(one.seconds_left)} left")
    lines.append("  ".join(cells).rstrip())
  return "\n".join(lines)


def _number(name: str, value: Any) -> str:
  return " " * 13 if value is None else f"{name} {value:8.4f}"


def duration(seconds: float) -> str:
  """Writes a time as "45 s", "12 min" or "3 h 20 min"."""
  if seconds < 90:
    return f"{seconds:.0f} s"
  minutes = round(seconds / 60)
  return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
