"""The report of a sweep as a page of Markdown and as a page of HTML."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from typing import NamedTuple

from jaxtune.sweeps.table import Table

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


_HTML = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>Sweep report</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>{css}</style></head>
<body>
<h1>Sweep report</h1>
{trials}
{remarks}
{others}
<h2>Plots</h2>
{plots}
<h2>The sweep</h2>
<ul class="facts">
{facts}
</ul>
</body>
</html>
"""
_HTML_TABLE = """<div class="scroll"><table>
<thead>{header}</thead>
<tbody>
{rows}
</tbody></table></div>"""


class Page(NamedTuple):
  """What a report says, in this order."""

  trials: Table
  remarks: list[str]
  others: dict[str, Table]  # {title: table}
  plots: dict[str, bytes]  # {name: PNG}
  facts: dict[str, str]


def to_markdown(page: Page) -> str:
  """Writes a page as Markdown, with its plots as plots/NAME.png."""
  sections = ["# Sweep report", _markdown_table(page.trials), *page.remarks]
  for title, table in page.others.items():
    sections += [f"## {title}", _markdown_table(table)]
  if page.plots:
    sections += ["## Plots", *(f"![{_caption(name)}](plots/{name}.png)" for name in page.plots)]
  facts = "\n".join(f"- {key}: {value}" for key, value in page.facts.items())
  return "\n\n".join([*sections, "## The sweep", facts]) + "\n"


def to_html(page: Page) -> str:
  """Writes a page as HTML that needs no other file: its plots are in it."""
  escape = html.escape
  trial_kinds = ["base"] * page.trials.untrained + ["best"]
  return _HTML.format(
    css=_CSS,
    trials=_html_table(page.trials, trial_kinds),
    remarks="\n".join(f'<p class="note">{escape(remark)}</p>' for remark in page.remarks),
    others="\n".join(
      f"<h2>{escape(title)}</h2>\n{_html_table(table)}" for title, table in page.others.items()
    ),
    plots="\n".join(
      f'<img alt="{escape(_caption(name))}" src="data:image/png;base64,'
      f'{base64.b64encode(image).decode()}">'
      for name, image in page.plots.items()
    ),
    facts="\n".join(
      f"<li>{escape(key)}: {escape(value)}</li>" for key, value in page.facts.items()
    ),
  )


def _markdown_table(table: Table) -> str:
  rule = ["---"] + ["---:"] * (len(table.header) - 1)
  return "\n".join(
    "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
    for cells in (table.header, rule, *table.rows)
  )


def _html_table(table: Table, kinds: Sequence[str] = ()) -> str:
  """Writes a table.

  Args:
    kinds: CSS classes of the first rows.
  """
  kinds = [*kinds, *[""] * len(table.rows)]
  rows = [_html_row(cells, "td", kind) for cells, kind in zip(table.rows, kinds, strict=False)]
  return _HTML_TABLE.format(header=_html_row(table.header, "th"), rows="\n".join(rows))


def _html_row(cells: Sequence[str], tag: str, kind: str = "") -> str:
  inside = "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells)
  return f'<tr class="{kind}">{inside}</tr>' if kind else f"<tr>{inside}</tr>"


def _caption(name: str) -> str:
  return name.replace("-", " against ").replace("_", " ")
