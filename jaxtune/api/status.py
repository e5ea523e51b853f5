"""Says how far the trials of a sweep, or a run, are; reads their folder, and writes nothing."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from jaxtune import schema
from jaxtune.api import sweep
from jaxtune.errors import UserError
from jaxtune.runs import folder as folders
from jaxtune.runs import locks, results
from jaxtune.sweeps import collect

DONE = ("done", "left early", "diverged")  # states of trials that have a result


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
    speed: updates a second, or None.
    since: the step from which the pace counts, and when it was seen, in seconds since the epoch.
  """

  name: str
  state: str
  step: int
  steps: int
  loss: float | None = None
  best: float | None = None
  seconds_left: float | None = None
  speed: float | None = None
  since: tuple[int, float] | None = None


class Watched(NamedTuple):
  """What does not change while trials train.

  Attributes:
    folder: of the sweep or the run.
    steps: {name of a trial: its updates in all}.
    is_sweep: whether it is a sweep's.
    axes: keys, or sections, of a config in which the trials differ.
    programs: {name of a trial: number of its compiled program}.
  """

  folder: Path
  steps: dict[str, int]
  is_sweep: bool
  axes: tuple[str, ...] = ("method", "optim", "seed")
  programs: Mapping[str, int] = {}

  def place(self, name: str) -> Path:
    """Returns the folder of a trial."""
    if not self.is_sweep:
      return self.folder
    return self.folder / name if name.startswith("tuning/") else self.folder / "trials" / name


def status(workdir: str | Path) -> list[Status]:
  """Returns how far each trial of a sweep is, or the one run in a folder.

  Raises:
    UserError: for a folder that is of neither.
  """
  return look(watched(workdir))


def watched(workdir: str | Path) -> Watched:
  """Reads which trials there are.

  Raises:
    UserError: as `status`.
  """
  workdir = Path(workdir)
  path = workdir / "config.json"
  config = schema.read_json(path, fix="put it back") if path.exists() else None
  if not isinstance(config, dict) or not {"sweep", "train"} & config.keys():
    raise UserError(f"{workdir} is not the folder of a sweep or a run: expected its config.json")
  if not config.get("sweep"):
    schema.check(str(path), config, results.Config)
    return Watched(workdir, {workdir.absolute().name: config["train"]["steps"]}, False)
  names, settings, configs = sweep.expand(config, 10**9)
  steps = {name: one["train"]["steps"] for name, one in zip(names, configs, strict=True)}
  axes = dict.fromkeys(axis for setting in settings for axis in setting)
  return Watched(workdir, steps, True, tuple(axes), collect.programs_of(names, configs))


def look(of: Watched, before: Sequence[Status] = ()) -> list[Status]:
  """Returns how far each trial is now.

  Args:
    before: what an earlier call returned: trials that had a result then are not read again, and
      the pace of the others counts from the first call that saw them under way. Without it, it
      counts from the start of their process.
  """
  works, known = locks.works(of.folder), {one.name: one for one in before}
  steps = of.steps
  if of.is_sweep and not (of.folder / collect.TUNING).exists():  # learning rates are being chosen
    most = max(steps.values())
    steps = {f"tuning/{one.name}": most for one in sorted(of.folder.glob("tuning/*"))} | steps
  found = [_of_trial(of, name, count, works, known.get(name)) for name, count in steps.items()]
  states = collect.with_waiting({one.name: (one.state, one.step) for one in found}, of.programs)
  return [one._replace(state=states[one.name][0]) for one in found]


def _of_trial(of: Watched, name: str, steps: int, works: bool, before: Status | None) -> Status:
  if before and before.state in DONE:
    return before
  folder = of.place(name)
  history, result = folders.read_history(folder), results.read(folder)
  numbers = lambda name: [row[name] for row in history if isinstance(row.get(name), int | float)]
  losses, trained = numbers("validation_loss"), numbers("train_loss")
  finite = [loss for loss in losses if math.isfinite(loss)]
  earlier, step = [0, 0, *sorted({row["step"] for row in history})][-2:]
  known = dict(loss=(losses or trained or [None])[-1], best=min(finite, default=None))
  if result:
    state = "diverged" if results.diverged(result) else "done"
    state = "left early" if result.get("exited_at") else state
    return Status(name, state, result.get("stopped_at", step), steps, **known)
  state, _ = collect.state_of(folder, works)
  if not step or state != "running":
    return Status(name, state, step, steps, **known)
  began, last = ((folder / file).stat().st_mtime for file in ("config.json", "metrics.jsonl"))
  now = time.time()
  since = before and before.since
  if since is None or since[1] < began:  # it is seen for the first time, or was started again
    since = (step, last)
  from_step, then = since if step > since[0] else (0, began)
  speed, left = (step - from_step) / (last - then) if last - then > 1 else None, None
  if speed and step < steps:  # else it is being judged
    following = min(2 * step - earlier, steps)  # which is logged next, maybe after an evaluation
    speed = min(speed, (following - from_step) / (now - then))
    left = (steps - min(step + speed * (now - last), following)) / speed
  return Status(name, state, step, steps, **known, seconds_left=left, speed=speed, since=since)
