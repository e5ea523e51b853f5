"""A sweep's results as tables: results.csv has a row for each trial, a report for each setting."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxtune import metrics
from jaxtune.errors import UserError, nearest
from jaxtune.sweeps import grid, stats


class Table(NamedTuple):
  """The cells of a table, as text."""

  header: list[str]
  rows: list[list[str]]
  untrained: int = 0  # so many first rows are of models that were not trained


# What trials are compared with, and the labels of its rows.
UNTRAINED = {
  "base": "{}",
  "shots": "{}, {}-shot",
  "chance": "most frequent answer",
}
ALWAYS = ("train_loss", "general_perplexity")  # metrics that are shown for every split


def metric_names(results: Sequence[dict]) -> list[str]:
  """Lists the numeric metrics of any trial, in order of appearance."""
  return list(
    dict.fromkeys(
      name
      for result in results
      for key in ("base", "final")
      for name, value in result[key].items()
      if value is None or isinstance(value, (int, float)) and not isinstance(value, bool)
    )
  )


def choose_metric(results: Sequence[dict], metric: str | None) -> str:
  """Checks `metric`, or chooses the test loss where there is one, else the first metric."""
  names = metric_names(results)
  if metric is None:
    return "test_loss" if "test_loss" in names or not names else names[0]
  if metric not in names:
    raise UserError(f"no trial has the metric {metric!r}; {nearest(metric, names)}")
  return metric


def to_csv(results: Sequence[dict]) -> str:
  """Writes a row for each trial: settings, counts, time, and metrics with and without training."""
  names = metric_names(results)
  records = []  # of each trial: what it is, its settings, what was measured
  for result in results:
    counts = ("trained_parameters", "steps", "stopped_at", "diverged_at", "seconds")
    measured = {key: result.get(key) for key in counts}
    for key in (*UNTRAINED, "final"):
      if result.get(key):
        measured |= {f"{key}.{name}": result[key].get(name) for name in names}
    identity = {key: result[key] for key in ("trial", "method")}
    records.append((identity, grid.flatten(result["settings"]), measured))
  columns = [(i, key) for i in range(3) for key in dict.fromkeys(k for r in records for k in r[i])]
  stream = io.StringIO()
  writer = csv.writer(stream, lineterminator="\n")
  writer.writerow([key for _, key in columns])
  writer.writerows([_cell(record[i].get(key)) for i, key in columns] for record in records)
  return stream.getvalue()


def build(results: Sequence[dict], metric: str) -> Table:
  """Makes the table of means and 95 % intervals over seeds: the untuned base, then best first.

  Args:
    metric: decides the order of the rows; the other metrics of its split follow it.
  """
  rows = stats.group(results)
  shown = _shown(results, metric)
  scales = {name: _decimals(results, name) for name in shown}
  header = [
    "configuration",
    "trained parameters",
    "% of base",
    "seeds",
    *(_title(name) for name in shown),
    *(f"change of {metrics.title(metric)} from {name}" for name in _compared(results).values()),
    "seconds per trial",
  ]
  body = _untrained(rows, scales, columns_after=len(_compared(results)) + 1)
  untrained = len(body)
  for row in stats.best_first(rows, metric):
    seeds = len(row.results)
    count = row.results[0].get("trained_parameters")
    changes = [_change(row.results, metric, key, scales[metric]) for key in _compared(results)]
    seconds = stats.summarize(result.get("seconds") for result in row.results).mean
    body.append(
      [
        row.label,
        "-" if count is None else f"{count:,}",
        _share(count, row.results[0].get("base_parameters")),
        str(seeds),
        *(_final(row.results, name, scales[name]) for name in shown),
        *changes,
        "-" if seconds is None else f"{seconds:.1f}",
      ]
    )
  return Table(header, body, untrained)


def by_task(results: Sequence[dict], metric: str) -> Table | None:
  """Makes the table of a mixture's tasks, a row for each task and a column for each setting.

  Returns None where the trials have no tasks.
  """
  metric = metric.partition("/")[0]
  tasks = [name for name in metric_names(results) if name.startswith(f"{metric}/")]
  rows = stats.best_first(stats.group(results), metric)
  if not tasks:
    return None
  bases = stats.group_bases(stats.group(results))
  header = [f"{_title(metric)}, task", *(row.label for row in (*bases, *rows))]
  body = []
  for name in tasks:
    digits = _decimals(results, name)
    before = [_interval(stats.of_base(row.results, name), digits) for row in bases]
    after = [_final(row.results, name, digits) for row in rows]
    body.append([name.partition("/")[2].replace("mean", "mean of tasks"), *before, *after])
  return Table(header, body)


def mixtures(results: Sequence[dict]) -> Table | None:
  """Makes the table of what was drawn of a mixture's tasks, a row for each task.

  Each mixture of the sweep has three columns: a task's share of the draws, how many examples were
  drawn, and how often each of its examples was drawn (epochs).

  Returns None where the trials have no mixture.
  """
  rows = [row for row in stats.group(results) if row.results[0].get("mixture")]
  rows = list({json.dumps(row.results[0]["mixture"], sort_keys=True): row for row in rows}.values())
  if not rows:
    return None
  drawn = [row.results[0]["mixture"] for row in rows]
  names = [f"{label}: " if len(rows) > 1 else "" for label in _mixture_labels(rows)]
  header = ["task", "examples"]
  header += [name + column for name in names for column in ("share (%)", "drawn", "epochs")]
  body = []
  for task in dict.fromkeys(task for mixture in drawn for task in mixture):
    counts = [mixture.get(task) for mixture in drawn]
    size = next(count["examples"] for count in counts if count)
    body.append([task, f"{size:,}", *(cell for count in counts for cell in _drawn_cells(count))])
  return Table(header, body)


def _mixture_labels(rows: Sequence[stats.Row]) -> list[str]:
  of_data = lambda path: path.split(".")[0] in ("data", "train")
  return stats.labels([{k: v for k, v in row.settings.items() if of_data(k)} for row in rows])


def _drawn_cells(count: dict | None) -> list[str]:
  if count is None:
    return ["-"] * 3
  return [f"{100 * count['share']:.1f}", f"{count['drawn']:,}", f"{count['epochs']:.2f}"]


def by_class(result: dict) -> Table | None:
  """Makes the table of a trial's classes or types of spans; None where it has none."""
  if not result.get("classes"):
    return None
  header = ["class", "precision (%)", "recall (%)", "F1 (%)", "examples"]
  percents = lambda row: [f"{row[name]:.1f}" for name in ("precision", "recall", "f1")]
  rows = [[str(row["label"]), *percents(row), str(row["support"])] for row in result["classes"]]
  return Table(header, rows)


