"""Lists the supported families, as README.md shows them: `python -m jaxtune.api.families`."""

from __future__ import annotations

import pkgutil
import re
from pathlib import Path
from typing import NamedTuple

from jaxtune import objectives
from jaxtune.models import families, hf

KINDS = {"Decoder": "decoder", "Encoder": "encoder", "Seq2Seq": "encoder-decoder"}
MARKS = ("<!-- families: written by python -m jaxtune.api.families -->", "<!-- end of families -->")


class Row(NamedTuple):
  """A family: its `model_type`, the models that have it, its kind, and the heads it can carry."""

  model_type: str
  models: str
  kind: str
  heads: tuple[str, ...]


def rows() -> list[Row]:
  """Lists every family: the start of its module's docstring, its MODEL, and its heads.

  Those are the heads of its ARCHITECTURES that some objective trains.
  """
  objective_names = [m.name for m in pkgutil.iter_modules(objectives.__path__)]
  trained = {objectives.module(name).HEAD for name in objective_names}
  names = [m.name for m in pkgutil.iter_modules(families.__path__)]
  found = []
  for name in names:
    family = hf.family_module(name)
    title = family.__doc__.split(":")[0]
    heads = tuple(head for head in family.ARCHITECTURES if head in trained)
    found.append(Row(name, title, KINDS[family.MODEL.__name__], heads))
  return sorted(found, key=lambda row: (list(KINDS.values()).index(row.kind), row.model_type))


def markdown() -> str:
  """Formats the table."""
  lines = ["| models | `model_type` | kind | heads |", "| --- | --- | --- | --- |"]
  for row in rows():
    lines.append(f"| {row.models} | `{row.model_type}` | {row.kind} | {', '.join(row.heads)} |")
  return "\n".join(lines)


def insert(text: str) -> str:
  """Returns a text with the table between its marks."""
  start, end = map(re.escape, MARKS)
  block = "\n".join([MARKS[0], markdown(), MARKS[1]])
  return re.sub(f"{start}.*?{end}", lambda _: block, text, flags=re.DOTALL)


if __name__ == "__main__":
  readme = Path(__file__).resolve().parents[2] / "README.md"
  readme.write_text(insert(readme.read_text()))
