"""A sweep: every trial of a grid, in as few compiled programs as possible, and its report."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from jaxtune import config as configs_
from jaxtune import data, hosts, libraries, schema
from jaxtune.errors import UserError
from jaxtune.evaluation import compare
from jaxtune.files import write_atomically
from jaxtune.models import hf
from jaxtune.preflight import checks, cost, gradients, targets
from jaxtune.runs import baseline, compilations, locks, results
from jaxtune.runs import group as training
from jaxtune.runs.trial import Trial, prepare, with_config
from jaxtune.sweeps import grid, groups, stats, table
from jaxtune.training import checkpoint

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
  folders, trials = [workdir / "trials" / name for name in names], load(configs, prepare)
  training.check_same(trials)
  done = [_done(*pair) for pair in zip(folders, trials, strict=True)]
  if metric is not None:
    checks.check_metric(metric, trials[0])
  write_atomically(workdir / "config.json", configs_.to_json(configs_.to_dict(config)))
  members = groups.groups(configs)
  # A group that was under way goes on as a whole from its checkpoint. Of any other group, only the
  # trials that are not done are run.
  waiting = [
    group
    if _checkpoints([trials[i] for i in group], workdir).exists()
    else [i for i in group if not done[i]]
    for group in members
  ]
  hosts.wait("what is left")  # before any process trains, and so makes checkpoints
  _train_groups(waiting, trials, folders)
  outcomes = [
    results.read(folder) | {"trial": name, "settings": setting, "folder": str(folder)}
    for folder, name, setting in zip(folders, names, settings, strict=True)
  ]
  shared, notes = configs_.complete(config), {"compiled programs": len(members)}
  if hosts.primary():
    report.write(outcomes, workdir, metric=metric, config=shared, notes=notes)
  hosts.wait("report")
  metric = table.choose_metric(outcomes, metric)
  single = [stats.Row(outcome["trial"], {}, (outcome,)) for outcome in outcomes]
  return [row.results[0] for row in stats.best_first(single, metric)]


def _train_groups(waiting: list[list[int]], trials: list[Trial], folders: list[Path]) -> None:
  """Trains group after group, once every distinct method has been tried for one step."""
  for group in waiting:
    if distinct := {str(trials[i].config["method"]): trials[i] for i in reversed(group)}:
      gradients.check(list(distinct.values()))
  untuned: dict[str, compare.Untuned] = {}
  for number, group in enumerate(waiting, 1):
    if not group:
      continue
    members = cost.with_remat([trials[i] for i in group])
    member_folders = [folders[i] for i in group]
    name = member_folders[0].name
    print(f"program {number} of {len(waiting)}: {len(group)} trials, {name} ...")
    print(targets.describe(members[0]))
    keys = [groups.baseline_key(trial.config) for trial in members]
    pairs = zip(reversed(keys), reversed(members), strict=True)
    new = {key: trial for key, trial in pairs if key not in untuned}
    if new:
      untuned |= zip(new, baseline.evaluate_bases(list(new.values())), strict=True)
    checkpoints = _checkpoints(members, member_folders[0].parents[1])
    bases, chunk = [untuned[key] for key in keys], hosts.of_first(cost.choose_chunk(members))
    training.train(members, member_folders, bases, checkpoints, chunk)
    if hosts.primary():
      shutil.rmtree(checkpoints, ignore_errors=True)


def expand(config: Any, most_trials: int = MOST_TRIALS) -> tuple[list[str], list[dict], list[dict]]:
  """Returns the names, settings and completed configs of all trials, checked.

  Settings that complete to the same config are one trial, that of the first of them.

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
  plain = {key: value for key, value in configs_.to_dict(config).items() if key != "sweep"}
  axes = list(dict.fromkeys(axis for setting in settings for axis in setting))
  distinct: dict[tuple, tuple[str, dict, dict]] = {}
  for setting in settings:
    name = grid.name(setting, axes)
    completed = configs_.complete(configs_.override(plain, setting))
    # 1.0 and 1 are equal keys.
    key = tuple(jax.tree.leaves_with_path(completed, is_leaf=lambda x: x is None))
    if key in distinct:
      print(f"{name} is the same trial as {distinct[key][0]}: it is run, and counted, once")
    distinct.setdefault(key, (name, setting, completed))
  return tuple(map(list, zip(*distinct.values(), strict=True)))


def load(
  configs: list[dict], load_one: Callable, devices: Sequence[Any] | None = None
) -> list[Trial]:
  """Loads every model and data set that the trials need, once each, and checks every trial.

  Args:
    load_one: (config, model of another trial or None) -> a trial, as `trial.prepare`.
    devices: those of another machine; see `checks.check_options`.
  """
  for config in configs:
    checks.check_options(config, devices)
  loaded: dict[str, Trial] = {}
  models: dict[str, hf.Pretrained] = {}
  trials = []
  for config in configs:
    key, model = groups.data_key(config), groups.model_key(config)
    if key not in loaded:
      loaded[key] = load_one(config, models.get(model))
      models[model] = loaded[key].pretrained
    trials.append(with_config(loaded[key], config))
    checks.check(trials[-1])
  datasets = {key: trial.dataset for key, trial in loaded.items()}
  for group in groups.groups(configs):
    keys = list(dict.fromkeys(groups.data_key(configs[i]) for i in group))
    datasets |= zip(keys, data.align([datasets[key] for key in keys]), strict=True)
  return [trial._replace(dataset=datasets[groups.data_key(trial.config)]) for trial in trials]


def _done(folder: Path, trial: Trial) -> bool:
  """Says whether a trial's result is there.

  Raises:
    UserError: where it is that of another configuration, base or data, or a file of it is missing
      or damaged.
  """
  result = results.read(folder)
  if not result:
    return False
  results.check_files(folder, result)
  found = schema.read_json(folder / "config.json")
  with contextlib.suppress(UserError):  # keys that are newer than the result had their defaults
    found = json.loads(json.dumps(configs_.complete(found), default=str))
  old = {"config": configs_.unplaced(found), "base": result.get("base_fingerprint")}
  new = {"config": configs_.unplaced(trial.config), "base": trial.fingerprint}
  old["data set"] = data.identity(result.get("data", {}))
  new["data set"] = data.identity(trial.dataset.report)
  checkpoint.check_same(f"{folder} holds the result", old, new)
  return True


def _checkpoints(trials: list[Trial], workdir: Path) -> Path:
  """Names the folder of a group's checkpoints after its configs."""
  identity = [configs_.unplaced(trial.config) for trial in trials]
  identity = json.dumps(identity, sort_keys=True, default=str).encode()
  return workdir / "groups" / hashlib.sha256(identity).hexdigest()[:16]
