"""A sweep: every trial of a grid, in as few compiled programs as possible, and its report."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import jax

from jaxtune import config as configs_
from jaxtune import hosts, libraries
from jaxtune.api import trials
from jaxtune.errors import UserError
from jaxtune.files import write_atomically
from jaxtune.preflight import checks
from jaxtune.runs import compilations, group, locks, results
from jaxtune.runs.trial import Trial, with_config
from jaxtune.sweeps import collect, grid, stats, table, tuning

report = libraries.Lazy("jaxtune.sweeps.report")  # which draws with matplotlib

MOST_TRIALS = 1000  # more have to be confirmed


def sweep(
  config: Any, workdir: str | Path, metric: str | None = None, most_trials: int = MOST_TRIALS
) -> list[dict]:
  """Trains every trial of `config.sweep` and writes its report; see `sweeps.report`.

  Args:
    config: as for `fit`, with a `sweep`: a tuple of grids {axis: values}.
    workdir: the sweep's folder.
    metric: what results are sorted by; default the test loss.
    most_trials: how many trials the sweep may have; a larger one is refused before it starts.

  Returns:
    Each trial's result, best first, with its "folder".
  """
  with locks.held(workdir, "sweep"):
    return _run(config, Path(workdir), metric, most_trials)


def _run(config: Any, workdir: Path, metric: str | None, most_trials: int) -> list[dict]:
  names, settings, configs = expand(config, most_trials)
  compilations.keep(configs[0]["train"]["compilation_cache"])
  folders, loaded = [workdir / "trials" / name for name in names], trials.load(configs)
  group.check_same(loaded)
  if metric is not None:
    checks.check_metric(metric, loaded[0])
  rates = [tuning.rates_of(_overridden(config, setting)) for setting in settings]
  for folder, trial, some in zip(folders, loaded, rates, strict=True):
    if not some:
      trials.finished(folder, trial)  # raises where it is another one, before anything is written
  write_atomically(workdir / "config.json", configs_.to_json(configs_.to_dict(config)))
  if any(rates):
    settings, loaded = _tuned(settings, loaded, rates, workdir)
  notes = {"compiled programs": trials.train(loaded, folders)}
  outcomes, failed = collect.read(workdir, names, settings, configs)
  if not outcomes:
    said = failed[0]["detail"]
    raise UserError(f"all {len(failed)} trials of {workdir} failed, the first one with {said}")
  if failed:
    said = f"{len(failed)} of {len(folders)} trials failed: see their {collect.FAILED}"
    print(said, file=sys.stderr)
  if hosts.primary():
    shared = configs_.complete(tuning.stated(_overridden(config, {})))
    report.write(
      outcomes,
      workdir,
      metric=metric,
      config=shared,
      notes=notes,
      given={workdir.absolute().name: configs_.to_dict(config)},
      unfinished=failed,
    )
  hosts.wait("report")
  metric = table.choose_metric(outcomes, metric)
  single = [stats.Row(outcome["trial"], {}, (outcome,)) for outcome in outcomes]
  return [row.results[0] for row in stats.best_first(single, metric)]


def _tuned(
  settings: list[dict], loaded: list[Trial], rates: list[list[float]], workdir: Path
) -> tuple[list[dict], list[Trial]]:
  """Trains what the choice of open learning rates needs; returns settings and trials with them.

  Writes tuning.json, {name of a configuration: its `tuning.Curve`}.
  """
  plain = lambda setting: {k: v for k, v in setting.items() if k not in ("seed", tuning.PATH)}
  named = [grid.name(plain(setting), list(settings[0])) for setting in settings]
  needed, folders = {}, {}
  for name, trial, some in zip(named, loaded, rates, strict=True):
    if some and name not in needed:
      without_test = trial._replace(dataset=trial.dataset._replace(test=None))
      configs = tuning.trials(trial.config, some, trial.config["search"]["tune_seeds"])
      needed[name] = [with_config(without_test, config) for config in configs]
      folders[name] = [workdir / "tuning" / f"{name},{tuning.label(config)}" for config in configs]
  trials.train(sum(needed.values(), []), sum(folders.values(), []))
  curves, chosen = {}, []
  for name, some in zip(named, rates, strict=True):
    if some and name not in curves:
      curves[name] = tuning.choose(some, [_validation_loss(folder) for folder in folders[name]])
    chosen.append({tuning.PATH: curves[name].chosen} if some else {})
  written = {name: {**curve._asdict(), "at_edge": curve.at_edge} for name, curve in curves.items()}
  write_atomically(workdir / "tuning.json", json.dumps(written, indent=2))
  tuned = [
    with_config(trial, tuning.with_rate(trial.config, new[tuning.PATH])) if new else trial
    for trial, new in zip(loaded, chosen, strict=True)
  ]
  return [setting | new for setting, new in zip(settings, chosen, strict=True)], tuned


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
    completed = configs_.complete(tuning.stated(full))
    # 1.0 and 1 are equal keys.
    key = (*rates, *jax.tree.leaves_with_path(completed, is_leaf=lambda x: x is None))
    if key in distinct:
      print(f"{name} is the same trial as {distinct[key][0]}: it is run, and counted, once")
    distinct.setdefault(key, (name, setting, completed))
  return tuple(map(list, zip(*distinct.values(), strict=True)))


def _overridden(config: Any, setting: dict) -> dict:
  """Returns a config with a trial's settings, neither completed nor checked."""
  plain = {key: value for key, value in configs_.to_dict(config).items() if key != "sweep"}
  return configs_.override(plain, setting).to_dict()
