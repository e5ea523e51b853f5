"""The report of a sweep: report.md, report.html, results.csv and .parquet, table.tex and plots."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from typing_extensions import TypedDict

from jaxtune import metrics, schema
from jaxtune.files import write_atomically
from jaxtune.metrics.kinds.label import Confusion
from jaxtune.runs.folder import read_history
from jaxtune.sweeps import comparison, confusion, exports, grid, pages, plot, table


class Failure(TypedDict):
  """What is read of a trial's failed.json."""

  __pydantic_config__ = schema.STRICT
  reason: str


class Curve(TypedDict):
  """What is read of a configuration in a sweep's tuning.json."""

  __pydantic_config__ = schema.STRICT
  chosen: float
  at_edge: bool


def write(
  results: Sequence[dict],
  folder: str | Path,
  *,
  metric: str | None = None,
  reference: str | None = None,
  config: Mapping[str, Any] | None = None,
  notes: Mapping[str, Any] | None = None,
) -> Path:
  """Writes the report of a sweep into its folder and returns the path of report.md.

  Every file is replaced as a whole, so nobody can read half of one.

  Args:
    results: the result.json of every trial.
    folder: the sweep's folder; learning curves are read from its trials/<name>/metrics.jsonl.
    metric: the rows are sorted by it, and the plots show it; default the test loss.
    config: the completed configuration that all trials share, for the warnings.
    reference: the label, or a trial, of what the others are compared with; default the best.
    notes: further facts to list, such as {"compiled programs": 1, "seconds": 81.5}.

  Raises:
    UserError: no results, an unknown metric, or a folder that cannot be written.
  """
  folder = Path(folder)
  compared = comparison.compare(
    [{"folder": str(folder / "trials" / result["trial"])} | result for result in results],
    metric,
    reference=reference,
    config=config,
    failed=read_failed(folder),
    curves=read_curves(folder),
  )
  page = _page(compared, folder, _facts(results, notes or {}))
  for name, image in page.plots.items():
    write_atomically(folder / "plots" / f"{name}.png", image)
  write_atomically(folder / "results.csv", exports.to_csv(compared.columns))
  write_atomically(folder / "results.parquet", exports.to_parquet(compared.columns))
  write_atomically(folder / "table.tex", exports.to_latex(page.trials, page.reading))
  write_atomically(folder / "report.html", pages.to_html(page))
  write_atomically(folder / "report.md", pages.to_markdown(page))
  return folder / "report.md"


def _page(compared: comparison.Comparison, folder: Path, facts: dict[str, str]) -> pages.Page:
  """Gathers what the pages show of a comparison, and draws its plots."""
  finished = [result for row in compared.configurations for result in row.results]
  best, plots = finished[0], {}
  for name, figure in _figures(finished, folder, compared.metric, best).items():
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=150)
    plots[name] = stream.getvalue()
  others = {
    "All columns": compared.tables["all columns"],
    "Comparisons": compared.tables["comparisons"],
    "By task": table.by_task(finished, compared.metric),
    "What was drawn of each task": table.mixtures(finished),
    f"Classes of {best['trial']}": table.by_class(best),
  }
  return pages.Page(
    trials=compared.tables["main"],
    warnings=[caution.text for caution in compared.warnings],
    reading=_reading(compared),
    others={title: rows for title, rows in others.items() if rows is not None and rows.rows},
    plots=plots,
    facts=facts,
  )


def _figures(results: Sequence[dict], folder: Path, metric: str, best: dict) -> dict[str, Figure]:
  """Draws {name: plot}, with the confusion matrix of the best trial if it has one."""
  histories = {
    result["trial"]: read_history(folder / "trials" / result["trial"]) for result in results
  }
  figures = plot.figures(results, metric, histories)
  if best.get("confusion"):
    labels, counts_CC = best["confusion"]["labels"], np.asarray(best["confusion"]["counts"])
    figures["confusion"] = confusion.draw(Confusion(tuple(labels), counts_CC), best["trial"])
  return figures


def _reading(compared: comparison.Comparison) -> str:
  """Says how to read the table."""
  title, better = metrics.title(compared.metric), "higher" if compared.higher_is_better else "lower"
  reading = (
    f"Sorted by {title}, {better} is better. Mean ± half-width of the 95 % interval (Student's t "
    "over seeds); of a single seed [low, high], 95 % over the judged examples (bootstrap), or - "
    f"where there is none. {compared.replicates}"
  )
  if len(compared.configurations) == 1:
    return f"{reading} The change from the base is paired: both are measured on the same examples."
  return (
    f"{reading} Differences are paired by seed and, where scores by example are there, by example; "
    "p is two-sided, with Holm's correction for all pairs, as the same results have chosen the "
    "best one, or for all comparisons with a configuration that was named."
  )


def read_failed(folder: Path) -> dict[str, str]:
  """Returns {trial: reason} of the trials of a sweep that failed and have no result."""
  found = {}
  for path in sorted(folder.glob("trials/*/failed.json")):
    if not (path.parent / "result.json").exists():
      said = schema.read_json(path)
      schema.check(str(path), said, Failure)
      found[path.parent.name] = said["reason"]
  return found


def read_curves(folder: Path) -> dict[str, Curve]:
  """Returns how a sweep chose the learning rate of each configuration; {} where it did not."""
  path = folder / "tuning.json"
  if not path.exists():
    return {}
  curves = schema.read_json(path)
  schema.check(str(path), curves, dict[str, Curve])
  return curves


def _facts(results: Sequence[dict], notes: Mapping[str, Any]) -> dict[str, str]:
  """Returns {name: value} of the sweep's counts, its time, `notes`, its data and its versions."""
  sizes = dict.fromkeys(result["base_parameters"] for result in results)
  facts: dict[str, Any] = {
    "trials": len(results),
    "seeds": len({result["settings"].get("seed") for result in results}),
    "parameters of the base": " and ".join(f"{size:,}" for size in sizes),
    "seconds of all trials": f"{sum(result['seconds'] for result in results):.1f}",
    **notes,
  }
  for key in ("data", "versions"):
    distinct = {
      json.dumps(result[key], sort_keys=True): result[key] for result in results if key in result
    }
    for i, value in enumerate(distinct.values()):
      facts[key if len(distinct) == 1 else f"{key} ({i + 1})"] = value
  return {key.replace("_", " "): _fact(value) for key, value in facts.items()}


def _fact(value: Any) -> str:
  """Writes a value in one line; a report of the data as the sizes of its splits."""
  if isinstance(value, Mapping) and "splits" in value:
    return "; ".join(
      f"{name} {split['kept']:,} examples, {split['trained_tokens']:,} targets"
      for name, split in value["splits"].items()
    )
  if isinstance(value, Mapping):
    return ", ".join(f"{key} {item}" for key, item in grid.flatten(value).items())
  return f"{value:.6g}" if isinstance(value, float) and math.isfinite(value) else str(value)
