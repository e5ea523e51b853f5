"""The report of a sweep: results.csv, report.md, report.html and plots."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxtune import metrics
from jaxtune.errors import UserError
from jaxtune.files import write_atomically
from jaxtune.metrics.kinds.label import Confusion
from jaxtune.runs import folder as folders
from jaxtune.runs.results import diverged
from jaxtune.sweeps import confusion, document, grid, pages, plot, reproduce, stats, table


def write(
  results: Sequence[dict],
  folder: str | Path,
  *,
  metric: str | None = None,
  config: Mapping[str, Any] | None = None,
  notes: Mapping[str, Any] | None = None,
  given: Mapping[str, Mapping[str, Any]] | None = None,
  unfinished: Sequence[dict] = (),
) -> Path:
  """Writes the report of a sweep into its folder and returns the path of report.md.

  Every file is replaced as a whole, so nobody can read half of one.

  Args:
    results: the result.json of every finished trial. Its learning curves and predictions are read
      from its "folder", or else from trials/<name> of the sweep's folder.
    folder: the sweep's folder.
    metric: the rows are sorted by it, and the plots show it; default the test loss.
    config: the completed configuration that all trials share, for `scale_note`.
    notes: further facts to list, such as {"compiled programs": 1, "seconds": 81.5}.
    given: {name of a sweep: its config as it was given}, from which it can be run again.
    unfinished: trials that have no result yet: {"trial", "settings", "method", "state"}, and empty
      "final" and "base". The page shows them; the other files hold the finished ones alone.

  Raises:
    UserError: no results, an unknown metric, or a folder that cannot be written.
  """
  if not results and not unfinished:
    raise UserError("no finished trial to report on: run the sweep first")
  folder = Path(folder)
  metric = table.choose_metric(results, metric)
  given, everything = given or {}, [*results, *unfinished]
  histories = {one["trial"]: folders.read_history(_place(one, folder)) for one in everything}
  others = _others(results, metric)
  report = pages.Page(
    trials=table.build(results, metric),
    remarks=_remarks(results, metric, config),
    others=others,
    plots=_draw(results, metric, histories, folder / "plots"),
    facts=_facts(results, notes or {}),
  )
  predictions = {one["trial"]: folders.read_predictions(_place(one, folder)) for one in results}
  shown = document.build(everything, metric, histories, predictions, config or {}) | {
    "title": " + ".join(given) or folder.absolute().name,
    "notes": report.remarks[:1],
    "warnings": report.remarks[1:],
    "tables": {title: rows._asdict() for title, rows in others.items()},
    "reproduce": reproduce.describe(results, given, report.facts),
  }
  write_atomically(folder / "results.csv", table.to_csv(results))
  write_atomically(folder / "report.html", pages.to_html(shown))
  write_atomically(folder / "report.md", pages.to_markdown(report))
  return folder / "report.md"


def _place(result: dict, folder: Path) -> Path:
  """Returns the folder of a trial's files."""
  return Path(result.get("folder", folder / "trials" / result["trial"]))


def _others(results: Sequence[dict], metric: str) -> dict[str, table.Table]:
  """Makes {title: table} of the tables that only some sweeps have."""
  others = {
    "By task": table.by_task(results, metric),
    "What was drawn of each task": table.mixtures(results),
  }
  if best := _best(results, metric):
    others[f"Classes of {best['trial']}"] = table.by_class(best)
  return {title: rows for title, rows in others.items() if rows is not None}


def _best(results: Sequence[dict], metric: str) -> dict:
  rows = stats.best_first(stats.group(results), metric)
  return rows[0].results[0] if rows else {}


