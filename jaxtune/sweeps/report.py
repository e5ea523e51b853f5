"""The report of a sweep: report.md, report.html, results.csv and .parquet, table.tex and plots."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from jaxtune import metrics
from jaxtune.errors import UserError
from jaxtune.files import write_atomically
from jaxtune.metrics.kinds.label import Confusion
from jaxtune.runs import folder as folders
from jaxtune.sweeps import (
  analysed,
  comparison,
  confusion,
  document,
  exports,
  grid,
  heat_plot,
  pages,
  plot,
  preferences,
  reproduce,
  samples,
  table,
)

_MAPPED = ("Loss with changes cut to a rank", "Shared subspaces")  # tables that the page maps
_HARDWARE = ("device", "devices", "cores", "machine")  # of what a result says as versions


def write(
  results: Sequence[dict],
  folder: str | Path,
  *,
  metric: str | None = None,
  reference: str | None = None,
  config: Mapping[str, Any] | None = None,
  notes: Mapping[str, Any] | None = None,
  given: Mapping[str, Mapping[str, Any]] | None = None,
  unfinished: Sequence[dict] = (),
  curves: Mapping[str, Mapping] | None = None,
  analysis: analysed.Analysis | None = None,
) -> Path:
  """Writes the report of a sweep into its folder and returns the path of report.md.

  Every file is replaced as a whole, so nobody can read half of one. Where no trial is finished,
  the page alone is written.

  Args:
    results: the result.json of every finished trial. Its learning curves and predictions are read
      from its "folder", or else from trials/<name> of the sweep's folder.
    folder: the sweep's folder.
    metric: the rows are sorted by it, and the plots show it; default the test loss, else that of
      validation.
    reference: the label, or a trial, of what the others are compared with; default the best.
    config: the completed configuration that all trials share, for the warnings.
    notes: further facts to list, such as {"compiled programs": 1, "seconds": 81.5}.
    given: {name of a sweep: its config as it was given}, from which it can be run again.
    unfinished: trials that have no result; see `collect.read`. The page shows them; the other files
      name those that failed.
    curves: {configuration: how its learning rate was chosen}, as in tuning.json.
    analysis: what `jaxtune analyse` measured; see `analysed.read`.

  Raises:
    UserError: no trial, an unknown metric or reference, or a folder that cannot be written.
  """
  if not results and not unfinished:
    raise UserError("no finished trial to report on: run the sweep first")
  folder = Path(folder)
  results = [{"folder": str(folder / "trials" / one["trial"])} | one for one in results]
  every = [*results, *unfinished]
  histories = {one["trial"]: folders.read_history(Path(one["folder"])) for one in every}
  facts, compared = _facts(results, notes or {}), None
  if any(not one.get("exited_at") for one in results):
    compared = comparison.compare(
      results,
      metric,
      reference=reference,
      config=config,
      failed=[one for one in unfinished if one["state"] == "failed"],
      curves=curves,
    )
  contents = document.build(every, compared, histories, config or {}, analysis)
  contents |= {
    "title": " + ".join(given or {}) or folder.absolute().name,
    "notes": [_reading(compared, "[low, high]")] if compared else [],
    "tables": _on_page(_others(compared, histories, analysis)),
    "tuning": [{"name": name, **curve} for name, curve in (curves or {}).items()],
    "reproduce": reproduce.describe(results, given or {}, facts, metric, reference),
  }
  write_atomically(folder / "report.html", pages.to_html(contents))
  _write_files(compared, histories, facts, folder, analysis)  # last: a report is known by its page
  return folder / "report.md"


def _write_files(
  compared: comparison.Comparison | None,
  histories: Mapping[str, list[dict]],
  facts: Mapping[str, str],
  folder: Path,
  analysis: analysed.Analysis | None,
) -> None:
  """Writes all files of a report but its page; none where nothing is compared."""
  if compared is None:
    return
  page = pages.Page(
    trials=compared.tables["main"],
    warnings=[caution.text for caution in compared.warnings],
    reading=_reading(compared),
    others={"All columns": compared.tables["all columns"]} | _others(compared, histories, analysis),
    plots=_draw(compared, histories, folder / "plots", analysis),
    facts=dict(facts),
  )
  write_atomically(folder / "results.csv", exports.to_csv(compared.columns))
  write_atomically(folder / "results.parquet", exports.to_parquet(compared.columns))
  write_atomically(folder / "table.tex", exports.to_latex(page.trials, page.reading))
  write_atomically(folder / "report.md", pages.to_markdown(page))


def _others(
  compared: comparison.Comparison | None,
  histories: Mapping[str, list[dict]],
  analysis: analysed.Analysis | None,
) -> dict[str, table.Table]:
  """Makes {title: table} of the tables beside the configurations' that a sweep has."""
  if compared is None:
    return {}
  finished = [result for row in compared.configurations for result in row.results]
  tests, count = compared.tables["comparisons"], len(compared.configurations)
  some = len(tests.rows) < count * (count - 1) // 2
  others = {
    "Comparisons" + " with the reference" * some: tests,
    "By task": table.by_task(finished, compared.metric),
    "What was drawn of each task": table.mixtures(finished),
    f"Classes of {finished[0]['trial']}": table.by_class(finished[0]),
    **preferences.tables(finished[0]),
    **samples.while_training(finished[0]["trial"], histories.get(finished[0]["trial"], [])),
  }
  if analysis is not None:
    others |= analysed.tables(analysed.configurations(compared.configurations, analysis), analysis)
  return {title: rows for title, rows in others.items() if rows is not None and rows.rows}