def _shown(results: Sequence[dict], metric: str) -> list[str]:
  """Lists the metrics that have a column: `metric`, the others of its split, and `ALWAYS`."""
  names = metric_names(results)
  split = metric.partition("_")[0] + "_"
  of_split = [name for name in names if name.startswith(split) and "/" not in name]
  means = [name for name in names if name.startswith(split) and name.endswith("/mean")]
  always = [name for name in ALWAYS if name in names]
  return list(dict.fromkeys([metric, *of_split, *means, *always]))


def _compared(results: Sequence[dict]) -> dict[str, str]:
  """Returns {key in a result: title} of what the trials' changes are measured from."""
  return {"base": "base"} | ({"shots": "few-shot"} if any(r.get("shots") for r in results) else {})


def _untrained(
  rows: Sequence[stats.Row], scales: dict[str, int], columns_after: int
) -> list[list[str]]:
  """Makes the rows of `UNTRAINED`, each once.

  Args:
    scales: {metric: digits after the point} of the columns.
    columns_after: how many columns without a value follow the metrics.
  """
  body: dict[tuple[str, ...], None] = {}
  for row in stats.group_bases(rows):
    for key, label in UNTRAINED.items():
      if any(result.get(key) for result in row.results):
        shots = row.results[0].get("demonstrations", {}).get("shots")
        cells = [_interval(stats.of_base(row.results, m, key), scales[m]) for m in scales]
        body[label.format(row.label, shots), "0", "0", "-", *cells, *["-"] * columns_after] = None
  return [list(cells) for cells in body]


def _final(results: Sequence[dict], metric: str, digits: int) -> str:
  """Writes a metric with its interval: over seeds, or of a single seed over examples."""
  summary = stats.over_seeds(results, metric)
  interval = results[0].get("intervals", {}).get(metric)
  if len(results) > 1 or not interval or summary.mean is None:
    return _interval(summary, digits, len(results))
  low, high = interval
  return f"{summary.mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def _change(results: Sequence[dict], metric: str, key: str, digits: int) -> str:
  """Writes the change of a metric with its interval: over seeds, or of a single seed."""
  change = stats.difference(results, metric, key)
  interval = results[0].get("differences", {}).get(key, {}).get(metric)
  if len(results) > 1 or not interval or change.mean is None:
    return _interval(change, digits, len(results), sign="+")
  mean, low, high = interval
  return f"{mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"


def _title(metric: str) -> str:
  return f"{metrics.title(metric)} {'↑' if metrics.higher_is_better(metric) else '↓'}"


def _cell(value: Any) -> Any:
  """Turns a value into what a cell of a CSV file can hold."""
  if isinstance(value, list):
    return "+".join(map(str, value))
  return "" if value is None else value


def _share(count: int | None, base_parameters: int | None) -> str:
  return f"{100 * count / base_parameters:.3g}" if count is not None and base_parameters else "-"


def _decimals(results: Sequence[dict], metric: str) -> int:
  """Returns how many digits a column has after the point: three below 10, else two."""
  means = [stats.over_seeds([result], metric).mean for result in results]
  return 3 if max((abs(mean) for mean in means if mean is not None), default=0) < 10 else 2


def _interval(summary: stats.Summary, decimals: int, seeds: int = 0, sign: str = "") -> str:
  """Writes a summary.

  Args:
    seeds: how many trials it is of; 0 where that is of no interest, as for the untuned base.
  """
  if summary.diverged:
    return f"diverged ({summary.diverged} of {summary.count})"
  if summary.mean is None:
    return "-"
  cell = f"{summary.mean:{sign}.{decimals}f}"
  if seeds or summary.half_width is not None:
    width = "-" if summary.half_width is None else f"{summary.half_width:.{decimals}f}"
    cell += f" ± {width}"
  return cell if summary.count == seeds or not seeds else f"{cell} ({summary.count} of {seeds})"
