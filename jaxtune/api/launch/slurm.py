"""Writes the script of a SLURM array, with a task for each compiled program, and is such a task.

The tasks share the sweep's folder. Each locks its own group, so that an array may be submitted
while another one runs.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from jaxtune.api import launch, stages, trials
from jaxtune.errors import UserError
from jaxtune.files import write_atomically
from jaxtune.runs import locks
from jaxtune.sweeps.collect import FAILED

SCRIPT = "slurm.sh"  # in the sweep's folder, beside the folder "slurm" of the tasks' output
MINUTES = 2  # before its time ends, a task is told to save and end
_TEXT = """#!/bin/bash
# Written by `jaxtune sweep --launcher slurm`. Each task trains one compiled program of the sweep,
# from its last checkpoint. When all have ended, the same command says what comes next.
{options}
cd {started} || exit
exec {command} --group {kind}/"$SLURM_ARRAY_TASK_ID"
"""


def on_slurm(
  tasks: int | None = None, resources: Mapping[str, str] | None = None
) -> launch.Launcher:
  """Returns the launcher that writes a script, for the programs that are not trained yet.

  It raises `launch.Elsewhere`, which says how to submit it. Once all programs of a stage are
  trained, the sweep goes on with what comes next.

  Args:
    tasks: how many run at a time; by default as many as SLURM lets.
    resources: what a task takes, {"cpu": "4", "gpu": "1", "memory": "16G", "time": "12:00:00"}.
  """

  @contextlib.contextmanager
  def launcher(plan: stages.Plan, workdir: Path) -> Iterator[Callable[[stages.Stage], None]]:
    def train(stage: stages.Stage) -> None:
      folders, groups = stage.folders(workdir), stage.groups()
      done = [(any((f / name).exists() for name in ("result.json", FAILED))) for f in folders]
      left = [number for number, group in enumerate(groups) if not all(done[i] for i in group)]
      works = lambda number: any(locks.in_use(folders[i]) for i in groups[number])
      idle = [number for number in left if not works(number)]
      if failed := sum((f / FAILED).exists() for f in folders):
        print(
          f"{failed} trials in {workdir}/{stage.kind} failed: remove their {FAILED} to try them",
          file=sys.stderr,
        )
      if not left:
        return
      counts = f"{len(left)} of {len(groups)} programs of {workdir}/{stage.kind} are left"
      if not idle:
        raise launch.Elsewhere(f"{counts}, and all of them are being trained")
      path = write(workdir, stage.kind, idle, tasks, resources or {}, plan.metric)
      raise launch.Elsewhere(
        f"{counts}: submit them with `sbatch {shlex.quote(str(path))}`, and give this command "
        "again when they have ended"
      )

    yield train

  return launcher


def write(
  workdir: Path,
  kind: str,
  numbers: Sequence[int],
  tasks: int | None,
  resources: Mapping[str, str],
  metric: str | None = None,
) -> Path:
  """Writes the script for programs of a stage, by their numbers; returns its path."""
  folder = workdir.absolute()
  (folder / "slurm").mkdir(exist_ok=True)
  together = f"%{tasks}" if tasks else ""
  name = re.sub(r"[^\w.-]", "-", folder.name)
  output = str(folder / "slurm").replace("%", "%%") + f"/{kind}-%a.out"
  options = {
    "job-name": f"jaxtune-{name}",
    "array": ",".join(map(str, numbers)) + together,
    "ntasks": "1",
    "cpus-per-task": resources.get("cpu", "4"),
    "gres": ",".join(f"{kind}:{resources[kind]}" for kind in ("gpu", "tpu") if kind in resources),
    "mem": resources.get("memory"),
    "time": resources.get("time"),
    "signal": f"B:TERM@{60 * MINUTES}",
    "output": shlex.quote(output),
    "open-mode": "append",
  }
  command = [sys.executable, "-m", "jaxtune.main", "sweep", "--config", str(folder / "config.json")]
  command += ["--workdir", str(folder)] + (["--metric", metric] if metric else [])
  text = _TEXT.format(
    options="\n".join(f"#SBATCH --{name}={value}" for name, value in options.items() if value),
    started=shlex.quote(os.getcwd()),
    command=shlex.join(command),
    kind=kind,
  )
  write_atomically(folder / SCRIPT, text)
  return folder / SCRIPT


def train_group(plan: stages.Plan, workdir: Path, group: str) -> None:
  """Trains one program of a sweep that was begun, such as "trials/3"; any number may run at a time.

  Raises:
    UserError: for a program that the sweep does not have, or which another process trains.
  """
  if not (workdir / "config.json").exists():
    raise UserError(
      f"{workdir} holds no sweep here: expected the folder in which --launcher slurm wrote its "
      "script, on a file system that all machines share"
    )
  stages.check_folders(plan, workdir)
  kind, _, number = group.partition("/")
  chosen = {} if kind == "tuning" else stages.curves(plan, workdir)
  stage = plan.tuning if kind == "tuning" else stages.final(plan, chosen)[1]
  count = len(stage.groups())
  if kind != stage.kind or not number.isdecimal() or int(number) >= count:
    raise UserError(f"--group is {group!r}, expected {stage.kind}/0 to {stage.kind}/{count - 1}")
  trials.train(launch.grouped(stage, launch.load(plan, workdir), workdir), [int(number)])