def _on_page(tables: Mapping[str, table.Table]) -> dict[str, dict]:
  """Returns the tables that the page has, which draws others as maps."""
  return {title: rows._asdict() for title, rows in tables.items() if title not in _MAPPED}


@matplotlib.rc_context({"text.parse_math": False})  # a name may hold dollar signs
def _draw(
  compared: comparison.Comparison,
  histories: Mapping[str, list[dict]],
  folder: Path,
  analysis: analysed.Analysis | None,
) -> list[str]:
  """Draws the plots, with the confusion matrix of the best trial if it has one; names them."""
  finished = [result for row in compared.configurations for result in row.results]
  figures = plot.figures(finished, compared.metric, histories)
  if matrix := finished[0].get("confusion"):
    counts = Confusion(tuple(matrix["labels"]), np.asarray(matrix["counts"]))
    figures["confusion"] = confusion.draw(counts, finished[0]["trial"])
  figures |= preferences.figures(finished[0])
  if analysis is not None:
    measured = analysed.configurations(compared.configurations, analysis)
    figures |= heat_plot.figures(measured, analysis)
  for name, figure in figures.items():
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=150)
    write_atomically(folder / f"{name}.png", stream.getvalue())
  return list(figures)


def _reading(compared: comparison.Comparison, interval: str = "± half-width") -> str:
  """Says how to read the table.

  Args:
    interval: how an interval over seeds is written.
  """
  title, better = metrics.title(compared.metric), "higher" if compared.higher_is_better else "lower"
  reading = (
    f"Sorted by {title}, {better} is better. Mean {interval} of the 95 % interval (Student's "
    "t over seeds); of a single seed [low, high], 95 % over the judged examples (bootstrap), or - "
    f"where there is none. {compared.replicates}"
  )
  if len(compared.configurations) == 1:
    return f"{reading} The change from the base is paired: both are measured on the same examples."
  return (
    f"{reading} Differences are paired by seed and, where scores by example are there, by example; "
    "p is two-sided, with Holm's correction for all pairs, as the same results have chosen the "
    "best one, or for all comparisons with a configuration that was named."
  )


def _facts(results: Sequence[dict], notes: Mapping[str, Any]) -> dict[str, str]:
  """Returns {name: value} of the sweep's counts, its time, `notes`, data, machine and versions."""
  sizes = dict.fromkeys(result["base_parameters"] for result in results)
  facts: dict[str, Any] = {
    "trials": len(results),
    "seeds": len({result["settings"].get("seed") for result in results}),
    "parameters of the base": " and ".join(f"{size:,}" for size in sizes),
    "seconds of all trials": f"{sum(result['seconds'] for result in results):.1f}",
    **notes,
  }
  said = {"data": [], "hardware": [], "versions": []}
  for result in results:
    versions = dict(result.get("versions", {}))
    said["hardware"].append({key: versions.pop(key) for key in _HARDWARE if key in versions})
    said["versions"].append(versions)
    said["data"].append(result.get("data", {}))
  for key, values in said.items():
    distinct = {json.dumps(value, sort_keys=True): value for value in values if value}
    for i, value in enumerate(distinct.values()):
      facts[key if len(distinct) == 1 else f"{key} ({i + 1})"] = value
  return {key.replace("_", " "): _fact(value) for key, value in facts.items() if value != ""}


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
