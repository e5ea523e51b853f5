"""A sweep: every trial of a grid, in as few compiled programs as possible, and its report."""

from __future__ import annotations

import functools
import json
import shutil
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import jax

from jaxtune import config as configs_
from jaxtune import hosts, libraries, schema
from jaxtune.api import launch, matched, stages
from jaxtune.errors import UserError
from jaxtune.files import write_atomically
from jaxtune.runs import locks
from jaxtune.sweeps import analysed, collect, grid, stats, table, tuning
from jaxtune.training import checkpoint

report = libraries.Lazy("jaxtune.sweeps.report")  # which draws with matplotlib

MOST_TRIALS = 1000  # more have to be confirmed
NOTES = "notes.json"


def sweep(
  config: Any,
  workdir: str | Path,
  metric: str | None = None,
  most_trials: int = MOST_TRIALS,
  notes: Mapping[str, str] | None = None,
  launcher: launch.Launcher = launch.here,
  *,
  during: AbstractContextManager | None = None,
) -> list[dict]:
  """Trains every trial of `config.sweep` and writes its report; see `sweeps.report`.

  Args:
    config: as for `fit`, with a `sweep`: a tuple of grids {axis: values}.
    workdir: the sweep's folder.
    metric: what results are sorted by; default the test loss, else that of validation.
    most_trials: how many trials the sweep may have; a larger one is refused before it starts.
    notes: further facts for the report, {name: value}. They stay in the folder, as notes.json.
    launcher: where trials are trained: in this process, or with `jaxtune.on_ray()` on a cluster.
    during: is entered while trials train; see `follow`.

  Returns:
    Each trial's result, best first, with its "folder".
  """
  checkpoint.check_folder(workdir)
  with locks.held(workdir, "sweep"):
    known = {"launcher": launcher, "during": during or nullcontext()}
    return _run(config, Path(workdir), metric, most_trials, notes, **known)


def _run(
  config: Any,
  workdir: Path,
  metric: str | None,
  most_trials: int,
  notes: Mapping | None,
  *,
  launcher: launch.Launcher,
  during: AbstractContextManager,
) -> list[dict]:
  found = matched.match(config, workdir)
  config, notes = found.config, (notes or {}) | found.notes or None
  plan = plan_of(config, metric, most_trials)
  stages.check_folders(plan, workdir)  # before anything is written
  with launcher(plan, workdir) as train:
    _begin(workdir, config, notes)
    matched.keep(found, workdir)
    notes = read_notes(workdir)
    with during:
      curves = _tune(plan, workdir, train)
      settings, final = stages.final(plan, curves)
      stages.check_checkpoints(final, workdir)
      train(final)
  for left in (workdir / "groups").glob(".*") if hosts.primary() else ():  # by kills
    shutil.rmtree(left, ignore_errors=True)  # another process may remove it too
  notes = {"compiled programs": len(final.groups()), **notes}
  outcomes, failed = collect.read(workdir, plan.names, settings, final.configs, plan.rates)
  _say_failed(outcomes, failed, workdir)
  if hosts.primary():
    report.write(
      outcomes, workdir, metric=metric, config=shared(config), notes=notes, unfinished=failed,
      given={workdir.absolute().name: configs_.to_dict(config)}, curves=collect.curves(workdir),
      analysis=analysed.read(workdir),
    )  # fmt: skip
  hosts.wait("report")
  metric = table.choose_metric(outcomes, metric)
  single = [stats.Row(outcome["trial"], {}, (outcome,)) for outcome in outcomes]
  return [row.results[0] for row in stats.best_first(single, metric)]


def plan_of(config: Any, metric: str | None = None, most_trials: int = MOST_TRIALS) -> stages.Plan:
  """Returns what a sweep trains; see `expand` for errors."""
  expanded = expand(config, most_trials)
  return stages.plan(expanded, open_rates(config, expanded[1]), metric)


def _say_failed(outcomes: list[dict], failed: list[dict], workdir: Path) -> None:
  """Prints how many trials failed; raises UserError if all did."""
  if not outcomes:
    said = failed[0]["detail"]
    raise UserError(f"all {len(failed)} trials of {workdir} failed, the first one with {said}")
  if failed:
    said = f"{len(failed)} of {len(outcomes + failed)} trials failed: see their {collect.FAILED}"
    print(said, file=sys.stderr)


def shared(config: Any) -> dict:
  """Returns the completed config that all trials of a sweep start from.

  Where axes alone complete it, such as an axis of data, it is that of the first trial.
  """
  try:
    return configs_.complete(tuning.stated(_overridden(config, {})))
  except UserError:
    first = grid.expand(configs_.to_dict(config)["sweep"])[0]
    return configs_.complete(tuning.stated(_overridden(config, first)))


