"""Keeps the quickstart's results, and writes its table into the README.

  make quickstart && python experiments/quickstart/update.py runs/quickstart
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
README = HERE.parents[1] / "README.md"
START, END = "<!-- quickstart table: written by experiments/quickstart/update.py -->", "<!-- end -->"


def main(folder: str) -> None:
  """Copies results.csv, report.md and the plots here, and the report's table into README.md."""
  source = Path(folder)
  for name in ("results.csv", "report.md"):
    shutil.copy(source / name, HERE / name)
  shutil.rmtree(HERE / "plots", ignore_errors=True)
  shutil.copytree(source / "plots", HERE / "plots")
  table = [line for line in (source / "report.md").read_text().splitlines() if line[:1] == "|"]
  before, rest = README.read_text().split(START)
  README.write_text(before + START + "\n" + "\n".join(table) + "\n" + END + rest.split(END)[1])


if __name__ == "__main__":
  main(*sys.argv[1:])
