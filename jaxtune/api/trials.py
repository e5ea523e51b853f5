"""Trains the trials of a sweep, program after program."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jaxtune import config as configs_
from jaxtune import data, hosts, schema
from jaxtune.errors import UserError
from jaxtune.evaluation import compare
from jaxtune.files import write_atomically
from jaxtune.models import hf
from jaxtune.preflight import checks, cost, gradients, targets
from jaxtune.runs import baseline, reference, results
from jaxtune.runs import group as training
from jaxtune.runs.trial import Trial, prepare, with_config
from jaxtune.sweeps import groups
from jaxtune.sweeps.collect import FAILED
from jaxtune.training import checkpoint


def train(trials: list[Trial], folders: list[Path]) -> int:
  """Trains what is not done yet of these trials; returns the number of their programs.

  A trial that fails is recorded in its folder's failed.json, and stops no other. The next call
  tries it again.

  Args:
    folders: of the trials, each SWEEP/KIND/NAME.
  """
  done = [finished(*pair) for pair in zip(folders, trials, strict=True)]
  members, workdir = groups.groups([t.config for t in trials]), folders[0].parents[1]
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
  return len(members)


def _train_groups(waiting: list[list[int]], trials: list[Trial], folders: list[Path]) -> None:
  """Trains group after group, once every distinct method has been tried for one step."""
  left = sorted({i for group in waiting for i in group})
  completed = reference.added([trials[i] for i in left])
  trials = list(trials)
  for i, trial in zip(left, completed, strict=True):
    trials[i] = trial
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
    bases, chunk = [untuned[key] for key in keys], hosts.of_first(cost.choose_chunk(members))
    _train_group(members, member_folders, bases, chunk)


def _train_group(
  trials: list[Trial], folders: list[Path], bases: list[compare.Untuned], chunk: int
) -> None:
  """Trains a group; if it fails, with fewer trials side by side, and then each trial alone."""
  checkpoints = _checkpoints(trials, folders[0].parents[1])
  try:
    training.train(trials, folders, bases, checkpoints, chunk)
  except UserError:
    raise
  except Exception as error:
    if hosts.lost(error):
      raise
    reason = f"{type(error).__name__}: {error}".splitlines()[0][:300]
    if len(trials) == 1:
      _record_failure(folders[0], reason)
    else:
      smaller = chunk // 2 if "RESOURCE_EXHAUSTED" in reason else 0
      how = f"{smaller} at a time" if smaller else "one by one"
      said = f"{len(trials)} trials failed together ({reason}); they are tried {how}"
      print(said, file=sys.stderr)
      parts = [slice(None)] if smaller else [slice(e, e + 1) for e in range(len(trials))]
      for part in parts:
        _train_group(trials[part], folders[part], bases[part], smaller or 1)
    return
  for folder in folders if hosts.primary() else ():
    (folder / FAILED).unlink(missing_ok=True)
  if hosts.primary():
    shutil.rmtree(checkpoints, ignore_errors=True)


def _record_failure(folder: Path, reason: str) -> None:
  """Writes why a trial failed, with its traceback."""
  print(f"{folder.name} failed ({reason}); the other trials go on", file=sys.stderr)
  if hosts.primary():
    said = {"reason": reason, "traceback": traceback.format_exc()}
    write_atomically(folder / FAILED, json.dumps(said, indent=2))


def load(
  configs: list[dict], load_one: Callable | None = None, devices: Sequence[Any] | None = None
) -> list[Trial]:
  """Loads every model and data set that the trials need, once each, and checks every trial.

  Args:
    load_one: (config, model of another trial or None) -> a trial; default `trial.prepare`.
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
      loaded[key] = (load_one or prepare)(config, models.get(model))
      models[model] = loaded[key].pretrained
    trials.append(with_config(loaded[key], config))
    checks.check(trials[-1])
  datasets = {key: trial.dataset for key, trial in loaded.items()}
  for group in groups.groups(configs):
    keys = list(dict.fromkeys(groups.data_key(configs[i]) for i in group))
    datasets |= zip(keys, data.align([datasets[key] for key in keys]), strict=True)
  return [trial._replace(dataset=datasets[groups.data_key(trial.config)]) for trial in trials]


def finished(folder: Path, trial: Trial) -> bool:
  """Says whether a trial's result is there.

  Raises:
    UserError: where it is that of another configuration, base or data, or a file of it is missing
      or damaged.
  """
  result = results.read(folder)
  if not result:
    return False
  results.check_files(folder, result)
  old = {"config": trained(folder), "base": result.get("base_fingerprint")}
  new = {"config": configs_.unplaced(trial.config), "base": trial.fingerprint}
  old["data set"] = data.identity(result.get("data", {}))
  new["data set"] = data.identity(trial.dataset.report)
  checkpoint.check_same(f"{folder} holds the result", old, new)
  return True


def trained(folder: Path) -> dict:
  """Reads the config of a finished trial, without what says where it ran."""
  found = schema.read_json(folder / "config.json")
  with contextlib.suppress(UserError):  # keys that are newer than the result had their defaults
    found = json.loads(json.dumps(configs_.complete(found), default=str))
  return configs_.unplaced(found)


def _checkpoints(trials: list[Trial], workdir: Path) -> Path:
  """Names the folder of a group's checkpoints after its configs."""
  identity = [configs_.unplaced(trial.config) for trial in trials]
  identity = json.dumps(identity, sort_keys=True, default=str).encode()
  return workdir / "groups" / hashlib.sha256(identity).hexdigest()[:16]
