"""A sweep: every trial of a grid, in as few compiled programs as possible, and its report."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import shutil
from pathlib import Path
from typing import Any

from jaxtune import config as configs_
from jaxtune import data, lazy, metrics, schema
from jaxtune.errors import UserError
from jaxtune.evaluation import compare
from jaxtune.files import write_atomically
from jaxtune.preflight import checks, cost, gradients, targets
from jaxtune.runs import baseline, locks, results
from jaxtune.runs import group as training
from jaxtune.runs.trial import Setup, prepare
from jaxtune.sweeps import grid, groups, stats, table
from jaxtune.training import checkpoint

report = lazy.Module("jaxtune.sweeps.report")  # which draws with matplotlib

MOST_TRIALS = 1000  # more have to be confirmed


def sweep(
  config: Any,
  workdir: str | Path,
  metric: str | None = None,
  most_trials: int = MOST_TRIALS,
) -> list[dict]:
  """Trains every trial of `config.sweep` and writes results.csv, report.md, report.html and plots.

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
  folders = [workdir / "trials" / name for name in names]
  members, setups = groups.groups(configs), _prepare(configs)
  done = [_done(folder, *pair) for folder, *pair in zip(folders, configs, setups, strict=True)]
  if metric is not None:
    checks.check_metric(metric, configs[0], setups[0])
  bases: dict[str, compare.Untuned] = {}
  write_atomically(workdir / "config.json", configs_.to_json(configs_.to_dict(config)))
  going = [_interrupted([configs[i] for i in group], workdir) for group in members]
  waiting = [
    [i for i in group if resumed or not done[i]]
    for group, resumed in zip(members, going, strict=True)
  ]
  for group in waiting:
    for i in {str(configs[i]["method"]): i for i in reversed(group)}.values():
      gradients.check(configs[i], setups[i])
  for number, group in enumerate(waiting, 1):
    if not group:
      continue
    print(f"program {number} of {len(members)}: {len(group)} trials, {names[group[0]]} ...")
    print(targets.describe(configs[group[0]], setups[group[0]]))
    keys = {_judged(configs[i]): i for i in reversed(group)}
    new = {key: i for key, i in keys.items() if key not in bases}
    if new:
      some = [configs[i] for i in new.values()], [setups[i] for i in new.values()]
      bases |= zip(new, baseline.evaluate_bases(*some), strict=True)
    chosen = [(configs[i], folders[i], setups[i], bases[_judged(configs[i])]) for i in group]
    _run_group(*map(list, zip(*chosen, strict=True)), workdir)
  found = [
    results.read(folder) | {"trial": name, "settings": setting, "folder": str(folder)}
    for folder, name, setting in zip(folders, names, settings, strict=True)
  ]
  report.write(
    found,
    workdir,
    metric=metric,
    config=configs_.complete(_without_sweep(config)),
    notes={"compiled programs": len(members)},
  )
  metric = table.choose_metric(found, metric)
  return sorted(found, key=lambda result: _order(result, metric))


def _order(result: dict, metric: str) -> tuple[bool, float]:
  """Sorts the best first, and what diverged or lacks the metric last."""
  value = stats.final(result, metric)
  if value is None or math.isnan(value):
    return True, 0.0
  return False, -value if metrics.higher_is_better(metric) else value


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
  plain = _without_sweep(config)
  axes = list(dict.fromkeys(axis for setting in settings for axis in setting))
  distinct: dict[str, tuple[str, dict, dict]] = {}
  for setting in settings:
    name = grid.name(setting, axes)
    completed = configs_.complete(configs_.override(plain, setting))
    key = json.dumps(_numbers(completed), sort_keys=True, default=str)
    if key in distinct:
      print(f"{name} is the same trial as {distinct[key][0]}: it is run, and counted, once")
    distinct.setdefault(key, (name, setting, completed))
  return tuple(map(list, zip(*distinct.values(), strict=True)))


def _numbers(value: Any) -> Any:
  """Writes 1.0 as 1, so that configs which differ in that alone are equal."""
  if isinstance(value, dict):
    return {key: _numbers(one) for key, one in value.items()}
  if isinstance(value, list | tuple):
    return [_numbers(one) for one in value]
  return int(value) if isinstance(value, float) and value.is_integer() else value


def _prepare(configs: list[dict]) -> list[Setup]:
  """Loads every model and data set that the trials need, once each, and checks every trial."""
  for config in configs:
    checks.check_options(config)
  setups: dict[str, Setup] = {}
  models: dict[str, Any] = {}
  for config in configs:
    key, base = _shared(config), _model(config)
    if key not in setups:
      setups[key] = prepare(config, models.get(base))
      models[base] = setups[key].pretrained
    checks.check(config, setups[key])
  for group in groups.groups(configs):
    keys = list(dict.fromkeys(_shared(configs[i]) for i in group))
    aligned = data.align([setups[key].dataset for key in keys])
    for key, dataset in zip(keys, aligned, strict=True):
      setups[key] = setups[key]._replace(dataset=dataset)
  return [setups[_shared(config)] for config in configs]


def _without_sweep(config: Any) -> dict:
  return {key: value for key, value in configs_.to_dict(config).items() if key != "sweep"}


def _judged(config: dict) -> str:
  """Writes down what decides the untuned base's metrics; the seed draws its demonstrations."""
  data = {key: value for key, value in config["data"].items() if key not in groups.SHARES}
  seed = f"seed {config['seed']}" if config["evaluate"]["shots"] else ""
  return _shared(config | {"data": data}) + seed


def _shared(config: dict) -> str:
  """Writes down what decides the model, the data and the evaluation."""
  sections = {name: config[name] for name in ("data", "evaluate")}
  return _model(config) + json.dumps(sections, sort_keys=True, default=str)


def _model(config: dict) -> str:
  """Writes down what decides the model: its weights, and the seed of what is drawn."""
  sections = {name: config[name] for name in ("model", "objective")}
  if config["model"]["path"] is None:
    sections["seed"] = config["seed"]
  return json.dumps(sections, sort_keys=True, default=str)


def _done(folder: Path, config: dict, setup: Setup) -> bool:
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
  old = {"config": found, "base": result.get("base_fingerprint")}
  new = {"config": config, "base": setup.fingerprint}
  old["data set"] = data.identity(result.get("data", {}))
  new["data set"] = data.identity(setup.dataset.report)
  checkpoint.check_same(f"{folder} holds the result", old, new)
  return True


def _checkpoints(configs: list[dict], workdir: Path) -> Path:
  identity = json.dumps(configs, sort_keys=True, default=str).encode()
  return workdir / "groups" / hashlib.sha256(identity).hexdigest()[:16]


def _interrupted(configs: list[dict], workdir: Path) -> bool:
  """Says whether this very group was under way: then it goes on as a whole from its checkpoint."""
  return _checkpoints(configs, workdir).exists()


def _run_group(configs, folders, setups, bases, workdir: Path) -> None:
  checkpoints = _checkpoints(configs, workdir)
  chunk = cost.choose_chunk(configs, setups[0])
  training.train(configs, folders, setups, bases, checkpoints, chunk)
  shutil.rmtree(checkpoints, ignore_errors=True)
