"""The report of a sweep as a page of Markdown and as a page of HTML."""

from __future__ import annotations

import base64
from typing import NamedTuple

from jinja2 import Environment

from jaxtune.sweeps.table import Table

_HTML = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>Sweep report</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>
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
</style></head>
{% macro show(table, kinds) %}
<div class="scroll"><table>
<thead><tr>{% for cell in table.header %}<th>{{ cell }}</th>{% endfor %}</tr></thead>
<tbody>
{% for cells in table.rows %}
<tr class="{{ kinds[loop.index0] }}">{% for cell in cells %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</tbody></table></div>
{% endmacro %}
<body>
<h1>Sweep report</h1>
{% if page.warnings %}
<p>Beware:</p>
<ul class="warnings">
{% for warning in page.warnings %}
<li>{{ warning }}</li>
{% endfor %}
</ul>
{% endif %}
{{ show(page.trials, ["base"] * page.trials.untrained + ["best"]) }}
<p class="note">{{ page.reading }}</p>
{% for title, table in page.others.items() %}
<h2>{{ title }}</h2>
{{ show(table, []) }}
{% endfor %}
<h2>Plots</h2>
{% for name, image in page.plots.items() %}
<img alt="{{ caption(name) }}" src="data:image/png;base64,{{ base64(image) }}">
{% endfor %}
<h2>The sweep</h2>
<ul class="facts">
{% for key, value in page.facts.items() %}
<li>{{ key }}: {{ value }}</li>
{% endfor %}
</ul>
</body>
</html>
"""


_FOLDED = ("All columns", "Comparisons")


class Page(NamedTuple):
  """The content of a report, in the order in which it is shown."""

  trials: Table
  warnings: list[str]
  reading: str
  others: dict[str, Table]  # {title: table}; of these, `_FOLDED` are shown on demand
  plots: dict[str, bytes]  # {name: PNG}
  facts: dict[str, str]


def to_markdown(page: Page) -> str:
  """Writes a page as Markdown, with its plots as plots/NAME.png."""
  sections = ["# Sweep report"]
  if page.warnings:
    sections += ["Beware:", "\n".join(f"- {warning}" for warning in page.warnings)]
  sections += [_markdown_table(page.trials), page.reading]
  for title, table in page.others.items():
    shown = _markdown_table(table)
    folded = f"<details><summary>{title}</summary>\n\n{shown}\n\n</details>"
    sections += [folded] if title in _FOLDED else [f"## {title}", shown]
  if page.plots:
    sections += ["## Plots", *(f"![{_caption(name)}](plots/{name}.png)" for name in page.plots)]
  facts = "\n".join(f"- {key}: {value}" for key, value in page.facts.items())
  return "\n\n".join([*sections, "## The sweep", facts]) + "\n"


def to_html(page: Page) -> str:
  """Writes a page as HTML that needs no other file: its plots are in it."""
  environment = Environment(autoescape=True, trim_blocks=True, keep_trailing_newline=True)
  encoded = lambda image: base64.b64encode(image).decode()
  return environment.from_string(_HTML).render(page=page, caption=_caption, base64=encoded)


def _markdown_table(table: Table) -> str:
  rule = ["---"] + ["---:"] * (len(table.header) - 1)
  return "\n".join(
    "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
    for cells in (table.header, rule, *table.rows)
  )


def _caption(name: str) -> str:
  return name.replace("-", " against ").replace("_", " ")
