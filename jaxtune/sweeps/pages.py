"""The report of a sweep as a page of Markdown and as a page of HTML."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment
from markupsafe import Markup

from jaxtune.sweeps.document import to_json
from jaxtune.sweeps.table import Table

_FILES = Path(__file__).parent / "page"
# In this order.
_SCRIPTS = ("base", "chart", "table", "plots", "curves", "parallel", "compare", "page")


_FOLDED = ("All columns", "Comparisons", "Comparisons with the reference", "Shared subspaces",
           "Nearest tokens")  # fmt: skip


class Page(NamedTuple):
  """The content of report.md, in the order in which it is shown."""

  trials: Table
  warnings: list[str]
  reading: str
  others: dict[str, Table]  # {title: table}; of these, `_FOLDED` are shown on demand
  plots: list[str]  # names of the files in plots/
  facts: dict[str, str]


def to_markdown(page: Page) -> str:
  """Writes a page as Markdown, with its plots as plots/NAME.png."""
  sections = ["# Sweep report"]
  if page.warnings:
    sections += ["Beware:", "\n".join(f"- {_escaped(warning)}" for warning in page.warnings)]
  sections += [_markdown_table(page.trials), page.reading]
  for title, table in page.others.items():
    shown = _markdown_table(table)
    folded = f"<details><summary>{title}</summary>\n\n{shown}\n\n</details>"
    sections += [folded] if title in _FOLDED else [f"## {title}", shown]
  if page.plots:
    sections += ["## Plots", *(f"![{_caption(name)}](plots/{name}.png)" for name in page.plots)]
  facts = "\n".join(f"- {key}: {_escaped(value)}" for key, value in page.facts.items())
  return "\n\n".join([*sections, "## The sweep", facts]) + "\n"


def to_html(document: Mapping[str, Any]) -> str:
  """Writes a document as HTML that needs no other file: its data, style and scripts are in it."""
  read = lambda name: Markup((_FILES / name).read_text(encoding="utf-8"))
  template = Environment(autoescape=True, keep_trailing_newline=True).from_string(read("page.html"))
  return template.render(
    title=document["title"],
    style=read("page.css"),
    script=Markup("\n").join(read(f"{name}.js") for name in _SCRIPTS),
    data=Markup(to_json(document)),
  )


def _markdown_table(table: Table) -> str:
  rule = ["---"] + ["---:"] * (len(table.header) - 1)
  return "\n".join(
    "| " + " | ".join(map(_cell, cells)) + " |" for cells in (table.header, rule, *table.rows)
  )


def _cell(text: str) -> str:
  """Writes a text as it is: an answer of a model may hold links, images and emphasis."""
  text = _escaped(" ".join(text.split()))
  return re.sub(r"([\\`*\[|]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))", r"\\\1", text)


def _escaped(text: str) -> str:
  """Escapes what would be a tag or an entity of HTML, such as a token <s>."""
  return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", re.sub(r"&(?=#?\w+;)", "&amp;", text))


def _caption(name: str) -> str:
  return name.replace("-", " against ").replace("_", " ")
