"""What the page of a sweep shows, as one document of plain data that its JavaScript draws."""

from __future__ import annotations

import itertools
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jaxtune import metrics
from jaxtune.runs.results import diverged
from jaxtune.sweeps import grid, samples, stats, table

# Costs that a result may hold: {its key: what the page calls it}.
COSTS = {
  "trained_parameters": "trained parameters",
  "seconds": "seconds per trial",
  "flops": "FLOPs",
  "memory": "memory (bytes)",
}
_CURVES = ("_loss", "_accuracy", "_norm")  # what the names of curves end in
_MOST_POINTS = 300  # of one curve
_ALL_POINTS = 120_000  # of all curves, so that the page of a large sweep stays below 5 MB
_MOST_COMPARED = 40  # configurations of the matrix of differences


def build(
  results: Sequence[dict],
  metric: str,
  histories: Mapping[str, list[dict]],
  predictions: Mapping[str, list[dict]],
  config: Mapping[str, Any],
) -> dict:
  """Gathers all that the page draws from the results: see the functions below.

  Args:
    results: the result.json of every trial. One that is not finished has a "state" and no metrics.
    metric: by which the configurations are sorted.
    histories: {trial: lines of its metrics.jsonl}.
    predictions: {trial: lines of its predictions.jsonl}.
    config: the completed config that all trials share.
  """
  rows = stats.best_first(stats.group(results), metric)
  names = dict.fromkeys([metric, *table.metric_names(results)])
  filled = [row._replace(settings=_filled(row.settings, config)) for row in rows]
  axes = _axes([row.settings for row in filled])
  best = rows[0].results[0] if rows else {}
  return {
    "metric": metric,
    "metrics": {
      name: {"title": metrics.title(name), "higher": metrics.higher_is_better(name)}
      for name in names
    },
    "settings": grid.short_keys(axes),
    "axis": next(iter(stats.numeric_axes(rows)), None),
    "costs": {key: name for key, name in COSTS.items() if any(key in one for one in results)},
    "bases": bases([row for row in rows if row.results[0]["base"]], names),
    "configurations": configurations(filled, names, axes, histories),
    "pairs": pairs(rows, metric),
    "samples": samples.of_winners(rows, metric, predictions),
    "heat": samples.heat(best),
  }


