"""What warnings about a comparison are found from."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxtune import config as configs_
from jaxtune import schema
from jaxtune.runs import scores
from jaxtune.sweeps import grid, pairs, stats


class Evidence(NamedTuple):
  """A comparison, as far as it is made.

  Attributes:
    rows: the configurations of the trials that finished, best first.
    metric: what they are compared by.
    reference: the label of the configuration that the others are compared with.
    named: whether that one was named; else it is the best.
    pairs: their comparisons.
    scores: {folder of a trial: its scores}, as far as there are any.
    configs: the flat config of each trial, as far as it is known; see `config`.
    exited: the trials that left early.
    failed: {trial: reason} of those that failed.
    repeated: those that differ in nothing from another one, which counts alone.
    curves: {configuration: the choice of its learning rate}; see `comparison.compare`.
  """

  rows: Sequence[stats.Row]
  metric: str
  reference: str
  named: bool
  pairs: Sequence[pairs.Pair]
  scores: Mapping[str, scores.Scores]
  configs: Mapping[str, Mapping[str, Any]]
  exited: Sequence[dict] = ()
  failed: Mapping[str, str] = {}
  curves: Mapping[str, Mapping] = {}
  repeated: Sequence[dict] = ()

  @property
  def results(self) -> list[dict]:
    """The results of all trials that finished."""
    return [result for row in self.rows for result in row.results]

  def config(self, result: dict) -> Mapping[str, Any]:
    """Returns the flat config of a trial."""
    return self.configs[_place(result)]


class Caution(NamedTuple):
  """Something that a reader of a comparison should beware of.

  Attributes:
    kind: the name of the function that found it.
    text: one or two plain sentences.
    trials: those that it is about.
  """

  kind: str
  text: str
  trials: tuple[str, ...]


def of_results(kind: str, text: str, results: Iterable[dict]) -> list[Caution]:
  """Returns a warning about some trials, as the only item of a list."""
  return [Caution(kind, text, tuple(result["trial"] for result in results))]


def of_rows(kind: str, text: str, rows: Iterable[stats.Row]) -> list[Caution]:
  """Returns a warning about all trials of some rows, as the only item of a list."""
  return of_results(kind, text, itertools.chain.from_iterable(row.results for row in rows))


def read_configs(
  results: Sequence[dict], shared: Mapping[str, Any]
) -> dict[str, Mapping[str, Any]]:
  """Returns the flat config of each trial, from its folder, or else of what all trials share.

  Args:
    shared: the completed config of the sweep.
  """
  return {_place(result): _config(result, grid.flatten(shared)) for result in results}


def _place(result: dict) -> str:
  """Returns what tells a trial from those of other sweeps: its folder, or else its name."""
  return result.get("folder") or result["trial"]


def _config(result: dict, shared: Mapping[str, Any]) -> dict[str, Any]:
  path = Path(result.get("folder", "")) / "config.json"
  if "folder" in result and path.exists():
    found = configs_.as_now(schema.read_json(path, dict))
    return {"method.name": result["method"]} | grid.flatten(found)
  settings = grid.flatten(result["settings"])
  other = settings.get("method.name", result["method"]) != shared.get("method.name")
  kept = {k: v for k, v in shared.items() if not (other and k.startswith("method."))}
  return kept | {"method.name": result["method"]} | settings


def listed(names: Iterable[str]) -> str:
  """Lists names in words, of many the first eight."""
  known = list(dict.fromkeys(names))
  if len(known) > 8:
    return f"{', '.join(known[:8])} and {len(known) - 8} more"
  return " and ".join(filter(None, [", ".join(known[:-1]), *known[-1:]]))


def chained(rules: Iterable, evidence: Evidence) -> list[Caution]:
  """Returns what all rules find, in their order."""
  return list(itertools.chain.from_iterable(rule(evidence) for rule in rules))
