"""Means and intervals over seeds, and the grouping and ordering of a sweep's results."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxtune import lazy, metrics
from jaxtune.runs.results import diverged
from jaxtune.sweeps import grid
from jaxtune.sweeps.groups import SHARES

scipy_stats = lazy.Module("scipy.stats")
_OF_TRAINING = tuple(f"data.{name}" for name in SHARES)  # what the untuned base never sees


class Summary(NamedTuple):
  """A metric over seeds."""

  mean: float | None  # None where no seed has the metric, or where one of them diverged
  half_width: float | None  # of the 95 % interval; None with fewer than two seeds
  count: int  # seeds that have the metric, the diverged included
  diverged: int  # of which so many ended in a number that is not finite


class Row(NamedTuple):
  """The results that differ in nothing but the seed."""

  label: str  # what tells this row from the others: "lora rank=4"
  settings: dict[str, Any]  # flat, with "method.name" and without "seed"
  results: tuple[dict, ...]  # result.json of each seed


def summarize(values: Iterable[float | None]) -> Summary:
  """Returns the mean and the 95 % interval of Student's t; None stands for a missing value.

  A mean over seeds of which one diverged would flatter the settings or be NaN, so there is none.
  """
  present = [float(value) for value in values if value is not None]
  diverged = sum(not math.isfinite(value) for value in present)
  if diverged or not present:
    return Summary(None, None, len(present), diverged)
  half_width = None
  if len(present) > 1:
    half_width = float(scipy_stats.t.ppf(0.975, len(present) - 1) * scipy_stats.sem(present))
  return Summary(float(np.mean(present)), half_width, len(present), 0)


def final(result: dict, metric: str) -> float | None:
  """Returns a trial's final metric: NaN for all metrics of a diverged trial, None if missing.

  What a diverged model scores on the other metrics (BLEU 0, say) measures nothing.
  """
  return math.nan if diverged(result) else result["final"].get(metric)


def over_seeds(results: Iterable[dict], metric: str) -> Summary:
  """Summarizes the final metric over trials."""
  return summarize(final(result, metric) for result in results)


def difference(results: Iterable[dict], metric: str, part: str = "base") -> Summary:
  """Summarizes tuned minus untuned, each pair measured on the same examples.

  Args:
    part: "base", or "shots" for the base with demonstrations in its prompts.
  """
  pairs = [(final(result, metric), result.get(part, {}).get(metric)) for result in results]
  return summarize(None if None in pair else pair[0] - pair[1] for pair in pairs)


def of_base(results: Iterable[dict], metric: str, part: str = "base") -> Summary:
  """Summarizes what was not trained: no interval where every trial measured the same number.

  A seed changes the base's number only where it also draws other examples.

  Args:
    part: "base"; "shots", the base with demonstrations; "chance", one answer for every example.
  """
  found = [result.get(part, {}).get(metric) for result in results]
  values = [value for value in found if value is not None]
  if values and np.allclose(values, values[0], rtol=1e-5, atol=0, equal_nan=True):
    return summarize(values[:1])
  return summarize(values)


def group(results: Sequence[dict]) -> list[Row]:
  """Puts trials that differ in the seed alone into one row, in order of first appearance."""
  settings: dict[str, dict] = {}
  members: dict[str, list[dict]] = {}
  for result in results:
    flat = {"method.name": result["method"]} | grid.flatten(result["settings"])
    flat.pop("seed", None)
    key = json.dumps(flat, sort_keys=True)
    settings.setdefault(key, flat)
    members.setdefault(key, []).append(result)
  return [
    Row(label, settings[key], tuple(members[key]))
    for key, label in zip(settings, labels(list(settings.values())), strict=True)
  ]


def group_bases(rows: Sequence[Row]) -> list[Row]:
  """Returns a row for the untuned base, or one for each model or data set in the sweep."""
  shared: dict[str, list[Row]] = {}
  for row in rows:
    key = {
      path: value
      for path, value in row.settings.items()
      if path.split(".")[0] in ("model", "data") and not path.startswith(_OF_TRAINING)
    }
    shared.setdefault(json.dumps(key, sort_keys=True), []).append(row)
  names = labels([{"method.name": "base (untuned)"} | json.loads(key) for key in shared])
  return [
    Row(label, json.loads(key), tuple(r for row in members for r in row.results))
    for (key, members), label in zip(shared.items(), names, strict=True)
  ]


def best_first(rows: Sequence[Row], metric: str) -> list[Row]:
  """Sorts rows by the mean of `metric`; those without it come later, the diverged last."""

  def key(row: Row) -> tuple:
    summary = over_seeds(row.results, metric)
    if summary.diverged:
      return 2, summary.diverged / summary.count
    if summary.mean is None:
      return 1, 0.0
    return 0, -summary.mean if metrics.higher_is_better(metric) else summary.mean

  return sorted(rows, key=key)


def varying(settings: Sequence[dict[str, Any]]) -> list[str]:
  """Lists the paths whose values differ, a missing path counting as a value of its own."""
  paths = dict.fromkeys(path for one in settings for path in one)
  return [
    path
    for path in paths
    if len({json.dumps(one[path]) if path in one else "" for one in settings}) > 1
  ]


def labels(settings: Sequence[dict[str, Any]]) -> list[str]:
  """Names settings by their method and by what varies: "lora rank=4", "prefix length=10".

  Of a method's own settings, those that differ between its rows; where none does, what sets it
  apart from the other methods.
  """
  paths = [path for path in varying(settings) if path != "method.name"]
  paths.sort(key=lambda path: not path.startswith("method."))
  short = grid.short_keys(path.removesuffix(".name") for path in paths)
  own: dict[str, set[str]] = {}
  for one in settings:
    method = one.get("method.name", "")
    if method not in own:
      own[method] = {
        path
        for path in varying([other for other in settings if other.get("method.name", "") == method])
        if path.startswith("method.")
      }

  def parts(one: dict[str, Any]) -> Iterator[str]:
    method = one.get("method.name", "")
    yield method
    for path in paths:
      hidden = path.startswith("method.") and own[method] and path not in own[method]
      key = short[path.removesuffix(".name")]
      if path in one and not hidden and (not path.endswith(".name") or one[path] != key):
        yield f"{key}={show(one[path])}"

  return [" ".join(filter(None, parts(one))) or "all" for one in settings]


def show(value: Any) -> str:
  """Writes a setting's value compactly: 0.00001 as 1e-5, a list as its items."""
  if isinstance(value, float):
    return f"{value:g}".replace("e-0", "e-").replace("e+0", "e+")
  return "+".join(map(show, value)) if isinstance(value, (list, tuple)) else str(value)
