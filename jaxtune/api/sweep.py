"""A sweep: every trial of a grid, in as few compiled programs as possible, and its report."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import jax

from jaxtune import config as configs_
from jaxtune import hosts, libraries, schema
from jaxtune.api import matched, trials
from jaxtune.errors import UserError
from jaxtune.files import write_atomically
from jaxtune.preflight import checks
from jaxtune.runs import compilations, group, locks, results
from jaxtune.runs.trial import Trial, with_config
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
  during: AbstractContextManager | None = None,
) -> list[dict]:
  """Trains every trial of `config.sweep` and writes its report; see `sweeps.report`.

  Args:
    config: as for `fit`, with a `sweep`: a tuple of grids {axis: values}.
    workdir: the sweep's folder.
    metric: what results are sorted by; default the test loss.
    most_trials: how many trials the sweep may have; a larger one is refused before it starts.
    notes: further facts for the report, {name: value}. They stay in the folder, as notes.json.
    during: is entered while trials train; see `follow`.

  Returns:
    Each trial's result, best first, with its "folder".
  """
  with locks.held(workdir, "sweep"):
    return _run(config, Path(workdir), metric, most_trials, notes, during or nullcontext())


def _run(
  config: Any,
  workdir: Path,
  metric: str | None,
  most_trials: int,
  notes: Mapping | None,
  during: AbstractContextManager,
) -> list[dict]:
  found = matched.match(config, workdir)
  config, notes = found.config, (notes or {}) | found.notes or None
  names, settings, configs = expand(config, most_trials)
  compilations.keep(configs[0]["train"]["compilation_cache"])
  folders, loaded = [workdir / "trials" / name for name in names], trials.load(configs)
  group.check_same(loaded)
  if metric is not None:
    checks.check_metric(metric, loaded[0])
  rates = open_rates(config, settings)
  choices = _choices(settings, loaded, rates, workdir)
  stated = {folder: trial for choice in choices.values() for folder, trial in choice.items()}
  stated |= {folders[i]: loaded[i] for i, some in enumerate(rates) if not some}
  _check_folders(stated, folders)  # before anything is written
  _begin(workdir, config, notes)
  matched.keep(found, workdir)
  notes = read_notes(workdir)
  with during:
    settings, loaded = _tuned(settings, loaded, rates, choices, workdir)
    notes = {"compiled programs": trials.train(loaded, folders), **notes}
  outcomes, failed = collect.read(workdir, names, settings, configs)
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


def _say_failed(outcomes: list[dict], failed: list[dict], workdir: Path) -> None:
  """Prints how many trials failed; raises UserError if all did."""
  if not outcomes:
    said = failed[0]["detail"]
    raise UserError(f"all {len(failed)} trials of {workdir} failed, the first one with {said}")
  if failed:
    said = f"{len(failed)} of {len(outcomes + failed)} trials failed: see their {collect.FAILED}"
    print(said, file=sys.stderr)


def shared(config: Any) -> dict:
  """Returns the completed config that all trials of a sweep start from."""
  return configs_.complete(tuning.stated(_overridden(config, {})))


def _begin(workdir: Path, config: Any, notes: Mapping[str, str] | None) -> None:
  """Writes what a sweep is."""
  write_atomically(workdir / "config.json", configs_.to_json(configs_.to_dict(config)))
  if notes is not None:
    write_atomically(workdir / NOTES, json.dumps(notes, indent=2, ensure_ascii=False))


def open_rates(config: Any, settings: list[dict]) -> list[list[float]]:
  """Returns for each trial the learning rates from which its own is to be chosen; [] for none."""
  return [tuning.rates_of(_overridden(config, setting)) for setting in settings]


def configurations(settings: list[dict]) -> list[str]:
  """Names each trial's configuration, for which one learning rate is chosen."""
  axes = list(dict.fromkeys(axis for setting in settings for axis in setting))
  plain = lambda setting: {k: v for k, v in setting.items() if k not in ("seed", tuning.PATH)}
  return [grid.name(plain(setting), axes) for setting in settings]


