"""The report of finished and running sweeps, made from their folders."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxtune import config as configs_
from jaxtune import libraries, schema
from jaxtune.api import sweep, trials
from jaxtune.errors import UserError
from jaxtune.runs import locks, results
from jaxtune.sweeps import analysed, collect, grid, groups, tuning
from jaxtune.training import checkpoint

reports = libraries.Lazy("jaxtune.sweeps.report")  # which draws with matplotlib
FILES = ("report.html", "report.md", "results.csv", "results.parquet", "table.tex", "plots")


class Sweep(NamedTuple):
  """What the folder of a sweep holds.

  Attributes:
    given: the config with which it was started.
    shared: the completed config that all trials share.
    configs: {trial: its completed config}.
    finished, unfinished: its trials; see `collect.read`.
    curves: how its learning rates were chosen; see `collect.curves`.
    notes: what was assumed when it was made; see `sweep.read_notes`.
  """

  given: dict
  shared: dict
  configs: dict[str, dict]
  finished: list[dict]
  unfinished: list[dict]
  curves: dict[str, dict]
  notes: dict[str, Any]


def report(
  folders: str | Path | Sequence[str | Path],
  out: str | Path | None = None,
  metric: str | None = None,
  reference: str | None = None,
) -> Path:
  """Writes the report of a sweep anew, or one report of several sweeps.

  Sweeps may be under way: trials that are not finished are shown with their learning curves.

  Args:
    folders: of the sweep, or of several.
    out: where the report goes; default the folder of the sweep, if there is one.
    metric: what results are sorted by; default the test loss, else that of validation.
    reference: the label of the configuration that others are compared with, as in the report, or
      one of its trials; default the best one.

  Returns:
    The path of report.html.

  Raises:
    UserError: no folder, one that holds no sweep, several without `out`, or an unknown reference.
  """
  folders = [folders] if isinstance(folders, (str, Path)) else folders
  places = list(dict.fromkeys(map(Path, folders)))
  if not places:
    raise UserError("no folder was given, expected that of a sweep, or several")
  target = _target(places, out)
  sweeps = {name: read(place) for name, place in zip(_names(places), places, strict=True)}
  shared, programs = {}, 0
  for one in sweeps.values():
    shared, programs = one.shared, programs + len(groups.groups(list(one.configs.values())))
  if len(sweeps) > 1:
    sweeps, shared = _joined(sweeps), {}
  reports.write(
    [result for one in sweeps.values() for result in one.finished],
    target,
    metric=metric,
    reference=reference,
    config=shared,
    notes={"compiled programs": programs}
    | {note: said for one in sweeps.values() for note, said in one.notes.items()},
    given={name: one.given for name, one in sweeps.items()},
    unfinished=[trial for one in sweeps.values() for trial in one.unfinished],
    curves={name: curve for one in sweeps.values() for name, curve in one.curves.items()},
    analysis=_analysis(places),
  )
  return target / "report.html"


def _analysis(places: Sequence[Path]) -> analysed.Analysis | None:
  """Reads what was analysed of the sweeps; trials are named as `_joined` names them."""
  if len(places) == 1:
    return analysed.read(places[0])
  named = zip(_names(places), places, strict=True)
  return analysed.join({f"{name}/": analysed.read(place) for name, place in named})


def read(folder: Path) -> Sweep:
  """Reads a sweep from its folder.

  Raises:
    UserError: where the folder holds none, or a result in it is damaged.
  """
  path = folder / "config.json"
  given = schema.read_json(path, fix="put it back") if path.exists() else None
  if not isinstance(given, dict) or not given.get("sweep"):
    raise UserError(f"{folder} is not the folder of a sweep: expected a config.json with a sweep")
  names, settings, configs = sweep.expand(given, sweep.MOST_TRIALS**2)
  rates = sweep.open_rates(given, settings)
  for name, setting, some in zip(names, settings, rates, strict=True):
    if some:
      setting[tuning.PATH] = _chosen(folder / "trials" / name)
  found = collect.read(folder, names, settings, configs, rates)
  by_name = dict(zip(names, configs, strict=True))
  for result in found[0]:
    _check_config(path, result, by_name[result["trial"]])
  curves, notes = collect.curves(folder), sweep.read_notes(folder)
  return Sweep(given, sweep.shared(given), by_name, *found, curves, notes)


def _check_config(path: Path, result: dict, stated: dict) -> None:
  """Raises UserError where a sweep's config.json was changed since a trial of it was trained."""
  old = trials.trained(Path(result["folder"]))
  new = configs_.unplaced(json.loads(json.dumps(stated, default=str)))
  if tuning.PATH in result["settings"]:  # it was chosen
    new["optim"]["learning_rate"] = old["optim"]["learning_rate"]
  if apart := checkpoint.differences(old, new):
    raise UserError(
      f"{path} was changed since {result['trial']} was trained: {apart}; put it back, or start "
      "another sweep with it in another folder"
    )


def _chosen(trial: Path) -> float | str:
  """Returns the learning rate that was chosen for a trial; "tuned" where that is not known yet."""
  path = trial / "config.json"
  if not path.exists():
    return "tuned"
  return schema.read_json(path, results.Config, "put it back")["optim"]["learning_rate"]


def _target(places: Sequence[Path], out: str | Path | None) -> Path:
  """Returns the folder of the report, in which it must not replace anything else."""
  if out is None:
    if len(places) > 1:
      raise UserError(f"the report of {len(places)} sweeps needs its own folder: give --out DIR")
    return places[0]
  locks.check_writable(out)
  if Path(out) not in places and (Path(out) / "config.json").exists():
    raise UserError(f"{out} holds a run or a sweep: give another folder for the report")
  lost = [name for name in FILES if (Path(out) / name).exists()]
  if lost and Path(out) not in places and "report.html" not in lost:
    raise UserError(
      f"{out} is not the folder of a report, and its {lost[0]} would be lost; expected a folder "
      "that is new, empty or of a report"
    )
  return Path(out)


def _names(places: Sequence[Path]) -> list[str]:
  """Names sweeps by their folders, or by whole paths where two folders have one name."""
  names = [place.absolute().name for place in places]
  return names if len(set(names)) == len(names) else list(map(str, places))


def _joined(sweeps: dict[str, Sweep]) -> dict[str, Sweep]:
  """Names trials after their sweeps too, and states in their settings all in which they differ."""
  flat = {
    (name, trial): grid.flatten(configs_.unplaced(config))
    for name, one in sweeps.items()
    for trial, config in one.configs.items()
  }
  for name, one in sweeps.items():
    for trial in (*one.finished, *one.unfinished):  # with the learning rate that was chosen
      flat[name, trial["trial"]] |= grid.flatten(trial["settings"])
  values: dict[str, set] = {}
  for config in flat.values():
    for path, value in config.items():
      values.setdefault(path, set()).add(json.dumps(value, default=str))
  varying = [path for path, seen in values.items() if len(seen) > 1 or path == "seed"]

  def renamed(name: str, trial: dict) -> dict[str, Any]:
    config = flat[name, trial["trial"]]
    settings = {path: config[path] for path in varying if path in config}
    return trial | {"trial": f"{name}/{trial['trial']}", "settings": settings}

  return {
    name: one._replace(
      finished=[renamed(name, trial) for trial in one.finished],
      unfinished=[renamed(name, trial) for trial in one.unfinished],
      curves={f"{name}/{label}": curve for label, curve in one.curves.items()},
      notes={f"{name}: {note}": said for note, said in one.notes.items()},
    )
    for name, one in sweeps.items()
  }
