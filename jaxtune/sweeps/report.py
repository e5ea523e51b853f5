"""The report of a sweep: results.csv, report.md, report.html and plots."""

from __future__ import annotations

import base64
import html
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from jaxtune import metrics as text
from jaxtune.errors import UserError
from jaxtune.files import write_atomically
from jaxtune.metrics.labels import Confusion
from jaxtune.runs.results import diverged
from jaxtune.sweeps import confusion, curves, grid, plot, stats, table

_CSS = """
:root { color-scheme: light dark; --line: #d0d7de; --faint: #59636e; --stripe: #f6f8fa; }
@media (prefers-color-scheme: dark) {
  :root { --line: #3d444d; --faint: #9198a1; --stripe: #151b23; }
}
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .4rem .8rem; text-align: right; white-space: nowrap; }
th { border-bottom: 2px solid var(--line); vertical-align: bottom; white-space: normal; }
td { border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; }
tr.base td { background: var(--stripe); font-style: italic; }
tr.best td { font-weight: 600; }
p.note, .facts { color: var(--faint); font-size: .9rem; }
img { max-width: 100%; background: white; border-radius: 4px; margin: .5rem 0; }
"""


def write(
  results: Sequence[dict],
  folder: str | Path,
  *,
  metric: str | None = None,
  config: Mapping[str, Any] | None = None,
  notes: Mapping[str, Any] | None = None,
) -> Path:
  """Writes the report of a sweep into its folder and returns the path of report.md.

  Every file is replaced as a whole, so a reader never meets half of one.

  Args:
    results: the result.json of every trial.
    folder: the sweep's folder; learning curves are read from its trials/<name>/metrics.jsonl.
    metric: what the rows are sorted and the plots drawn by; default the test loss.
    config: the configuration before the axes, for the note on LoRA's scale; default each
      result's "config", if it has one.
    notes: further facts to list, such as {"compiled programs": 1, "seconds": 81.5}.

  Raises:
    UserError: no results, an unknown metric, or a folder that cannot be written.
  """
  if not results:
    raise UserError("no finished trial to report on: run the sweep first")
  folder = Path(folder)
  metric = table.choose_metric(results, metric)
  contents = table.build(results, metric)
  bases = len(stats.group_bases(stats.group(results)))
  best = stats.best_first(stats.group(results), metric)[0].results[0]
  more = {
    "By task": table.by_task(results, metric),
    "What was drawn of each task": table.mixtures(results),
    _of(best): table.by_class(best),
  }
  more = {title: part for title, part in more.items() if part is not None}
  remarks = _remarks(results, metric, config, bases)
  facts = _facts(results, notes or {})
  histories = {
    result["trial"]: curves.read_history(folder / "trials" / result["trial"] / "metrics.jsonl")
    for result in results
  }
  figures = plot.figures(results, metric, histories)
  if best.get("confusion"):
    labels, counts = best["confusion"]["labels"], np.asarray(best["confusion"]["counts"])
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    figures["confusion"] = confusion.draw(Confusion(tuple(labels), counts, shares), best["trial"])
  images = {name: _png(figure) for name, figure in figures.items()}
  for name, image in images.items():
    write_atomically(folder / "plots" / f"{name}.png", image)
  write_atomically(folder / "results.csv", table.to_csv(results))
  page = _html(contents, more, remarks, facts, images)
  write_atomically(folder / "report.html", page)
  write_atomically(folder / "report.md", _markdown(contents, more, remarks, facts, list(images)))
  return folder / "report.md"


def _of(result: dict) -> str:
  return f"Classes of {result['trial']}"


def scale_note(results: Sequence[dict], config: Mapping[str, Any] | None = None) -> str | None:
  """Says so where a rank axis also changed LoRA's scale: alpha fixed, so alpha / rank varies."""
  found: dict[tuple, set] = {}
  for result in results:
    flat = {"method.name": result["method"]}
    flat |= grid.flatten(config or result.get("config") or {}) | grid.flatten(result["settings"])
    for path in flat:
      section, _, key = path.rpartition(".")
      alpha = flat.get(f"{section}.alpha")
      number = isinstance(alpha, (int, float)) and not isinstance(alpha, bool)
      if (
        path.startswith("method.") and key == "rank" and number and not flat.get(f"{section}.scale")
      ):
        found.setdefault((section, alpha), set()).add(flat[path])
  changed = {where: ranks for where, ranks in found.items() if len(ranks) > 1}
  if not changed:
    return None
  (section, alpha), ranks = next(iter(changed.items()))
  return (
    f"The rank axis also changed LoRA's scale: alpha = {stats.show(alpha)} is fixed, so "
    f"alpha / rank falls as the rank grows (ranks {', '.join(map(str, sorted(ranks)))}). "
    f"To compare ranks at one scale, set {section}.scale."
  )


