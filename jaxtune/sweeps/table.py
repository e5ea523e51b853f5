"""A sweep's results as tables of text, with a row for each configuration, task or class."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from typing import NamedTuple

from jaxtune import metrics
from jaxtune.errors import UserError, nearest
from jaxtune.sweeps import stats


class Table(NamedTuple):
  """The cells of a table, as text."""

  header: list[str]
  rows: list[list[str]]
  untrained: int = 0  # count of the first rows, which are of models that were not trained


# {key of a result that says what training costs: what it is called}, and how numbers are written.
COSTS = {"flops": "FLOPs of training", "memory": "bytes of memory", "tokens": "tokens seen"}
UNITS = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1, ""))
# {part of a result that was measured without training: label of its row}
UNTRAINED = {
  "base": "{}",
  "shots": "{}, {}-shot",
  "chance": "most frequent answer",
  "guess": "random choice",
  "length": "length alone",
}


def metric_names(results: Sequence[dict]) -> list[str]:
  """Lists the metrics that any trial has, in order of appearance."""
  parts = [result[part] for result in results for part in ("base", "final")]
  return list(dict.fromkeys(itertools.chain(*parts)))


def choose_metric(results: Sequence[dict], metric: str | None) -> str:
  """Checks `metric`, or chooses the first of test loss, validation loss and any other metric."""
  names = metric_names(results)
  if metric is None:
    return next((n for n in ("test_loss", "validation_loss", *names) if n in names), "test_loss")
  if metric not in names:
    raise UserError(f"no trial has the metric {metric!r}; {nearest(metric, names)}")
  return metric


def untrained_labels(row: stats.Row) -> dict[str, str]:
  """Returns {key of `UNTRAINED`: its label}, as far as the trials of a base have it."""
  shots = row.results[0].get("demonstrations", {}).get("shots")
  return {
    key: label.format(row.label, shots)
    for key, label in UNTRAINED.items()
    if any(result.get(key) for result in row.results)
  }


def build(results: Sequence[dict], metric: str) -> Table:
  """Makes the table of means and 95 % intervals over seeds: the untuned base, then best first.

  Args:
    metric: decides the order of the rows; the other metrics of its split follow it.
  """
  rows = stats.group(results)
  scales = {name: decimals(results, name) for name in _shown(results, metric)}
  compared = {"base": "base"}
  if any(result.get("shots") for result in results):
    compared["shots"] = "few-shot"
  header = [
    "configuration",
    "trained parameters",
    "% of base",
    "seeds",
    *map(title, scales),
    *(f"change of {metrics.title(metric)} from {name}" for name in compared.values()),
    "seconds per trial",
    *COSTS.values(),
  ]
  body = [cells + ["-"] * (len(header) - len(cells)) for cells in untrained(rows, scales)]
  count = len(body)
  for row in stats.best_first(rows, metric):
    trained, total = (row.results[0][f"{part}_parameters"] for part in ("trained", "base"))
    seconds = stats.summarize(result["seconds"] for result in row.results).mean
    body.append(
      [
        row.label,
        f"{trained:,}",
        f"{100 * trained / total:.3g}",
        str(len(row.results)),
        *(measured(row.results, name, digits) for name, digits in scales.items()),
        *(measured(row.results, metric, scales[metric], key) for key in compared),
        f"{seconds:.1f}",
        *(_cost(row.results, key) for key in COSTS),
      ]
    )
  return Table(header, body, count)


def _cost(results: Sequence[dict], key: str) -> str:
  """Writes the mean of a cost in few digits: "1.23 G"; "-" where it is not known."""
  mean = stats.summarize(result.get(key) for result in results).mean
  if mean is None:
    return "-"
  scale, unit = next((s, u) for s, u in UNITS if mean >= 0.9995 * s or s == 1)
  return f"{mean / scale:.3g} {unit}".strip()


def by_task(results: Sequence[dict], metric: str) -> Table | None:
  """Makes the table of a mixture's tasks, a row for each task and a column for each setting.

  Returns None where the trials have no tasks.
  """
  metric = metric.partition("/")[0]
  tasks = [name for name in metric_names(results) if name.startswith(f"{metric}/")]
  if not tasks:
    return None
  rows = stats.best_first(stats.group(results), metric)
  bases = stats.group_bases(stats.group(results))
  header = [f"{title(metric)}, task", *(row.label for row in (*bases, *rows))]
  body = []
  for name in tasks:
    digits = decimals(results, name)
    before = [_cell(stats.of_base(row.results, name), digits) for row in bases]
    after = [measured(row.results, name, digits) for row in rows]
    body.append([_task(name.partition("/")[2]), *before, *after])
  return Table(header, body)


def _task(name: str) -> str:
  return "mean of tasks" if name == "mean" else name


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
  of_data = lambda path: path.split(".")[0] in ("data", "train")
  labels = stats.labels([{k: v for k, v in row.settings.items() if of_data(k)} for row in rows])
  names = [f"{label}: " if len(rows) > 1 else "" for label in labels]
  header = ["task", "examples"]
  header += [name + column for name in names for column in ("share (%)", "drawn", "epochs")]
  drawn = [row.results[0]["mixture"] for row in rows]
  body: list[list[str]] = []
  for task in dict.fromkeys(itertools.chain(*drawn)):
    counts = [mixture.get(task) for mixture in drawn]
    cells = [task, f"{next(count['examples'] for count in counts if count):,}"]
    for count in counts:
      if count is None:
        cells += ["-"] * 3
      else:
        share, examples, epochs = (count[key] for key in ("share", "drawn", "epochs"))
        cells += [f"{100 * share:.1f}", f"{examples:,}", f"{epochs:.2f}"]
    body.append(cells)
  return Table(header, body)


def by_class(result: dict) -> Table | None:
  """Makes the table of a trial's classes or types of spans; None where it has none."""
  if not result.get("classes"):
    return None
  header = ["class", "precision (%)", "recall (%)", "F1 (%)", "examples"]
  percents = lambda row: [f"{row[name]:.1f}" for name in ("precision", "recall", "f1")]
  rows = [[str(row["label"]), *percents(row), str(row["support"])] for row in result["classes"]]
  return Table(header, rows)


