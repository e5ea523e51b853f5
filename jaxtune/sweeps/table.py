"""A sweep's results as tables: one row a trial for machines, one row a setting for readers."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxtune.errors import UserError, nearest
from jaxtune.evaluators import metrics as text
from jaxtune.sweeps import grid, stats


class Table(NamedTuple):
  header: list[str]
  rows: list[list[str]]  # the untuned base first, then best first


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
      key: result.get(key) for key in ("trained_parameters", "steps", "stopped_at", "seconds")
    }
    measured = {
      f"{part}.{name}": result[part].get(name) for part in ("base", "final") for name in names
    }
    records.append((fixed, grid.flatten(result["settings"]), counts | measured))
  columns = [list(dict.fromkeys(key for record in records for key in record[i])) for i in range(3)]
  stream = io.StringIO()
  writer = csv.writer(stream, lineterminator="\n")
  writer.writerow([column for part in columns for column in part])
  for record in records:
    writer.writerow([_cell(record[i].get(column)) for i in range(3) for column in columns[i]])
  return stream.getvalue()


def build(results: Sequence[dict], metric: str, base_parameters: int | None = None) -> Table:
  """Makes the table of means and 95 % intervals over seeds, the untuned base first.

  Args:
    metric: what rows are sorted by; the other metrics of its split follow it.
    base_parameters: of the whole base, for the share that is trained.
  """
  rows = stats.group(results)
  split = metric.partition("_")[0] + "_"
  shown = [metric] + [
    name for name in metric_names(results) if name.startswith(split) and name != metric
  ]
  scales = {name: _decimals(results, name) for name in shown}
  header = [
    "configuration",
    "trained parameters",
    "% of base",
    "seeds",
    *(_title(name) for name in shown),
    f"change of {text.title(metric)} from base",
    "seconds per trial",
  ]
  body = [
    [
      row.label,
      "0",
      "0",
      "-",
      *(_interval(stats.of_base(row.results, name), scales[name]) for name in shown),
      "-",
      "-",
    ]
    for row in stats.group_bases(rows)
  ]
  for row in stats.best_first(rows, metric):
    seeds = len(row.results)
    count = row.results[0].get("trained_parameters")
    change = stats.difference(row.results, metric)
    seconds = stats.summarize(result.get("seconds") for result in row.results).mean
    body.append(
      [
        row.label,
        "-" if count is None else f"{count:,}",
        _share(count, base_parameters),
        str(seeds),
        *(_interval(stats.over_seeds(row.results, name), scales[name], seeds) for name in shown),
        _interval(change, scales[metric], seeds, sign="+"),
        "-" if seconds is None else f"{seconds:.1f}",
      ]
    )
  return Table(header, body)


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
