"""A part of the matrix of methods and families; `make matrix` runs all of it."""

import matrix
import pytest
from support import tiny

# Each is another one, but for its first values, its rates, or of which methods it is a union.
REPRESENTED = {
  "LoRA", "LoRA+", "LoRA-FA", "PiSSA", "OLoRA", "P-tuning", "MAM", "int8 base + LoRA",
}  # fmt: skip
CELLS = [
  pytest.param(*names, marks=[pytest.mark.measurement] if names[0] in REPRESENTED else [])
  for names in matrix.DIAGONAL
]


@pytest.mark.full
@pytest.mark.parametrize(("method", "family"), CELLS)
def test_a_cell(method, family, tmp_path):
  """Each method on one family, and each family with one method.

  Exports are reloaded in test_certificates. Decoding is a third of a cell, and checked for
  families in models/test_families.py, and for methods in tests of their own; here where it is not.
  """
  generates = family in ("qwen3", "t5")  # LoRA of embeddings and IA3; adapters in a T5
  row = matrix.cell(method, family, lambda form: None, tmp_path, generates)
  (kept,) = [r for r in matrix.read() if (r["method"], r["family"]) == (method, family)]
  for column in ("trained", "export"):
    assert str(row.get(column, "")) == kept[column]


def test_the_table_is_that_of_all_cells():
  rows = matrix.read()
  assert [(row["method"], row["family"]) for row in rows] == matrix.CELLS
  assert not [row for row in rows if row["trained"] == "failed"]
  text = (tiny.ROOT / "README.md").read_text()
  assert matrix.insert(text, rows) == text
