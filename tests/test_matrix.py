"""A part of the matrix of methods and families; `make matrix` runs all of it."""

import matrix
import pytest
from support import tiny


@pytest.mark.full
@pytest.mark.parametrize(("method", "family"), matrix.DIAGONAL)
def test_a_cell(method, family, tmp_path):
  """Each method on one family, and each family with one method; exports: test_certificates."""
  row = matrix.cell(method, family, lambda form: None, tmp_path)
  (kept,) = [r for r in matrix.read() if (r["method"], r["family"]) == (method, family)]
  for column in ("trained", "export"):
    assert str(row.get(column, "")) == kept[column]


def test_the_table_is_that_of_all_cells():
  rows = matrix.read()
  assert [(row["method"], row["family"]) for row in rows] == matrix.CELLS
  assert not [row for row in rows if row["trained"] == "failed"]
  text = (tiny.ROOT / "README.md").read_text()
  assert matrix.insert(text, rows) == text