def _shown(results: Sequence[dict], metric: str) -> list[str]:
  """Lists the metrics that have a column: `metric`, the others of its split, and two of training.

  Of metrics by task, the mean of the tasks alone has one.
  """
  names = metric_names(results)
  split = metric.partition("_")[0] + "_"
  of_split = [name for name in names if name.startswith(split) and "/" not in name]
  means = [name for name in names if name.startswith(split) and name.endswith("/mean")]
  always = [name for name in ("train_loss", "general_perplexity") if name in names]
  return list(dict.fromkeys([metric, *of_split, *means, *always]))


def untrained(rows: Sequence[stats.Row], scales: dict[str, int]) -> list[list[str]]:
  """Makes the rows of `UNTRAINED`, each once, up to the columns of the metrics.

  Args:
    scales: {metric: digits after the point} of these columns.
  """
  body = []
  for row in stats.group_bases(rows):
    for key, label in untrained_labels(row).items():
      values = [_cell(stats.of_base(row.results, m, key), scales[m]) for m in scales]
      if (cells := [label, "0", "0", "-", *values]) not in body:
        body.append(cells)
  return body


def measured(results: Sequence[dict], metric: str, digits: int, key: str | None = None) -> str:
  """Writes a metric of trials that differ in the seed alone, with its interval.

  The interval is over seeds; of a single seed, over examples.

  Args:
    key: "base" or "shots", for the change of the metric from it.
  """
  if key is None:
    summary = stats.over_seeds(results, metric)
  else:
    summary = stats.difference(results, metric, key)
  sign = "" if key is None else "+"
  ends = stats.over_examples(results, metric, key)
  if summary.mean is not None and ends:
    number = lambda x: f"{x:{sign}.{digits}f}"
    return f"{number(summary.mean)} [{number(ends[0])}, {number(ends[1])}]"
  return _cell(summary, digits, len(results), sign)


def title(metric: str) -> str:
  return f"{metrics.title(metric)} {'↑' if metrics.higher_is_better(metric) else '↓'}"


def decimals(results: Sequence[dict], metric: str) -> int:
  """Returns how many digits a column has after the point.

  Two, three below 10, and below 0.1 as many as show three digits of the largest number, up to 8.
  """
  means = [stats.over_seeds([result], metric).mean for result in results]
  largest = max((abs(mean) for mean in means if mean is not None), default=0)
  if 0 < largest < 0.1:
    return min(8, 2 - math.floor(math.log10(largest)))
  return 3 if largest < 10 else 2


def _cell(summary: stats.Summary, digits: int, seeds: int = 0, sign: str = "") -> str:
  """Writes a summary.

  Args:
    seeds: the number of trials, which is shown where fewer have the metric; 0 for an untuned base.
  """
  if summary.diverged:
    return f"diverged ({summary.diverged} of {summary.count})"
  if summary.mean is None:
    return "-"
  cell = f"{summary.mean:{sign}.{digits}f}"
  if seeds or summary.half_width is not None:
    width = "-" if summary.half_width is None else f"{summary.half_width:.{digits}f}"
    cell += f" ± {width}"
  return cell if summary.count == seeds or not seeds else f"{cell} ({summary.count} of {seeds})"
