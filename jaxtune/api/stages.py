"""What a sweep trains, by its config alone: first what chooses learning rates, then its trials."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Literal, NamedTuple

from jaxtune import config as configs_
from jaxtune import files, hosts, schema
from jaxtune.api import under_way
from jaxtune.errors import UserError
from jaxtune.runs import locks, results
from jaxtune.runs.trial import Trial, with_config
from jaxtune.sweeps import collect, grid, groups, tuning
from jaxtune.sweeps.collect import FAILED
from jaxtune.training import checkpoint

# Options on which no comparison depends: how a model is computed, and what is of training alone.
_FREE = {
  "model.remat", "model.unroll", "model.attention", "model.scored_tokens",
  "objective.label_smoothing",
}  # fmt: skip


class Stage(NamedTuple):
  """Trials that need no result of each other.

  Attributes:
    kind: "tuning" for those by which learning rates are chosen, "trials" for those of the sweep.
      It is also the name of the folder that holds theirs.
    names: of their folders.
    configs: completed.
    sources: of each, the number of the config in `Plan.loads` whose model and data it has.
  """

  kind: Literal["tuning", "trials"]
  names: list[str]
  configs: list[dict]
  sources: list[int]

  def folders(self, workdir: Path) -> list[Path]:
    return [workdir / self.kind / name for name in self.names]

  def groups(self) -> list[list[int]]:
    """Returns the trials of each compiled program."""
    return groups.groups(self.configs)


class Plan(NamedTuple):
  """All that a sweep trains.

  Attributes:
    names, settings, configs: of its trials, as `sweep.expand` returns them.
    rates: of each trial, the learning rates from which its own is to be chosen; [] for none.
    tuning: the stage that chooses them; without trials where there are none.
    loads: the configs whose models and data are loaded: those of the trials, and then those of the
      tuning stage whose base is drawn, by their own seed.
    metric: what results are sorted by, or None.
  """

  names: list[str]
  settings: list[dict]
  configs: list[dict]
  rates: list[list[float]]
  tuning: Stage
  loads: list[dict]
  metric: str | None

  def stated(self) -> list[Stage]:
    """Returns the stages as far as all learning rates in them are known from the start."""
    known = [i for i, rates in enumerate(self.rates) if not rates]
    names, configs = ([of[i] for i in known] for of in (self.names, self.configs))
    return [self.tuning, Stage("trials", names, configs, known)]


def plan(
  expanded: tuple[list[str], list[dict], list[dict]], rates: list[list[float]], metric: str | None
) -> Plan:
  """Makes the plan of a sweep.

  Raises:
    UserError: where trials of one configuration state different rates to choose from, or a trial
      has a seed with which its rate is chosen.
  """
  names, settings, configs = expanded
  tuned, loads = Stage("tuning", [], [], []), list(configs)
  _check_seeds([config for config, some in zip(configs, rates, strict=True) if some])
  for name, i in _firsts(settings, rates).items():
    for config in tuning.trials(configs[i], rates[i], configs[i]["search"]["tune_seeds"]):
      drawn = config["model"]["path"] is None
      tuned.names.append(f"{name},{tuning.label(config)}")
      tuned.configs.append(config)
      tuned.sources.append(len(loads) if drawn else i)
      loads += [config] * drawn
  return Plan(names, settings, configs, rates, tuned, loads, metric)


def _check_seeds(configs: list[dict]) -> None:
  """Raises UserError where a rate would be chosen with a seed of the results."""
  for config in configs:
    seed, others = config["seed"], config["search"]["tune_seeds"]
    if len({*others}) < len(others):
      raise UserError(f"search.tune_seeds is {(*others,)}, expected each seed once")
    if seed in others:
      free = 1 + max(*others, *(one["seed"] for one in configs))
      raise UserError(
        f"search.tune_seeds has the seed {seed}, which a trial of the results has too; expected "
        f"seeds that none has, such as {free}"
      )


def _firsts(settings: list[dict], rates: list[list[float]]) -> dict[str, int]:
  """Returns the first trial of each configuration whose learning rate is to be chosen."""
  firsts: dict[str, int] = {}
  for i, (name, some) in enumerate(zip(configurations(settings), rates, strict=True)):
    if some and rates[firsts.setdefault(name, i)] != some:
      raise UserError(
        f"{tuning.PATH} of {name} is chosen from {rates[firsts[name]]} and {some}: give one"
      )
  return firsts


def configurations(settings: list[dict]) -> list[str]:
  """Names each trial's configuration, for which one learning rate is chosen."""
  axes = list(dict.fromkeys(axis for setting in settings for axis in setting))
  plain = lambda setting: {k: v for k, v in setting.items() if k not in ("seed", tuning.PATH)}
  return grid.names([plain(setting) for setting in settings], axes)


