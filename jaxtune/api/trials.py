"""Trains the trials of a sweep, program after program."""

from __future__ import annotations

import functools
import json
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxtune import config as configs_
from jaxtune import data, hosts, schema
from jaxtune.api import under_way
from jaxtune.errors import UserError
from jaxtune.evaluation import compare, rewards
from jaxtune.files import remove, write_atomically
from jaxtune.models import hf
from jaxtune.preflight import checks, cost, gradients, targets
from jaxtune.runs import baseline, identity, locks, reference, results
from jaxtune.runs import group as training
from jaxtune.runs.folder import begin
from jaxtune.runs.trial import Trial, aligned, prepare, with_config
from jaxtune.sweeps import groups
from jaxtune.sweeps.collect import FAILED
from jaxtune.training import checkpoint


class Groups(NamedTuple):
  """The trials of a stage and their compiled programs.

  Attributes:
    trials: all of the stage.
    folders: where each one's result goes, SWEEP/KIND/NAME.
    members: the numbers of the trials of each program.
    untuned: (numbers of trials) -> what the untuned base scores on the data of each.
  """

  trials: list[Trial]
  folders: list[Path]
  members: list[list[int]]
  untuned: Callable[[Sequence[int]], list[compare.Untuned]]


def grouped(trials: list[Trial], folders: list[Path]) -> Groups:
  """Finds the groups of trials; nothing is computed yet."""
  members = groups.groups([trial.config for trial in trials])
  return Groups(trials, folders, members, _untuned(trials, members))


def train(stage: Groups, numbers: Sequence[int] | None = None) -> None:
  """Trains what is not done yet of these groups, by default of all.

  A trial that fails is recorded in its folder's failed.json, and stops no other. The next call
  tries it again. Of several processes it ends all, as the others may not fail with it.

  Raises:
    UserError: for a mistake that is found before a group is trained; see `waiting`.
  """
  chosen = range(len(stage.members)) if numbers is None else numbers
  left = {number: waiting(stage, stage.members[number]) for number in chosen}
  hosts.wait("what is left")  # before any process trains, and so makes checkpoints
  # Each distinct method is tried for one step, before any is trained.
  for number in [n for n, parts in left.items() if parts and _learns(stage, sum(parts, []))]:
    members = stage.members[number]
    first = stage.folders[members[0]]
    with locks.of_group(first):
      # Another process may have trained it meanwhile; those of one run have the same lock.
      for group in left[number] if hosts.several() else waiting(stage, members):
        print(
          f"program {number + 1} of {len(stage.members)}: {len(group)} trials, {first.name} ..."
        )
        _train_program(stage, group)


def waiting(stage: Groups, group: list[int]) -> list[list[int]]:
  """Returns the trials of a group that are to be trained, in lists of those trained together.

  Those that were under way go on together from their checkpoint, also where some are done by now.
  Of the others, only the trials that are not done are trained. Where trials may leave early they
  are trained alone if those before were, as none of these has been compared.

  Raises:
    UserError: where those that are done may have left early, so that the others would be compared
      without them; also as `finished`.
  """
  trials, folders = [stage.trials[i] for i in group], [stage.folders[i] for i in group]
  configs, workdir = [trial.config for trial in trials], folders[0].parents[1]
  # Asked first: another process that trains the group removes it once all are done.
  whole = under_way.checkpoints(configs, workdir).exists()
  parts = {} if whole else under_way.found(configs, workdir)
  begun = [[group[e] for e in some] for some in parts.values()]
  done = [f for f, trial in zip(folders, trials, strict=True) if finished(f, trial)]
  if whole:
    return [group]
  left = [i for i in group if stage.folders[i] not in done and i not in sum(begun, [])]
  if left and (begun or done) and configs[0]["search"]["early_exit"] is not None:
    check_joining(configs[0], folders)
    return [*begun, *([i] for i in left)]
  return [*begun, left] if left else begun


def check_joining(config: dict, folders: list[Path]) -> None:
  """Raises UserError where trials of a group would be compared without those that are done.

  Args:
    config: of one of its trials, whose learning rate may be open.
    folders: of all of them, none of which is under way.
  """
  done = [folder for folder in folders if (folder / "result.json").exists()]
  left = [folder for folder in folders if folder not in done]
  if config["search"]["early_exit"] is None or not left:
    return
  if any(results.read(folder).get("trials_in_program") != 1 for folder in done):
    raise UserError(
      f"{left[0]} is to be trained, but {len(done)} other trials of its program are done, and "
      "search.early_exit compares all trials of a program: give another --workdir, or delete the "
      f"folders of these {len(done)}, such as {done[0]}, to train all again"
    )


def _learns(stage: Groups, group: list[int]) -> bool:
  """Says whether a step of each distinct method of a group can be made; records failures.

  Raises:
    UserError: see `gradients.check`.
  """
  methods = {str(stage.trials[i].config["method"]): stage.trials[i] for i in reversed(group)}
  try:
    gradients.check(list(methods.values()))
  except Exception as error:
    if _ends_sweep(error):
      raise
    _record([stage.folders[i] for i in group], error)
    return False
  return True


