"""What the page of a sweep shows, as one document of plain data that its JavaScript draws."""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jaxtune import metrics
from jaxtune.runs.results import diverged
from jaxtune.sweeps import analysed, comparison, grid, heat, samples, stats, table

# Costs that a result may hold: {its key: what the page calls it}.
COSTS = {
  "trained_parameters": "trained parameters",
  "seconds": "seconds per trial",
  **table.COSTS,
}
_CURVES = re.compile("train_|.*_(loss|accuracy|norm)$|.*_reward")  # the names of curves
_MOST_POINTS = 300  # of one curve
_ALL_POINTS = 120_000  # of all curves, so that the page of a large sweep stays below 5 MB


def build(
  results: Sequence[dict],
  compared: comparison.Comparison | None,
  histories: Mapping[str, list[dict]],
  config: Mapping[str, Any],
  analysis: analysed.Analysis | None = None,
) -> dict:
  """Gathers all that the page draws from the trials; see the functions below.

  Args:
    results: the result.json of every trial with its "folder", and trials that have none yet; see
      `collect.read`.
    compared: the comparison of those that finished, if there are any.
    histories: {trial: lines of its metrics.jsonl}.
    config: the completed config that all trials share.
    analysis: what was measured of the finished trials.
  """
  metric = compared.metric if compared else table.choose_metric(results, None)
  # Of a seed that was trained twice the trial is shown that is compared.
  compared_first = sorted(results, key=lambda one: "state" in one or bool(one.get("exited_at")))
  rows = stats.best_first(stats.group(compared_first), metric)
  names = dict.fromkeys([metric, *table.metric_names(results)])
  filled = [row._replace(settings=_filled(row.settings, config)) for row in rows]
  axes = _axes([row.settings for row in filled])
  measured = analysed.configurations(rows, analysis) if analysis else []
  return {
    "metric": metric,
    "metrics": {
      name: {"title": metrics.title(name), "higher": metrics.higher_is_better(name)}
      for name in names
    },
    "settings": grid.short_keys(axes),
    "axis": next(iter(stats.numeric_axes(rows)), None),
    "costs": {key: name for key, name in COSTS.items() if any(key in one for one in results)},
    "bases": bases(compared.configurations, names) if compared else [],
    "configurations": configurations(filled, names, axes, histories),
    "pairs": pairs(rows, compared) if compared else [],
    "reference": _indices(rows, compared)[compared.reference] if compared else 0,
    "warnings": [caution.text for caution in compared.warnings] if compared else [],
    "samples": samples.of_winners(rows, metric),
    "heat": heat.confusion(rows[0].results[0])
    + (heat.of_analysis(measured, analysis) if analysis else []),
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
      "ownRate": bool(row.results[0].get("own_rate")),
      "settings": {path: _plain(row.settings[path]) for path in axes if path in row.settings},
      "costs": _mean_costs(row.results),
      "values": _estimates(row.results, names),
      "changes": _estimates(row.results, names, "base"),
      "trials": _trials(row.results, histories, points),
    }
    for i, row in enumerate(rows)
  ]


def bases(rows: Sequence[stats.Row], names: Iterable[str]) -> list[dict]:
  """Describes what was measured without training, beside the configurations that are compared."""
  names = list(names)
  return [
    {"label": label, "values": {n: _interval(stats.of_base(row.results, n, key)) for n in names}}
    for row in stats.group_bases(rows)
    for key, label in table.untrained_labels(row).items()
  ]


def state(result: Mapping[str, Any]) -> tuple[str, str]:
  """Says in a word, and in detail, what became of a trial."""
  if "state" in result:  # it is not finished
    return result["state"], result.get("detail", "")
  step = result.get("exited_at") or result.get("diverged_at")
  detail = f"step {step}" if step else ""
  if result.get("exited_at"):
    return "left early", detail
  return ("diverged", detail) if diverged(result) else ("finished", "")


