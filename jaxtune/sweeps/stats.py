"""Means and intervals over seeds, and the grouping and ordering of a sweep's results."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxtune import libraries, metrics
from jaxtune.runs.results import diverged
from jaxtune.sweeps import grid
from jaxtune.sweeps.groups import SHARES
from jaxtune.sweeps.tuning import PATH as RATE

special = libraries.Lazy("scipy.special")
# Options of the training data alone, on which the metrics of the untuned base do not depend.
_OF_TRAINING = tuple(f"data.{name}" for name in (*SHARES, "resample", "buckets", "pack", "stream"))
_LIMIT = "data.limit"  # decides which demonstrations there are, and the most frequent answer


class Summary(NamedTuple):
  """A metric over seeds."""

  mean: float | None  # None where no seed has the metric, or where one of them diverged
  half_width: float | None  # of the 95 % interval; None with fewer than two seeds
  count: int  # of the seeds that have the metric, including the diverged ones
  diverged: int  # of the seeds whose metric is not finite


class Row(NamedTuple):
  """The results of trials that differ in the seed alone."""

  label: str  # says what is different from the other rows: "lora rank=4"
  settings: dict[str, Any]  # flat, with "method.name" and without "seed"
  results: tuple[dict, ...]  # result.json of each seed


def summarize(values: Iterable[float | None]) -> Summary:
  """Returns the mean and the 95 % interval by Student's t; None stands for a missing value.

  There is no mean where a seed diverged: with that seed it would be NaN, and without it too good.
  """
  present = [float(value) for value in values if value is not None]
  diverged = sum(not math.isfinite(value) for value in present)
  if diverged or not present:
    return Summary(None, None, len(present), diverged)
  half_width = None
  if len(present) > 1:
    error = float(np.std(present, ddof=1)) / math.sqrt(len(present))
    half_width = float(special.stdtrit(len(present) - 1, 0.975)) * error
  return Summary(float(np.mean(present)), half_width, len(present), 0)


def final(result: dict, metric: str) -> float | None:
  """Returns a trial's final metric, or None if it is missing.

  It is NaN for every metric of a diverged trial: a BLEU of 0, say, of such a model has no meaning.
  A trial that left early has none: its validation loss is that of another step.
  """
  if result.get("exited_at"):
    return None
  return math.nan if diverged(result) else result["final"].get(metric)


def over_seeds(results: Iterable[dict], metric: str) -> Summary:
  """Summarizes the final metric over trials."""
  return summarize(final(result, metric) for result in results)


def difference(results: Iterable[dict], metric: str, key: str = "base") -> Summary:
  """Summarizes the tuned minus the untuned metric, both measured on the same examples.

  Args:
    key: "base", or "shots" for the base with demonstrations in its prompts.
  """
  return summarize(change(result, metric, key) for result in results)


def change(result: dict, metric: str, key: str = "base") -> float | None:
  """Returns a trial's tuned minus the untuned metric; None where either is missing."""
  tuned, untuned = final(result, metric), result.get(key, {}).get(metric)
  return None if tuned is None or untuned is None else tuned - untuned


def over_examples(
  results: Sequence[dict], metric: str, key: str | None = None
) -> tuple[float, float] | None:
  """Returns the 95 % interval over examples of a single seed's metric; None for several seeds.

  Args:
    key: "base" or "shots", for the interval of the metric's change from it.
  """
  if len(results) != 1:
    return None
  (result,) = results
  known = result.get("intervals", {}) if key is None else result.get("differences", {}).get(key, {})
  low, high = (known.get(metric) or (math.nan, math.nan))[-2:]
  return (low, high) if math.isfinite(low + high) else None


def of_base(results: Iterable[dict], metric: str, key: str = "base") -> Summary:
  """Summarizes a metric that was measured without training.

  Args:
    key: "base"; "shots", the base with demonstrations; "chance", one answer for all examples;
      "guess", one of a row's choices at random; "length", the longer of two answers, or the shorter
      one.
  """
  return summarize(untrained(results, metric, key))


