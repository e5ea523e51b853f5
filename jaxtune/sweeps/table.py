"""A sweep's results as tables: one row a trial for machines, one row a setting for readers."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxtune import metrics as text
from jaxtune.errors import UserError, nearest
from jaxtune.sweeps import grid, stats


class Table(NamedTuple):
  header: list[str]
  rows: list[list[str]]  # what is untrained first, then best first
  untrained: int = 0  # how many rows that is


# What trials are compared with, and how its rows are called.
UNTRAINED = {
  "base": "{}",
  "shots": "{}, {}-shot",
  "chance": "most frequent answer",
}
ALWAYS = ("train_loss", "general_perplexity")  # shown whatever the rows are sorted by


def metric_names(results: Sequence[dict]) -> list[str]:
  """Lists the numeric metrics of any trial, in order of appearance."""
  return list(
    dict.fromkeys(
      name
      for result in results
      for part in ("base", "final")
      for name, value in result[part].items()
      if value is None or isinstance(value, (int, float)) and not isinstance(value, bool)
    )
  )


def choose_metric(results: Sequence[dict], metric: str | None) -> str:
  """Checks `metric`, or chooses the test loss where there is one, else the first metric."""
  names = metric_names(results)
  if metric is None:
    return "test_loss" if "test_loss" in names or not names else names[0]
  if metric not in names:
    raise UserError(f"no trial has the metric {metric!r}. {nearest(metric, names)}")
  return metric


def to_csv(results: Sequence[dict]) -> str:
  """Writes one row a trial: all settings, trained parameters, metrics of base and final, time."""
  names = metric_names(results)
  records = []
  for result in results:
    fixed = {"trial": result["trial"], "method": result["method"]}
    counts = {
      key: result.get(key)
      for key in ("trained_parameters", "steps", "stopped_at", "diverged_at", "seconds")
    }
    parts = [part for part in (*UNTRAINED, "final") if result.get(part)]
    measured = {f"{part}.{name}": result[part].get(name) for part in parts for name in names}
    records.append((fixed, grid.flatten(result["settings"]), counts | measured))
  columns = [list(dict.fromkeys(key for record in records for key in record[i])) for i in range(3)]
  stream = io.StringIO()
  writer = csv.writer(stream, lineterminator="\n")
  writer.writerow([column for part in columns for column in part])
  for record in records:
    writer.writerow([_cell(record[i].get(column)) for i in range(3) for column in columns[i]])
  return stream.getvalue()


def build(results: Sequence[dict], metric: str) -> Table:
  """Makes the table of means and 95 % intervals over seeds, the untuned base first.

  Args:
    metric: what rows are sorted by; the other metrics of its split follow it.
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
    *(f"change of {text.title(metric)} from {name}" for name in _compared(results).values()),
    "seconds per trial",
  ]
  body = _untrained(results, rows, shown, scales)
  untrained = len(body)
  for row in stats.best_first(rows, metric):
    seeds = len(row.results)
    count = row.results[0].get("trained_parameters")
    changes = [_change(row.results, metric, part, scales[metric]) for part in _compared(results)]
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
  """Makes the table of a mixture's tasks: a row a task, a column a configuration, best first.

  None where the trials have no tasks.
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
  """Makes the table of what was drawn of a mixture's tasks; None where the trials have none.

  A row is a task. Each mixture of the sweep has three columns: a task's share of the draws, the
  examples drawn, and how often each of its examples came (epochs).
  """
  kept = lambda row: {k: v for k, v in row.settings.items() if k.split(".")[0] in ("data", "train")}
  rows = [row for row in stats.group(results) if row.results[0].get("mixture")]
  found = {json.dumps(row.results[0]["mixture"], sort_keys=True): row for row in rows}
  if not found:
    return None
  names = stats.labels([kept(row) for row in found.values()])
  counts = [row.results[0]["mixture"] for row in found.values()]
  tasks = list(dict.fromkeys(task for one in counts for task in one))
  before = [f"{name}: " if len(names) > 1 else "" for name in names]
  header = ["task", "examples"]
  header += [name + what for name in before for what in ("share (%)", "drawn", "epochs")]
  cells = lambda one: [f"{100 * one['share']:.1f}", f"{one['drawn']:,}", f"{one['epochs']:.2f}"]
  size = lambda task: next(one[task]["examples"] for one in counts if task in one)
  body = [
    [task, f"{size(task):,}"]
    + [cell for one in counts for cell in (cells(one[task]) if task in one else ["-"] * 3)]
    for task in tasks
  ]
  return Table(header, body)


def by_class(result: dict) -> Table | None:
  """Makes the table of one trial's classes, or types of spans; None where it has none."""
  if not result.get("classes"):
    return None
  header = ["class", "precision (%)", "recall (%)", "F1 (%)", "examples"]
  numbers = lambda one: [f"{one[name]:.1f}" for name in ("precision", "recall", "f1")]
  rows = [[str(one["label"]), *numbers(one), str(one["support"])] for one in result["classes"]]
  return Table(header, rows)