def _indices(rows: Sequence[stats.Row], compared: comparison.Comparison) -> dict[str, int]:
  """Returns {label in the comparison: index on the page}.

  The page's own labels may differ, as it also shows trials that are not compared.
  """
  index_of = {result["trial"]: i for i, row in enumerate(rows) for result in row.results}
  return {one.label: index_of[one.results[0]["trial"]] for one in compared.configurations}


def pairs(rows: Sequence[stats.Row], compared: comparison.Comparison) -> list[dict]:
  """Describes the comparisons of configurations, which are named by their index on the page."""
  indices = _indices(rows, compared)
  return [
    {
      "a": indices[pair.a],
      "b": indices[pair.b],
      "mean": pair.test.difference,
      **_ends(pair.test.interval),
      "p": pair.p_adjusted,
      "better": pair.better,
      "varied": pair.reason or pair.test.varied,
    }
    for pair in compared.pairs
    if pair.test is not None
  ]


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
  found = {}
  for name in names:
    if key is None:
      summary = stats.over_seeds(results, name)
    else:
      summary = stats.difference(results, name, key)
    if not summary.count:
      continue
    found[name] = _interval(summary) | {"count": summary.count, "of": len(results)}
    if summary.mean is not None and (ends := stats.over_examples(results, name, key)):
      found[name] |= _ends(ends)
    if key is None and summary.count > 1 and summary.mean is not None:
      values = [stats.final(result, name) for result in results]
      found[name]["deviation"] = statistics.stdev(x for x in values if x is not None)
  return found


def _interval(summary: stats.Summary) -> dict:
  """Writes a summary as a mean and the ends of its interval."""
  mean, half = summary.mean, summary.half_width
  several = mean is not None and half is not None
  return {"mean": mean, **_ends((mean - half, mean + half) if several else None)}


def _ends(interval: tuple[float, float] | None) -> dict[str, float | None]:
  low, high = interval or (None, None)
  return {"low": low, "high": high}


def _mean_costs(results: Sequence[dict]) -> dict[str, float]:
  """Returns the mean of each cost over the seeds that have it."""
  costs = [_costs(result) for result in results]
  return {
    key: statistics.mean(cost[key] for cost in costs if key in cost)
    for key in COSTS
    if any(key in cost for cost in costs)
  }


def _costs(result: Mapping[str, Any]) -> dict[str, float]:
  return {key: result[key] for key in COSTS if isinstance(result.get(key), (int, float))}


def _trials(
  results: Sequence[dict], histories: Mapping[str, list[dict]], points: int
) -> list[dict]:
  """Describes trials that differ in the seed alone, with their curves at the same steps."""
  logged = [_logged(histories.get(result["trial"], [])) for result in results]
  kept = {}
  for key in dict.fromkeys(key for curves in logged for key in curves):
    steps = sorted({step for curves in logged for step in curves.get(key, {})})
    last = {max(curves[key]) for curves in logged if key in curves}
    kept[key] = last.union(steps[:: max(1, math.ceil(len(steps) / points))])
  return [_trial(result, own, kept) for result, own in zip(results, logged, strict=True)]


def _logged(history: Sequence[dict]) -> dict[str, dict[int, float]]:
  """Returns {name of a curve: {step: value}} of the lines of a metrics.jsonl, in their order.

  A run that went on from a checkpoint may have logged a step again: the later line counts.
  """
  curves: dict[str, dict[int, float]] = {}
  for line in history:
    for key in filter(_CURVES.match, line):
      if _is_number(line[key]):
        curves.setdefault(key, {})[line["step"]] = line[key]
  return curves


def _trial(
  result: dict, logged: Mapping[str, Mapping[int, float]], kept: Mapping[str, set[int]]
) -> dict:
  """Describes one trial, with its curves at the steps that are kept."""
  curves = {
    key: [[step, float(f"{values[step]:.5g}")] for step in sorted(kept[key] & values.keys())]
    for key, values in logged.items()
  }
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