def curves(plan: Plan, workdir: Path) -> dict[str, tuning.Curve]:
  """Chooses the learning rate of each configuration that leaves it open; {} where none does.

  One whose trials have begun keeps its rate, also where a trial of another rate, which had failed,
  has now a lower loss.

  Raises:
    UserError: where trials by which it is chosen are not done, or all of them diverged.
  """
  folders = plan.tuning.folders(workdir)
  for folder in folders:
    if not any((folder / name).exists() for name in ("result.json", FAILED)):
      raise UserError(f"{tuning.PATH} is not chosen yet: {folder} is not done, train that first")
  found, begun, losses = {}, _begun(plan, workdir), map(_validation_loss, folders)
  for name, i in _firsts(plan.settings, plan.rates).items():
    count = len(plan.rates[i]) * len(plan.configs[i]["search"]["tune_seeds"])
    curve = tuning.choose(name, plan.rates[i], list(itertools.islice(losses, count)))
    found[name] = curve._replace(chosen=begun.get(name, curve.chosen))
  return found


def _begun(plan: Plan, workdir: Path) -> dict[str, float]:
  """Returns {configuration: its rate} of those that chose it before one of their trials began."""
  known, found = collect.curves(workdir), {}
  for name, trial, some in zip(configurations(plan.settings), plan.names, plan.rates, strict=True):
    began = (workdir / "trials" / trial / "config.json").exists()
    if began and name in known and known[name]["rates"] == some:
      found[name] = known[name]["chosen"]
  return found


def final(plan: Plan, chosen: dict[str, tuning.Curve]) -> tuple[list[dict], Stage]:
  """Returns the settings of the sweep's trials and their stage, with the rates that were chosen."""
  settings, configs = [], []
  names = configurations(plan.settings)
  for name, setting, config, some in zip(
    names, plan.settings, plan.configs, plan.rates, strict=True
  ):
    rate = {tuning.PATH: chosen[name].chosen} if some else {}
    settings.append(setting | rate)
    configs.append(tuning.with_rate(config, rate[tuning.PATH]) if some else config)
  return settings, Stage("trials", plan.names, configs, list(range(len(configs))))


def trials_of(stage: Stage, loaded: list[Trial]) -> list[Trial]:
  """Returns the trials of a stage, given those of `Plan.loads`; without test data for tuning."""
  made = []
  for config, source in zip(stage.configs, stage.sources, strict=True):
    trial = loaded[source]
    if stage.kind == "tuning":
      trial = trial._replace(dataset=trial.dataset._replace(test=None))
    made.append(with_config(trial, config))
  return made


def _validation_loss(folder: Path) -> float | None:
  """Reads a trial's validation loss; None where it failed, diverged or could not be judged."""
  result = results.read(folder)
  return None if not result or results.diverged(result) else result["final"].get("validation_loss")


def check_folders(plan: Plan, workdir: Path) -> None:
  """Raises UserError if folders of trials are those of another sweep.

  These are trials that are under way, whose updates would be lost, and finished ones that cannot be
  compared with those of this sweep, of which one might be taken for its best.
  """
  stated = {
    folder: config
    for stage in plan.stated()
    for folder, config in zip(stage.folders(workdir), stage.configs, strict=True)
  }
  folders = [workdir / "trials" / name for name in plan.names]
  done = [path.parent for path in sorted(workdir.glob("trials/*/result.json"))]
  _check_others(plan, [folder for folder in done if folder not in folders])
  for place in sorted({folder.parent for folder in (*stated, *folders)}):
    for path in sorted(place.glob("*/config.json")):
      folder = path.parent
      if any((folder / name).exists() for name in ("result.json", FAILED)):
        continue
      if folder not in stated and folder not in folders:
        raise UserError(
          f"{place.parent} holds an unfinished sweep, whose trial {folder.name} this one does not "
          f"have: go on with its config, give another --workdir, or remove {folder}"
        )
      if folder in stated:
        old = schema.read_json(path, dict, f"put it back, or delete {folder} to start it again")
        old, new = configs_.as_now(old), configs_.unplaced(stated[folder])
        checkpoint.check_same(f"{folder} is an unfinished trial", {"config": old}, {"config": new})
  for stage in plan.stated()[: 1 if any(plan.rates) else 2]:
    check_checkpoints(stage, workdir)