def _remarks(
  results: Sequence[dict], metric: str, config: Mapping[str, Any] | None, bases: int
) -> list[str]:
  better = "higher" if text.higher_is_better(metric) else "lower"
  remarks = [
    f"Sorted by {text.title(metric)}, {better} is better. Mean ± half-width of the 95 % "
    "interval (Student's t over seeds); of a single seed [low, high], 95 % over the judged "
    "examples (bootstrap), or - where there is none. The change from the base is paired: both "
    "are measured on the same examples."
  ]
  settings = len(stats.group(results))
  if metric.startswith("test_") and settings > bases:
    remarks.append(
      f"The best of {settings} configurations by a test metric is chosen on the test "
      "set, so its figure is optimistic; choose by a validation metric to report it."
    )
  if metric.startswith("validation_"):
    remarks.append(
      "Validation chose the configurations' order, and the step whose weights were kept, so these "
      "figures are optimistic; report a test metric of the best configuration."
    )
  learnt = [result for result in results if _by_heart(result)]
  if learnt:
    remarks.append(
      f"Learnt by heart ({len(learnt)} of {len(results)} trials): the loss on training examples is "
      "less than half of that on held-out ones. Fewer steps, train.patience, regularize or a "
      f"smaller method may help: {'; '.join(result['trial'] for result in learnt)}."
    )
  lost = [result for result in results if diverged(result)]
  if lost:
    named = "; ".join(f"{result['trial']} ({_when(result)})" for result in lost)
    remarks.append(
      f"Diverged ({len(lost)} of {len(results)} trials): training that was not finite at some step "
      "counts as such, whatever the weights kept from before it score, and so does a metric that "
      f"is not finite. {named}."
    )
  return remarks + list(filter(None, [scale_note(results, config)]))


def _when(result: dict) -> str:
  """Says when a trial diverged, and of which step its kept weights are."""
  if result.get("diverged_at") is None:
    return "in its final metrics"
  return f"at step {result['diverged_at']}, best step {result.get('best_step', 0) or 'none'}"


def _by_heart(result: dict) -> bool:
  found = result["final"]
  held = found.get("validation_loss", found.get("test_loss"))
  seen = found.get("train_loss")
  return held is not None and seen is not None and seen < 0.5 * held


def _facts(results: Sequence[dict], notes: Mapping[str, Any]) -> dict[str, str]:
  seeds = {result["settings"].get("seed", result.get("seed")) for result in results}
  facts: dict[str, Any] = {"trials": len(results), "seeds": len(seeds)}
  sizes = dict.fromkeys(r["base_parameters"] for r in results if r.get("base_parameters"))
  if sizes:
    facts["parameters of the base"] = " and ".join(f"{size:,}" for size in sizes)
  facts["seconds of all trials"] = f"{sum(r.get('seconds') or 0 for r in results):.1f}"
  facts |= notes
  for key in ("data", "versions"):
    distinct = {
      json.dumps(result[key], sort_keys=True, default=str): result[key]
      for result in results
      if result.get(key)
    }
    for i, value in enumerate(distinct.values()):
      facts[key if len(distinct) == 1 else f"{key} ({i + 1})"] = value
  return {key.replace("_", " "): _fact(value) for key, value in facts.items()}


def _fact(value: Any) -> str:
  if isinstance(value, Mapping) and "splits" in value:
    return "; ".join(
      f"{name} {split['kept']:,} examples, {split['trained_tokens']:,} targets"
      for name, split in value["splits"].items()
    )
  if isinstance(value, Mapping):
    return ", ".join(f"{key} {item}" for key, item in grid.flatten(value).items())
  return f"{value:.6g}" if isinstance(value, float) and math.isfinite(value) else str(value)


def _markdown(
  contents: table.Table,
  more: dict[str, table.Table],
  remarks: list[str],
  facts: dict[str, str],
  plots: list[str],
) -> str:
  def line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

  def lines(part: table.Table) -> str:
    rule = ["---"] + ["---:"] * (len(part.header) - 1)
    return "\n".join(map(line, [part.header, rule, *part.rows]))

  parts = ["# Sweep report", lines(contents), *remarks]
  for title, part in more.items():
    parts += [f"## {title}", lines(part)]
  if plots:
    parts += ["## Plots", *(f"![{_caption(name)}](plots/{name}.png)" for name in plots)]
  parts += ["## The sweep", "\n".join(f"- {key}: {value}" for key, value in facts.items())]
  return "\n\n".join(parts) + "\n"


def _html(
  contents: table.Table,
  more: dict[str, table.Table],
  remarks: list[str],
  facts: dict[str, str],
  images: dict[str, bytes],
) -> str:
  def line(cells: Sequence[str], tag: str, kind: str = "") -> str:
    inside = "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells)
    return f'<tr class="{kind}">{inside}</tr>' if kind else f"<tr>{inside}</tr>"

  def grid_of(part: table.Table, kinds: list[str]) -> str:
    kinds = kinds + [""] * len(part.rows)
    body = "\n".join(line(row, "td", kind) for row, kind in zip(part.rows, kinds, strict=False))
    return f"""<div class="scroll"><table>
<thead>{line(part.header, "th")}</thead>
<tbody>
{body}
</tbody></table></div>"""

  first = grid_of(contents, ["base"] * contents.untrained + ["best"])
  others = "\n".join(
    f"<h2>{html.escape(title)}</h2>\n{grid_of(part, [])}" for title, part in more.items()
  )
  notes = "\n".join(f'<p class="note">{html.escape(remark)}</p>' for remark in remarks)
  pictures = "\n".join(
    f'<img alt="{html.escape(_caption(name))}" src="data:image/png;base64,'
    f'{base64.b64encode(image).decode()}">'
    for name, image in images.items()
  )
  listed = "\n".join(
    f"<li>{html.escape(key)}: {html.escape(value)}</li>" for key, value in facts.items()
  )
  return f"""<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>Sweep report</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_CSS}</style></head>
<body>
<h1>Sweep report</h1>
{first}
{notes}
{others}
<h2>Plots</h2>
{pictures}
<h2>The sweep</h2>
<ul class="facts">
{listed}
</ul>
</body>
</html>
"""


def _caption(name: str) -> str:
  return name.replace("-", " against ").replace("_", " ")


def _png(figure: Figure) -> bytes:
  stream = io.BytesIO()
  figure.savefig(stream, format="png", dpi=150)
  return stream.getvalue()
