"""A sweep's results as files for other programs: CSV, Parquet and LaTeX."""

from __future__ import annotations

import csv
import io
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jaxtune import libraries
from jaxtune.sweeps import grid, stats, table

arrow = libraries.Lazy("pyarrow")
parquet = libraries.Lazy("pyarrow.parquet")

_COUNTS = (
  "trained_parameters", "steps", "stopped_at", "exited_at", "diverged_at", "tokens", "flops",
  "flops_per_update", "memory", "seconds",
)  # fmt: skip
_LATEX = {
  "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
  "±": r"$\pm$", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "<": "$<$", ">": "$>$", "|": "$|$",
  '"': r"\textquotedbl{}", "…": r"\ldots{}", "[": "{[}", "]": "{]}",
} | {character: f"\\{character}" for character in "&%$#_{}"}  # fmt: skip


def columns(results: Sequence[dict], failed: Sequence[dict]) -> dict[str, list[Any]]:
  """Returns a value for each trial: its settings, counts, time, metrics with and without training.

  None stands for what a trial does not have.

  Args:
    failed: the trials that have no result, and why: their "detail".
  """
  names = table.metric_names(results)

  def measured(result: dict) -> dict[str, Any]:
    found = {key: result.get(key) for key in _COUNTS}
    for part in (*table.UNTRAINED, "final"):
      if result.get(part):
        found |= {f"{part}.{name}": result[part].get(name) for name in names}
    return found

  described = [(result, measured(result)) for result in results]
  described += [(one, {"failed": one["detail"]}) for one in failed]
  records = [  # of each trial: what it is, its settings, what was measured
    ({key: one[key] for key in ("trial", "method")}, grid.flatten(one["settings"]), found)
    for one, found in described
  ]
  keys: list[str] = []
  for parts in zip(*records, strict=True):  # first what all trials are, then all their settings
    keys += dict.fromkeys(itertools.chain(*parts))
  rows = [identity | settings | found for identity, settings, found in records]
  return {key: [row.get(key) for row in rows] for key in dict.fromkeys(keys)}


def to_csv(values: Mapping[str, Sequence[Any]]) -> str:
  """Writes columns as CSV; an empty cell stands for None."""
  stream = io.StringIO()
  writer = csv.writer(stream, lineterminator="\n")
  writer.writerow(values)
  for row in zip(*values.values(), strict=True):
    writer.writerow([stats.show(x) if isinstance(x, list) else x for x in row])
  return stream.getvalue()


def to_parquet(values: Mapping[str, Sequence[Any]]) -> bytes:
  """Writes columns as Parquet: numbers and truth values as such, anything else as text."""
  made = {name: arrow.array(_of_one_type(column)) for name, column in values.items()}
  stream = io.BytesIO()
  parquet.write_table(arrow.table(made), stream)
  return stream.getvalue()


def _of_one_type(column: Sequence[Any]) -> list[Any]:
  types = {type(value) for value in column if value is not None}
  if types <= {int, float} and types:
    large = any(isinstance(x, int) and abs(x) >= 2**63 for x in column)
    kind = float if large or float in types else int
    return [None if x is None else kind(x) for x in column]
  if types == {bool}:
    return list(column)
  return [None if x is None else stats.show(x) for x in column]


def to_latex(rows: table.Table, caption: str) -> str:
  """Writes a table for a paper's appendix; it needs the package booktabs.

  Args:
    caption: plain text.
  """
  line = lambda cells: " & ".join(_escaped(" ".join(cell.split())) for cell in cells) + r" \\"
  body = [line(cells) for cells in rows.rows]
  if rows.untrained and rows.untrained < len(body):
    body.insert(rows.untrained, r"\midrule")
  return "\n".join([
    r"\begin{table}", r"\centering", rf"\caption{{{_escaped(caption)}}}", r"\label{tab:sweep}",
    rf"\begin{{tabular}}{{l{'r' * (len(rows.header) - 1)}}}", r"\toprule", line(rows.header),
    r"\midrule", *body, r"\bottomrule", r"\end{tabular}", r"\end{table}", "",
  ])  # fmt: skip


def _escaped(text: str) -> str:
  """Escapes text for LaTeX, with a minus sign before numbers."""
  plain = "".join(_LATEX.get(character, character) for character in text)
  return re.sub(r"(?<![\w.$-])-(?=[\d.])", "$-$", plain)