def _filled(settings: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
  """Adds to the settings of a configuration what it shares with the config of all trials."""
  of_method = lambda path: path.partition(".")[0] in ("method", "sweep", "seed")
  shared = {path: value for path, value in grid.flatten(config).items() if not of_method(path)}
  return shared | dict(settings)


def _axes(settings: Sequence[Mapping[str, Any]]) -> list[str]:
  """Lists the paths that have at least two values, but for the method's name."""
  values: dict[str, set] = {}
  for row in settings:
    for path, value in row.items():
      values.setdefault(path, set()).add(json.dumps(value, default=str))
  return [path for path, seen in values.items() if len(seen) > 1 and path != "method.name"]


def configurations(
  rows: Sequence[stats.Row],
  names: Iterable[str],
  axes: Sequence[str],
  histories: Mapping[str, list[dict]],
) -> list[dict]:
  """Describes the configurations, best first, with their estimates and their trials.

  Args:
    names: of the metrics.
    axes: the paths of the settings that are shown.
    histories: {trial: lines of its metrics.jsonl}.
  """
  names = list(names)
  trials = sum(len(row.results) for row in rows)
  points = max(20, min(_MOST_POINTS, _ALL_POINTS // max(1, 4 * trials)))
  return [
    {
      "index": i,
      "label": row.label,
      "method": row.settings["method.name"],
      "state": _state_of_all(row.results),
      "settings": {path: _plain(row.settings[path]) for path in axes if path in row.settings},
      "costs": _mean_costs(row.results),
      "values": _estimates(row.results, names),
      "changes": _estimates(row.results, names, "base"),
      "trials": [_trial(result, histories, points) for result in row.results],
    }
    for i, row in enumerate(rows)
  ]


def bases(rows: Sequence[stats.Row], names: Iterable[str]) -> list[dict]:
  """Describes what was measured without training; see `table.UNTRAINED`."""
  names, found = list(names), []
  for row in stats.group_bases(rows):
    for key, label in table.UNTRAINED.items():
      if any(result.get(key) for result in row.results):
        shots = row.results[0].get("demonstrations", {}).get("shots")
        summaries = {name: stats.of_base(row.results, name, key) for name in names}
        values = {name: _interval(summary) for name, summary in summaries.items()}
        found.append({"label": label.format(row.label, shots), "values": values})
  return found


def state(result: Mapping[str, Any]) -> tuple[str, str]:
  """Says in a word, and in detail, what became of a trial."""
  if "state" in result:  # it is not finished
    return result["state"], result.get("detail", "")
  step = result.get("exited_at") or result.get("diverged_at")
  detail = f"step {step}" if step else ""
  if result.get("exited_at"):
    return "left early", detail
  return ("diverged", detail) if diverged(result) else ("finished", "")


def pairs(rows: Sequence[stats.Row], metric: str) -> dict | None:
  """Compares every two configurations, paired by seed; None where fewer than two were measured."""
  measured = lambda row: stats.over_seeds(row.results, metric).mean is not None
  chosen = [i for i, row in enumerate(rows) if measured(row)][:_MOST_COMPARED]
  values = [
    {"a": a, "b": b, "p": None, **_interval(_paired(rows[a], rows[b], metric))}
    for a, b in itertools.combinations(chosen, 2)
  ]
  note = (
    f"The row's {metrics.title(metric)} minus the column's, over the seeds that both have, with "
    "its 95 % interval. Numbers above the columns are those of the rows."
  )
  return {"note": note, "rows": chosen, "values": values} if values else None


def _paired(one: stats.Row, other: stats.Row, metric: str) -> stats.Summary:
  """Summarises the differences of two configurations over the seeds that both have."""
  seeds = {result["settings"].get("seed"): result for result in other.results}
  common = [
    (stats.final(result, metric), stats.final(seeds[seed], metric))
    for result in one.results
    if (seed := result["settings"].get("seed")) in seeds
  ]
  return stats.summarize(None if None in pair else pair[0] - pair[1] for pair in common)


def to_json(document: Mapping[str, Any]) -> str:
  """Writes a document as JSON that an HTML page may hold: no text of it can end its element."""
  text = json.dumps(_finite(document), separators=(",", ":"), allow_nan=False)
  return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _estimates(results: Sequence[dict], names: Iterable[str], key: str | None = None) -> dict:
  """Estimates metrics of trials that differ in the seed alone, or their changes from `key`.

  Returns:
    {metric: {"mean", "low", "high", "count" of the seeds that have it, "of" all seeds}}, and the
    standard "deviation" of the metric itself.
  """
  first, found = results[0], {}
  for name in names:
    if key is None:
      summary, intervals = stats.over_seeds(results, name), first.get("intervals", {})
    else:
      summary = stats.difference(results, name, key)
      intervals = first.get("differences", {}).get(key, {})
    if not summary.count:
      continue
    found[name] = _interval(summary) | {"count": summary.count, "of": len(results)}
    if len(results) == 1 and summary.mean is not None and intervals.get(name):
      found[name] |= dict(zip(("low", "high"), intervals[name][-2:], strict=True))
    if key is None and summary.count > 1 and summary.mean is not None:
      values = [stats.final(result, name) for result in results]
      found[name]["deviation"] = statistics.stdev(x for x in values if x is not None)
  return found


def _interval(summary: stats.Summary) -> dict:
  """Writes a summary as a mean and the ends of its interval, each None where there is none."""
  mean, half = summary.mean, summary.half_width
  low, high = (None, None) if mean is None or half is None else (mean - half, mean + half)
  return {"mean": mean, "low": low, "high": high}


def _mean_costs(results: Sequence[dict]) -> dict[str, float]:
  costs = [cost for result in results if (cost := _costs(result))]
  return {key: statistics.mean(cost[key] for cost in costs) for key in (costs or [{}])[0]}


def _costs(result: Mapping[str, Any]) -> dict[str, float]:
  return {key: result[key] for key in COSTS if isinstance(result.get(key), (int, float))}


def _trial(result: dict, histories: Mapping[str, list[dict]], points: int) -> dict:
  """Describes one trial, with its curves at no more than `points` steps each."""
  history = histories.get(result["trial"], [])
  keys = dict.fromkeys(key for line in history for key in line if key.endswith(_CURVES))
  curves = {}
  for key in keys:
    # A run that went on from a checkpoint may have logged a step again.
    logged = {line["step"]: line[key] for line in history if _is_number(line.get(key))}
    steps = sorted(logged)
    every = max(1, math.ceil(len(steps) / points))
    kept = dict.fromkeys([*steps[::every], *steps[-1:]])
    curves[key] = [[step, float(f"{logged[step]:.5g}")] for step in kept]
  word, detail = state(result)
  return {
    "trial": result["trial"],
    "seed": result["settings"].get("seed"),
    "state": word,
    "detail": detail,
    "final": result["final"],
    "base": result["base"],
    "costs": _costs(result),
    "curves": curves,
  }


def _state_of_all(results: Sequence[dict]) -> str:
  """Says what became of the trials of a configuration; what differs is counted."""
  states = [state(result)[0] for result in results]
  if len(set(states)) == 1:
    return states[0]
  rest = [word for word in dict.fromkeys(states) if word != "finished"]
  return ", ".join(f"{word} {states.count(word)} of {len(states)}" for word in rest)


def _plain(value: Any) -> Any:
  """Keeps numbers, and writes everything else as the labels do."""
  return value if _is_number(value) else stats.show(value)


def _is_number(value: Any) -> bool:
  return isinstance(value, (int, float)) and not isinstance(value, bool)


def _finite(value: Any) -> Any:
  """Replaces numbers that JSON does not have by None, and what is no plain data by its text."""
  if isinstance(value, Mapping):
    return {str(key): _finite(item) for key, item in value.items()}
  if isinstance(value, (list, tuple)):
    return [_finite(item) for item in value]
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value if value is None or isinstance(value, (str, int, float)) else str(value)