def untrained(results: Iterable[dict], metric: str, key: str = "base") -> list[float]:
  """Returns what trials measured without training; one value where it is the same in all of them.

  It differs where the seed draws the demonstrations, or the weights of a base that is read from no
  folder: a value for each seed, which all configurations share.
  """
  by_seed: dict[Any, float] = {}
  for result in results:
    value = result.get(key, {}).get(metric)
    if value is not None:
      by_seed.setdefault(grid.flatten(result["settings"]).get("seed"), value)
  values = list(by_seed.values())
  return values[:1] if _alike(values) else values


def group(results: Sequence[dict]) -> list[Row]:
  """Puts trials that differ in the seed alone into one row, in order of first appearance.

  A seed counts once: of several trials that differ in nothing, the first one is kept.
  """
  settings: dict[str, dict] = {}
  members: dict[str, dict[Any, dict]] = {}
  for result in results:
    flat = {"method.name": result["method"]} | grid.flatten(result["settings"])
    seed = flat.pop("seed", None)
    key = json.dumps(flat, sort_keys=True)
    settings.setdefault(key, flat)
    members.setdefault(key, {}).setdefault(seed, result)
  return [
    Row(label, settings[key], tuple(members[key].values()))
    for key, label in zip(settings, labels(list(settings.values())), strict=True)
  ]


def group_bases(rows: Sequence[Row]) -> list[Row]:
  """Returns a row for the untuned base, or one for each way in which it was judged.

  These are each model and data set of the sweep, and settings of the objective, its references, the
  evaluation, the rewards and the training data that change what is scored without training.
  """
  bases: dict[str, list[Row]] = {}
  judged = ("model", "data", "objective", "evaluate", "rollout", "start")
  for key, members in _by_sections(rows, ("model", "data"), (*_OF_TRAINING, _LIMIT)).items():
    apart = _scored_apart(members)
    bases |= _by_sections(members, judged, _OF_TRAINING) if apart else {key: members}
  names = labels([{"method.name": "base (untuned)"} | json.loads(key) for key in bases])
  return [
    Row(label, json.loads(key), tuple(r for row in members for r in row.results))
    for (key, members), label in zip(bases.items(), names, strict=True)
  ]


def count_tasks(rows: Sequence[Row]) -> int:
  """Counts the pairs of a model and a data set in a sweep."""
  return len(_by_sections(rows, ("model", "data"), (*_OF_TRAINING, _LIMIT)))


def _by_sections(
  rows: Sequence[Row], sections: Sequence[str], without: tuple[str, ...]
) -> dict[str, list[Row]]:
  """Groups rows by their settings of these sections, as JSON, without some of them.

  "start" stands for the folders that methods start from.
  """
  own_start = lambda path: "start" in sections and path.endswith(".start")
  found: dict[str, list[Row]] = {}
  for row in rows:
    own = {
      path: x
      for path, x in row.settings.items()
      if path.split(".")[0] in sections or own_start(path)
    }
    key = {path: x for path, x in own.items() if not path.startswith(without)}
    found.setdefault(json.dumps(key, sort_keys=True), []).append(row)
  return found


def _scored_apart(rows: Sequence[Row]) -> bool:
  """Says whether trials with one seed differ in what is scored without training."""
  of_seeds: dict[Any, list[dict]] = {}
  for result in (result for row in rows for result in row.results):
    of_seeds.setdefault(result["settings"].get("seed"), []).append(result)
  untrained = ("base", "shots", "chance", "guess", "length")
  names = {(key, name) for key in untrained for row in rows for result in row.results
           for name in result.get(key, {})}  # fmt: skip
  return any(
    not _alike([x for r in same if (x := r.get(key, {}).get(name)) is not None])
    for same in of_seeds.values()
    for key, name in names
  )


