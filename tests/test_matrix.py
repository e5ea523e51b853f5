"""Cells of the matrix of methods and families: each method, and each family, at least once.

`make matrix` runs every cell.
"""

from contextlib import ExitStack

import matrix
import pytest
from support import tiny

# A walk through the families, method by method: neighbours in the list differ most.
WALK = (
  "gpt2", "bert", "t5", "llama", "roberta", "bart", "gemma2", "modernbert", "phi3", "mistral",
  "distilbert", "olmo2", "gemma3_text", "qwen2", "gpt_neox", "gemma", "qwen3",
)  # fmt: skip


def test_the_table_is_that_of_all_cells():
  rows = matrix.read()
  assert [(row["method"], row["family"]) for row in rows] == matrix.CELLS
  assert not [row for row in rows if row["trained"] == "failed"]
  text = (tiny.ROOT / "README.md").read_text()
  assert matrix.insert(text, rows) == text


@pytest.fixture(scope="module")
def reloads():
  with ExitStack() as stack:
    yield matrix.reloaders(stack)


@pytest.mark.parametrize("place, method", enumerate(matrix.METHODS))
def test_a_method_on_a_family(place, method, reloads, tmp_path):
  family = WALK[place % len(WALK)]
  row = matrix.cell(method, family, reloads, tmp_path)
  assert row["trained"] or "finds nothing to train" in row["note"], row