def _draw(
  results: Sequence[dict], metric: str, histories: Mapping[str, list[dict]], folder: Path
) -> list[str]:
  """Draws the plots, with the confusion matrix of the best trial if it has one; names them."""
  figures = plot.figures(results, metric, histories)
  best = _best(results, metric)
  if best.get("confusion"):
    labels, counts_CC = best["confusion"]["labels"], np.asarray(best["confusion"]["counts"])
    figures["confusion"] = confusion.draw(Confusion(tuple(labels), counts_CC), best["trial"])
  for name, figure in figures.items():
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=150)
    write_atomically(folder / f"{name}.png", stream.getvalue())
  return list(figures)


def scale_note(results: Sequence[dict], config: Mapping[str, Any] | None = None) -> str | None:
  """Returns a warning where ranks were compared at a fixed alpha, so that LoRA's scale varied."""
  ranks_at: dict[tuple[str, float], set[int]] = {}
  for result in results:
    flat = {"method.name": result["method"]}
    flat |= grid.flatten(config or {}) | grid.flatten(result["settings"])
    for path in flat:
      section, _, key = path.rpartition(".")
      alpha = flat.get(f"{section}.alpha")
      if (
        path.startswith("method.") and key == "rank" and alpha and not flat.get(f"{section}.scale")
      ):
        ranks_at.setdefault((section, alpha), set()).add(flat[path])
  for (section, alpha), ranks in ranks_at.items():
    if len(ranks) > 1:
      return (
        f"The rank axis also changed LoRA's scale: alpha = {stats.show(alpha)} is fixed, so "
        f"alpha / rank falls as the rank grows (ranks {', '.join(map(str, sorted(ranks)))}). "
        f"To compare ranks at one scale, set {section}.scale."
      )
  return None


def _remarks(results: Sequence[dict], metric: str, config: Mapping[str, Any] | None) -> list[str]:
  """Says how to read the table, and what its readers should beware of."""
  better = "higher" if metrics.higher_is_better(metric) else "lower"
  remarks = [
    f"Sorted by {metrics.title(metric)}, {better} is better. Mean ± half-width of the 95 % "
    "interval (Student's t over seeds); of a single seed [low, high], 95 % over the judged "
    "examples (bootstrap), or - where there is none. The change from the base is paired: both "
    "are measured on the same examples."
  ]
  rows = stats.group(results)
  if metric.startswith("test_") and len(rows) > len(stats.group_bases(rows)):
    remarks.append(
      f"The best of {len(rows)} configurations by a test metric is chosen on the test "
      "set, so its figure is optimistic; choose by a validation metric to report it."
    )
  if metric.startswith("validation_"):
    remarks.append(
      "Validation chose the configurations' order, and the step whose weights were kept, so these "
      "figures are optimistic; report a test metric of the best configuration."
    )
  if memorized := [result for result in results if _memorized(result)]:
    remarks.append(
      f"Learnt by heart ({len(memorized)} of {len(results)} trials): the loss on training examples "
      "is less than half of that on held-out ones. Fewer steps, train.patience, regularize or a "
      f"smaller method may help: {'; '.join(result['trial'] for result in memorized)}."
    )
  if failed := [result for result in results if diverged(result)]:
    named = "; ".join(f"{result['trial']} ({_when(result)})" for result in failed)
    remarks.append(
      f"Diverged ({len(failed)} of {len(results)} trials): training that was not finite at some "
      "step counts as such, whatever the weights kept from before it score, and so does a metric "
      f"that is not finite. {named}."
    )
  if note := scale_note(results, config):
    remarks.append(note)
  return remarks


def _when(result: dict) -> str:
  """Says when a trial diverged, and at which step its kept weights were."""
  if result.get("diverged_at") is None:
    return "in its final metrics"
  return f"at step {result['diverged_at']}, best step {result.get('best_step', 0) or 'none'}"


def _memorized(result: dict) -> bool:
  """Says whether the loss on training examples is less than half of that on held-out ones."""
  final = result["final"]
  held_out = final.get("validation_loss", final.get("test_loss", 0.0))
  return final.get("train_loss", math.inf) < 0.5 * held_out


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