def _alike(values: Sequence[float]) -> bool:
  return bool(np.allclose(values, values[:1] * len(values), rtol=1e-5, atol=0, equal_nan=True))


def best_first(rows: Sequence[Row], metric: str) -> list[Row]:
  """Sorts rows by the mean of `metric`, then those without the metric, then the diverged ones."""

  def key(row: Row) -> tuple:
    summary = over_seeds(row.results, metric)
    if summary.diverged:
      return 2, summary.diverged / summary.count
    if summary.mean is None:
      return 1, 0.0
    return 0, -summary.mean if metrics.higher_is_better(metric) else summary.mean

  return sorted(rows, key=key)


def numeric_axes(rows: Sequence[Row]) -> list[str]:
  """Lists the settings that have at least two different numbers within a method."""
  values: dict[tuple[str, str], set] = {}
  for row in rows:
    for path, value in row.settings.items():
      if isinstance(value, (int, float)) and not isinstance(value, bool):
        values.setdefault((path, row.settings["method.name"]), set()).add(value)
  return list(dict.fromkeys(path for (path, _), numbers in values.items() if len(numbers) > 1))


def lines_along(rows: Sequence[Row], path: str) -> dict[str, list[Row]]:
  """Groups rows by the label of their settings other than `path`, each group in its order.

  A learning rate that was chosen for a configuration is none of these settings: it goes with the
  others.
  """
  left_out = lambda row: {path, RATE} if row.results[0].get("own_rate") else {path}
  others = [{k: x for k, x in row.settings.items() if k not in left_out(row)} for row in rows]
  methods = {row.settings["method.name"] for row in rows}
  lines: dict[str, list[Row]] = {}
  for row, label in zip(rows, labels(others), strict=True):
    if len(methods) == 1:
      label = label.removeprefix(row.settings["method.name"]).strip()
    lines.setdefault(label, []).append(row)
  return {label: sorted(line, key=lambda row: row.settings[path]) for label, line in lines.items()}


def varying(settings: Sequence[dict[str, Any]]) -> list[str]:
  """Lists the paths whose values differ; a missing path counts as a value of its own."""
  paths = dict.fromkeys(path for row in settings for path in row)
  value = lambda row, path: json.dumps(row[path]) if path in row else ""
  return [path for path in paths if len({value(row, path) for row in settings}) > 1]


def labels(settings: Sequence[dict[str, Any]]) -> list[str]:
  """Names settings by their method and by what varies: "lora rank=4", "prefix length=10".

  Of a method's options, those are named that differ within the method; if none does, those that
  differ from another method's.
  """
  paths = [path for path in varying(settings) if path != "method.name"]
  paths.sort(key=lambda path: not path.startswith("method."))
  short = grid.short_keys(path.removesuffix(".name") for path in paths)
  method_of = lambda row: row.get("method.name", "")
  options: dict[str, set[str]] = {}  # of each method, those that differ within it
  for method in set(map(method_of, settings)):
    within = varying([row for row in settings if method_of(row) == method])
    options[method] = {path for path in within if path.startswith("method.")}

  def words(row: dict[str, Any]) -> Iterator[str]:
    differing = options[method_of(row)]
    yield method_of(row)
    for path in paths:
      hidden = path.startswith("method.") and differing and path not in differing
      key = short[path.removesuffix(".name")]
      if path in row and not hidden and (not path.endswith(".name") or row[path] != key):
        yield f"{key}={show(row[path])}"

  return [" ".join(filter(None, words(row))) or "all" for row in settings]


def show(value: Any) -> str:
  """Writes a setting's value compactly: 0.00001 as 1e-5, a list as its items."""
  if isinstance(value, float):
    return grid.brief(value).replace("e-0", "e-").replace("e+0", "e+")
  return "+".join(map(show, value)) if isinstance(value, (list, tuple)) else str(value)
