"""The README's table is that of all cells, which `make matrix` runs."""

import matrix
from support import tiny


def test_the_table_is_that_of_all_cells():
  rows = matrix.read()
  assert [(row["method"], row["family"]) for row in rows] == matrix.CELLS
  assert not [row for row in rows if row["trained"] == "failed"]
  text = (tiny.ROOT / "README.md").read_text()
  assert matrix.insert(text, rows) == text