def _begin(workdir: Path, config: Any, notes: Mapping[str, str] | None) -> None:
  """Writes what a sweep is."""
  write_atomically(workdir / "config.json", configs_.to_json(configs_.to_dict(config)))
  if notes is not None:
    write_atomically(workdir / NOTES, json.dumps(notes, indent=2, ensure_ascii=False))


def open_rates(config: Any, settings: list[dict]) -> list[list[float]]:
  """Returns for each trial the learning rates from which its own is to be chosen; [] for none."""
  return [tuning.rates_of(_overridden(config, setting)) for setting in settings]


def _tune(
  plan: stages.Plan, workdir: Path, train: Callable[[stages.Stage], None]
) -> dict[str, tuning.Curve]:
  """Trains what the choice of open learning rates needs, and returns what was chosen.

  Writes tuning.json, {name of a configuration: its `tuning.Curve`}, if any are open.
  """
  if not plan.tuning.names:
    if hosts.primary():
      (workdir / collect.TUNING).unlink(missing_ok=True)  # of rates that were open before
    return {}
  train(plan.tuning)
  curves = stages.curves(plan, workdir)
  written = {name: {**curve._asdict(), "at_edge": curve.at_edge} for name, curve in curves.items()}
  write_atomically(workdir / collect.TUNING, json.dumps(written, indent=2))
  return curves


def read_notes(workdir: Path) -> dict[str, str]:
  """Reads the notes that a sweep was started with; {} if there are none."""
  path = workdir / NOTES
  return schema.read_json(path, dict[str, str], "delete it") if path.exists() else {}


def expand(config: Any, most_trials: int = MOST_TRIALS) -> tuple[list[str], list[dict], list[dict]]:
  """Returns the names, settings and completed configs of all trials, checked.

  Settings that complete to the same config are one trial, that of the first of them. Where a
  learning rate is to be chosen, the config has the lowest of them.

  Raises:
    UserError: also for more trials than `most_trials`, before they are listed.
  """
  sweep = configs_.to_dict(config).get("sweep")
  if not sweep:
    raise UserError('config.sweep is missing: for example ({"method.rank": [1, 2, 4, 8]},)')
  if (count := grid.count(sweep)) > most_trials:
    raise UserError(
      f"the sweep has {count:,} trials, more than {most_trials:,}: leave values out, or confirm it "
      f"with --most-trials {count}"
    )
  settings = grid.expand(sweep)
  axes = list(dict.fromkeys(axis for setting in settings for axis in setting))
  names = grid.names([tuning.named(setting) for setting in settings], axes)
  distinct: dict[tuple, tuple[str, dict, dict]] = {}
  for name, setting in zip(names, settings, strict=True):
    full = _overridden(config, setting)
    rates = tuning.rates_of(full)
    try:
      completed = configs_.complete(tuning.stated(full))
    except UserError as error:
      raise UserError(f"trial {name}: {error}") from error
    # 1.0 and 1 are equal keys. What changes no result makes no other trial.
    plain = configs_.unplaced(completed)
    key = (*rates, *jax.tree.leaves_with_path(plain, is_leaf=lambda x: x is None))
    if key in distinct:
      print(f"{name} is the same trial as {distinct[key][0]}: it is run, and counted, once")
    distinct.setdefault(key, (name, setting, completed))
  names, settings, completed = map(list, zip(*distinct.values(), strict=True))
  _check_alphas(settings, completed)
  return names, settings, completed


def check_overrides(config: Any, overrides: Mapping[str, Any]) -> None:
  """Raises UserError for an override that changes no trial, as an axis of the sweep replaces it."""
  for key in overrides:
    covers = lambda axis, key=key: key == axis or key.startswith(f"{axis}.")
    found = [[*filter(covers, axes)] for axes in grid.plain(configs_.to_dict(config)["sweep"])]
    if all(found):
      raise UserError(
        f"--config.{key} changes no trial, as the sweep has the axis {found[0][0]!r}: change that, "
        "or leave it out"
      )


def _check_alphas(settings: list[dict], completed: list[dict]) -> None:
  """Raises UserError for an axis that changes no trial: LoRA's alpha where its scale is fixed."""
  for axis in {axis for setting in settings for axis in setting if axis.endswith(".alpha")}:
    path = axis.split(".")[:-1]
    pairs = zip(settings, completed, strict=True)
    methods = [functools.reduce(dict.get, path, full) for setting, full in pairs if axis in setting]
    alphas, scales = ([method.get(key) for method in methods] for key in ("alpha", "scale"))
    if len(set(alphas)) > 1 and None not in scales:
      scale = ".".join([*path, "scale"])
      raise UserError(f"sweep axis {axis!r} changes no trial, as {scale} is fixed: leave one out")


def _overridden(config: Any, setting: dict) -> dict:
  """Returns a config with a trial's settings, neither completed nor checked."""
  plain = {key: value for key, value in configs_.to_dict(config).items() if key != "sweep"}
  return configs_.override(plain, setting).to_dict()
