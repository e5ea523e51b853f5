"""Where the groups of a sweep are trained: in this process, on a Ray cluster, as a SLURM array.

A launcher is a context manager. With a sweep's plan and folder it loads and checks what it needs,
and yields a function that trains a stage. It writes nothing before that is called. `here` is the
launcher of one process. The others call `load` and `grouped` in other processes, group by group, so
that all write the same files.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from jaxtune.api import stages, trials
from jaxtune.errors import UserError
from jaxtune.preflight import judging
from jaxtune.runs import compilations, identity
from jaxtune.runs.trial import Trial
from jaxtune.sweeps import groups, tuning

Launcher = Callable[[stages.Plan, Path], AbstractContextManager[Callable[[stages.Stage], None]]]


class Elsewhere(Exception):
  """Says that a sweep goes on without this process, and what is to be done for that."""


@contextlib.contextmanager
def here(plan: stages.Plan, workdir: Path) -> Iterator[Callable[[stages.Stage], None]]:
  """Trains in this process, group after group."""
  loaded = load(plan, workdir)
  yield lambda stage: trials.train(grouped(stage, loaded, workdir))


def load(plan: stages.Plan, workdir: Path) -> list[Trial]:
  """Loads the models and the data of all trials, and checks them beside what the folder holds.

  Raises:
    UserError: for what cannot work, for results of another config, base or data, damaged ones, or
      those that the trials which are left cannot be compared with; see `trials.waiting`.
  """
  identity.check_configs([*plan.configs, *plan.tuning.configs])
  compilations.keep(plan.configs[0]["train"]["compilation_cache"])
  loaded = trials.load(plan.loads)
  identity.check_same(loaded)
  if plan.metric is not None:
    judging.check_metric(plan.metric, loaded[0])
  if any(loaded[i].dataset.validation is None for i in plan.tuning.sources):
    raise UserError(f"{tuning.PATH} is chosen on a validation split: give data.validation")
  if any(plan.rates) and not any(workdir.glob("groups/*")):  # else some may be under way
    for members in groups.groups(plan.configs):
      folders = [workdir / "trials" / plan.names[i] for i in members]
      trials.check_joining(plan.configs[members[0]], folders)
  for stage in (grouped(one, loaded, workdir) for one in plan.stated()):
    if any(plan.rates):  # trials of its groups may be missing, until their rate is chosen
      for folder, trial in zip(stage.folders, stage.trials, strict=True):
        trials.finished(folder, trial)
    else:
      for members in stage.members:
        trials.waiting(stage, members)
  return loaded


def grouped(stage: stages.Stage, loaded: Sequence[Trial], workdir: Path) -> trials.Groups:
  """Returns the groups of a stage, given all trials of the sweep."""
  return trials.grouped(stages.trials_of(stage, loaded), stage.folders(workdir))
