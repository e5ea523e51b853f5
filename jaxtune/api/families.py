"""Lists the supported families, as README.md shows them: `python -m jaxtune.api.families`."""

from __future__ import annotations

import pkgutil
import re
from pathlib import Path
from typing import NamedTuple

from jaxtune import objectives
from jaxtune.files import write_atomically
from jaxtune.models import families, hf

KINDS = ("decoder", "encoder", "encoder-decoder")
MARKS = ("<!-- families: written by python -m jaxtune.api.families -->", "<!-- end of families -->")


class Row(NamedTuple):
  """A family: its `model_type`, the names of its models, its kind, and the heads it can have."""

  model_type: str
  models: str
  kind: str
  heads: tuple[str, ...]


def rows() -> list[Row]:
  """Lists every family, as its module describes it.

  Its models are named in the docstring, before the colon. Its heads are those of its ARCHITECTURES
  that an objective trains.
  """
  objective_names = [m.name for m in pkgutil.iter_modules(objectives.__path__)]
  trained = {objectives.module(name).HEAD for name in objective_names}
  names = [m.name for m in pkgutil.iter_modules(families.__path__)]
  table = []
  for name in names:
    family = hf.family_module(name)
    heads = tuple(head for head in family.ARCHITECTURES if head in trained)
    if "lm" not in heads:
      kind = "encoder"
    else:
      conditional = family.ARCHITECTURES["lm"].endswith("ForConditionalGeneration")
      kind = "encoder-decoder" if conditional else "decoder"
    table.append(Row(name, family.__doc__.split(":")[0], kind, heads))
  return sorted(table, key=lambda row: (KINDS.index(row.kind), row.model_type))


def insert(text: str) -> str:
  """Returns a text with the table of the families between its marks."""
  lines = ["| models | `model_type` | kind | heads |", "| --- | --- | --- | --- |"]
  for row in rows():
    lines.append(f"| {row.models} | `{row.model_type}` | {row.kind} | {', '.join(row.heads)} |")
  block = "\n".join([MARKS[0], *lines, MARKS[1]])
  first, last = map(re.escape, MARKS)
  return re.sub(f"{first}.*?{last}", lambda _: block, text, flags=re.DOTALL)


if __name__ == "__main__":
  readme = Path(__file__).resolve().parents[2] / "README.md"
  write_atomically(readme, insert(readme.read_text()))