def _choices(
  settings: list[dict], loaded: list[Trial], rates: list[list[float]], workdir: Path
) -> dict[str, dict[Path, Trial]]:
  """Returns {configuration: {folder: trial}} of the trials by which open rates are chosen."""
  found: dict[str, dict[Path, Trial]] = {}
  lists: dict[str, list[float]] = {}
  for name, trial, some in zip(configurations(settings), loaded, rates, strict=True):
    if some and lists.setdefault(name, some) != some:
      raise UserError(f"{tuning.PATH} of {name} is chosen from {lists[name]} and {some}: give one")
    if not some or name in found:
      continue
    if trial.dataset.validation is None:
      raise UserError(f"{tuning.PATH} is chosen on a validation split: give data.validation")
    without_test = trial._replace(dataset=trial.dataset._replace(test=None))
    configs = tuning.trials(trial.config, some, trial.config["search"]["tune_seeds"])
    found[name] = {
      workdir / "tuning" / f"{name},{tuning.label(config)}": with_config(without_test, config)
      for config in configs
    }
  return found


def _check_folders(stated: dict[Path, Trial], folders: list[Path]) -> None:
  """Raises UserError if folders of trials, finished or under way, are those of another sweep.

  Args:
    stated: {folder: trial} of the trials whose configs are known.
    folders: of all trials; the learning rate of some may not be chosen yet.
  """
  for folder, trial in stated.items():
    trials.finished(folder, trial)
  for place in sorted({folder.parent for folder in (*stated, *folders)}):
    for path in sorted(place.glob("*/config.json")):
      folder = path.parent
      if any((folder / name).exists() for name in ("result.json", trials.FAILED)):
        continue
      if folder not in stated and folder not in folders:
        raise UserError(
          f"{place.parent} holds an unfinished sweep, whose trial {folder.name} this one does not "
          f"have: go on with its config, give another --workdir, or remove {folder}"
        )
      if folder in stated:
        old = schema.read_json(path, dict, f"put it back, or delete {folder} to start it again")
        old = json.loads(json.dumps(configs_.complete(old), default=str))
        old, new = map(configs_.unplaced, (old, stated[folder].config))
        checkpoint.check_same(f"{folder} is an unfinished trial", {"config": old}, {"config": new})


def _tuned(
  settings: list[dict],
  loaded: list[Trial],
  rates: list[list[float]],
  choices: dict[str, dict[Path, Trial]],
  workdir: Path,
) -> tuple[list[dict], list[Trial]]:
  """Trains what the choice of open learning rates needs; returns settings and trials with them.

  Writes tuning.json, {name of a configuration: its `tuning.Curve`}, if any are open.
  """
  if not choices:
    return settings, loaded
  needed = {folder: trial for choice in choices.values() for folder, trial in choice.items()}
  trials.train(list(needed.values()), list(needed))
  curves, chosen = {}, []
  for name, some in zip(configurations(settings), rates, strict=True):
    if some and name not in curves:
      curves[name] = tuning.choose(some, [_validation_loss(folder) for folder in choices[name]])
    chosen.append({tuning.PATH: curves[name].chosen} if some else {})
  written = {name: {**curve._asdict(), "at_edge": curve.at_edge} for name, curve in curves.items()}
  write_atomically(workdir / "tuning.json", json.dumps(written, indent=2))
  tuned = [
    with_config(trial, tuning.with_rate(trial.config, new[tuning.PATH])) if new else trial
    for trial, new in zip(loaded, chosen, strict=True)
  ]
  return [setting | new for setting, new in zip(settings, chosen, strict=True)], tuned


def read_notes(workdir: Path) -> dict[str, str]:
  """Reads the notes that a sweep was started with; {} if there are none."""
  path = workdir / NOTES
  return schema.read_json(path, dict[str, str], "delete it") if path.exists() else {}


def _validation_loss(folder: Path) -> float | None:
  """Reads a trial's validation loss; None where the trial failed or diverged."""
  result = results.read(folder)
  return None if not result or results.diverged(result) else result["final"]["validation_loss"]


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
  distinct: dict[tuple, tuple[str, dict, dict]] = {}
  for setting in settings:
    full = _overridden(config, setting)
    rates, name = tuning.rates_of(full), grid.name(tuning.named(setting), axes)
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