def _train_program(stage: Groups, group: list[int]) -> None:
  """Trains trials together, after what is computed once for all of them."""
  folders = [stage.folders[i] for i in group]
  for folder in folders if hosts.primary() else ():
    remove(folder / FAILED)  # of a call before: now it is tried again
  try:
    members = cost.with_remat([stage.trials[i] for i in group])
    print(targets.describe(members[0]))
    chunk, bases = hosts.of_first(cost.choose_chunk(members)), stage.untuned(group)
  except Exception as error:
    if _ends_sweep(error):
      raise
    _record(folders, error)
  else:
    _train_group(members, folders, bases, chunk)


def _ends_sweep(error: Exception) -> bool:
  """Says whether no other trial goes on: of a mistake, but not of a reward that fails to judge.

  One of several processes may be alone with its error, while the others wait for its part of what
  they compute together: its end tells them.
  """
  return hosts.several() or isinstance(error, UserError) and not isinstance(error, rewards.Failed)


def _untuned(
  trials: list[Trial], members: list[list[int]]
) -> Callable[[Sequence[int]], list[compare.Untuned]]:
  """Returns (numbers of trials) -> what the untuned base scores on the data of each.

  Data on which a group is the first to need the scores are judged together, once. So what is
  computed together does not depend on which groups are trained here: the scores are the same to the
  last digit.
  """
  keys = [groups.baseline_key(trial.config) for trial in trials]
  firsts: dict[str, tuple[int, int]] = {}  # of each key, the first group and trial that have it
  for number, group in enumerate(members):
    for i in group:
      firsts.setdefault(keys[i], (number, i))

  @functools.cache
  def judge(number: int) -> dict[str, compare.Untuned]:
    new = {key: trials[i] for key, (first, i) in firsts.items() if first == number}
    scores = baseline.evaluate_bases(cost.with_remat(list(new.values())))
    return dict(zip(new, scores, strict=True))

  return lambda group: [judge(firsts[keys[i]][0])[keys[i]] for i in group]


def _train_group(
  trials: list[Trial], folders: list[Path], bases: list[compare.Untuned], chunk: int
) -> None:
  """Trains a group; if it fails, with fewer trials side by side, and then each trial alone.

  Where a reward fails, which the trials share, the next call goes on from the group's checkpoint.
  """
  saved = under_way.checkpoints([trial.config for trial in trials], folders[0].parents[1])
  try:
    training.train(trials, folders, bases, saved, chunk)
  except Exception as error:
    if _ends_sweep(error):
      raise
    if len(trials) == 1 or isinstance(error, rewards.Failed):
      _record(folders, error)
      return
    reason = _reason(error)
  else:
    if hosts.primary():
      remove(saved)
    return
  # The error is gone now, and with it the arrays of the failed program, which its traceback had.
  smaller = chunk // 2 if "RESOURCE_EXHAUSTED" in reason else 0
  how = f"{smaller} at a time" if smaller else "one by one"
  said = f"{len(trials)} trials failed together ({reason}); they are tried {how}"
  print(said, file=sys.stderr)
  parts = [slice(None)] if smaller else [slice(e, e + 1) for e in range(len(trials))]
  if not smaller:
    remove(saved)  # else the next call would go on with the group
    begin(folders, [trial.config for trial in trials])  # so that each is known to be tried alone
  for part in parts:
    _train_group(trials[part], folders[part], bases[part], smaller or 1)


def _record(folders: list[Path], error: Exception) -> None:
  """Records an error as the failure of trials."""
  for folder in folders:
    record_failure(folder, _reason(error))


def _reason(error: Exception) -> str:
  return f"{type(error).__name__}: {error}".splitlines()[0][:300]


def record_failure(folder: Path, reason: str) -> None:
  """Writes why a trial failed, with its traceback."""
  print(f"{folder.name} failed ({reason}); the other trials go on", file=sys.stderr)
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
  checks.check_seeds(configs)
  members = groups.groups(configs)
  for group in members:
    checks.check_losses([configs[i] for i in group])
  checks.warn(configs)
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
  trials = aligned(trials, members)
  return reference.added(trials) if load_one is None else trials


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
  old = {
    "config": [trained(folder)],
    "base": result.get("base_fingerprint"),
    "data set": [data.identity(result.get("data", {}))],
    "start or reward": [result.get("sources")],
  }
  if "base_config" in result:  # older versions wrote none
    old[identity.CONFIG] = result["base_config"]
  checkpoint.check_same(f"{folder} holds the result", old, identity.of([trial]))
  return True


def trained(folder: Path) -> dict:
  """Reads the config of a finished trial, without what says where it ran."""
  return configs_.as_now(schema.read_json(folder / "config.json"))