def _shown(results: Sequence[dict], metric: str) -> list[str]:
  """Lists the metrics that have a column: those of the split, and what is always of interest."""
  names = metric_names(results)
  split = metric.partition("_")[0] + "_"
  own = [name for name in names if name.startswith(split) and not name.count("/")]
  means = [name for name in names if name.startswith(split) and name.endswith("/mean")]
  more = [name for name in ALWAYS if name in names]
  return list(dict.fromkeys([metric, *own, *means, *more]))


def _compared(results: Sequence[dict]) -> dict[str, str]:
  """Names what the trials' changes are taken from."""
  return {"base": "base"} | ({"shots": "few-shot"} if any(r.get("shots") for r in results) else {})


def _untrained(results, rows: Sequence[stats.Row], shown: list[str], scales: dict) -> list:
  """Makes the rows of the base, of the base with demonstrations and of the most frequent answer."""
  body = []
  for row in stats.group_bases(rows):
    for part, label in UNTRAINED.items():
      if not any(result.get(part) for result in row.results):
        continue
      count = row.results[0].get("demonstrations", {}).get("shots")
      cells = [_interval(stats.of_base(row.results, name, part), scales[name]) for name in shown]
      dashes = ["-"] * (len(_compared(results)) + 1)
      body.append([label.format(row.label, count), "0", "0", "-", *cells, *dashes])
  seen: dict[tuple, list] = {tuple(cells): cells for cells in body}
  return list(seen.values())


def _final(results: Sequence[dict], metric: str, digits: int) -> str:
  """Writes a metric over seeds; of a single seed, with its interval over examples."""
  summary = stats.over_seeds(results, metric)
  found = results[0].get("intervals", {}).get(metric)
  if len(results) > 1 or not found or summary.mean is None:
    return _interval(summary, digits, len(results))
  return f"{summary.mean:.{digits}f} [{found[0]:.{digits}f}, {found[1]:.{digits}f}]"


def _change(results: Sequence[dict], metric: str, part: str, digits: int) -> str:
  """Writes the change over seeds; of a single seed, with its interval over examples."""
  change = stats.difference(results, metric, part)
  found = results[0].get("differences", {}).get(part, {}).get(metric)
  if len(results) > 1 or not found or change.mean is None:
    return _interval(change, digits, len(results), sign="+")
  return f"{found[0]:+.{digits}f} [{found[1]:+.{digits}f}, {found[2]:+.{digits}f}]"


def _title(metric: str) -> str:
  return f"{text.title(metric)} {'↑' if text.higher_is_better(metric) else '↓'}"


def _cell(value: Any) -> Any:
  return "" if value is None else "+".join(map(str, value)) if isinstance(value, list) else value


def _share(count: int | None, base_parameters: int | None) -> str:
  return f"{100 * count / base_parameters:.3g}" if count is not None and base_parameters else "-"


def _decimals(results: Sequence[dict], metric: str) -> int:
  """Returns the digits after the point that a column needs: three below 10, two above."""
  means = [stats.over_seeds([result], metric).mean for result in results]
  return 3 if max((abs(mean) for mean in means if mean is not None), default=0) < 10 else 2


def _interval(summary: stats.Summary, decimals: int, seeds: int = 0, sign: str = "") -> str:
  if summary.diverged:
    return f"diverged ({summary.diverged} of {summary.count})"
  if summary.mean is None:
    return "-"
  cell = f"{summary.mean:{sign}.{decimals}f}"
  if seeds or summary.half_width is not None:
    width = "-" if summary.half_width is None else f"{summary.half_width:.{decimals}f}"
    cell += f" ± {width}"
  return cell if summary.count == seeds or not seeds else f"{cell} ({summary.count} of {seeds})"
