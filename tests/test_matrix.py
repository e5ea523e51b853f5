"""Cells of the matrix of methods and families: each method, and each family, at least once.

`make matrix` runs every cell, and writes the README's table.
"""

from contextlib import ExitStack

import matrix
import pytest

# A walk through the families, method by method: neighbours in the list differ most.
WALK = (
  "gpt2", "bert", "t5", "llama", "roberta", "bart", "gemma2", "modernbert", "phi3", "mistral",
  "distilbert", "olmo2", "gemma3_text", "qwen2", "gpt_neox", "gemma", "qwen3",
)  # fmt: skip


@pytest.fixture(scope="module")
def reloads():
  with ExitStack() as stack:
    yield matrix.reloaders(stack)


@pytest.mark.parametrize("place, method", enumerate(matrix.METHODS))
def test_a_method_on_a_family(place, method, reloads, tmp_path):
  family = WALK[place % len(WALK)]
  row = matrix.cell(method, family, reloads, tmp_path)
  kept = {(r["method"], r["family"]): r for r in matrix.read()}[method, family]
  assert [str(row.get(name, "")) for name in ("trained", "export")] == [
    kept["trained"], kept["export"]
  ]  # fmt: skip


def test_the_readme_s_table_is_of_every_cell_and_none_failed():
  rows = matrix.read()
  assert {(r["method"], r["family"]) for r in rows} == {
    (method, family) for method in matrix.METHODS for family in matrix.FAMILIES
  }
  assert not [r for r in rows if r["trained"] == "failed"]
  text = (matrix.ROOT / "README.md").read_text()
  assert text.count(matrix.MARKS[0]) == 1 and matrix.insert(text, rows) == text