def _check_others(plan: Plan, folders: list[Path]) -> None:
  """Raises UserError for a finished trial of another base, data, objective or rewards."""
  if not folders:
    return
  axes = {f"{axis}." for setting in plan.settings for axis in setting}

  def judged(config: dict) -> dict:
    sections = {name: config.get(name) for name in ("model", "data", "objective")}
    rewards = {name: config.get("rollout", {}).get(name) for name in ("rewards", "weights")}
    flat = grid.flatten(sections | {"rollout": rewards})
    compared = lambda key: key not in _FREE and not f"{key}.".startswith((*axes,))
    return {key: value for key, value in flat.items() if compared(key)}

  own = [judged(under_way.as_read(config)) for config in plan.configs]
  for folder in folders:
    other = judged(configs_.as_now(schema.read_json(folder / "config.json", dict)))
    if other not in own:
      raise UserError(
        f"{folder} holds the result of another sweep, with which this one's cannot be compared: "
        f"{checkpoint.differences(other, own[0])}; give another --workdir, or remove {folder}"
      )


def check_checkpoints(stage: Stage, workdir: Path) -> None:
  """Raises UserError where trials would start anew, as their checkpoint is of another program.

  All trials of a program have one checkpoint. They go on from it beside others, and in another
  order of an axis; but not without one of them, nor while another process trains them, nor beside
  new ones where these would be compared with them (`search.early_exit`) or bring other data, to
  whose shapes those of all would be padded. A checkpoint that an earlier version named otherwise,
  as its configs had fewer keys, is given its name.
  """
  of = lambda some: under_way.checkpoints([stage.configs[i] for i in some], workdir)
  groups, folders = stage.groups(), stage.folders(workdir)
  own = [under_way.as_read(config) for config in stage.configs]
  for path in sorted({*(workdir / "groups").glob("[!.]*")} - {of(group) for group in groups}):
    saved = under_way.saved(path)
    for group in groups:
      left = [i for i in group if not (folders[i] / "result.json").exists()]
      lost = [i for i in left if own[i] in saved]
      began = [i for i in group if i in left or own[i] in saved]  # some may be done since then
      if not lost or of(group).exists() or of(left).exists():
        continue
      if saved == [own[i] for i in began]:
        if hosts.primary() and not locks.in_use(folders[group[0]]):
          files.move(path, of(began))
        continue
      if any(locks.in_use(folders[i]) for i in group[1:]):  # they are locked by the first one
        raise UserError(
          f"{path} is the checkpoint of trials that another process trains: wait until it has ended"
        )
      configs = [stage.configs[i] for i in group]
      new = [i for i in left if not (folders[i] / "config.json").exists()]
      if path not in under_way.found(configs, workdir) or _changes(stage, new, lost, left == group):
        raise UserError(
          f"{path} is the checkpoint of {folders[lost[0]].name}, which this sweep would train from "
          "its start or compare with others than before: go on with the config that it was begun "
          f"with, give another --workdir, or remove {path}"
        )


def _changes(stage: Stage, new: list[int], lost: list[int], whole: bool) -> bool:
  """Says whether `new` trials of a group change what becomes of the `lost` ones, which go on.

  Args:
    whole: whether no trial of the group is done; where some are, `trials.waiting` knows more.
  """
  early = stage.configs[lost[0]]["search"]["early_exit"] is not None
  keys = lambda some: {groups.data_key(stage.configs[i]) for i in some}
  return (early and whole and bool(new)) or not keys(new) <= keys(lost)
