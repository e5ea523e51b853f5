"""Keeps a finished sweep as an experiment: its table, plots and README.

  python experiments/keep.py runs/rank_ablation experiments/rank_ablation

The README is notes.md (what was asked and what it showed, by hand) followed by the sweep's report.
Of the quickstart, the table also goes into the repository's README.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

README = Path(__file__).resolve().parents[1] / "README.md"
START, END = "<!-- quickstart table: written by experiments/keep.py -->", "<!-- end -->"


def keep(source: Path, target: Path) -> None:
  """Copies results.csv, config.json and plots, and writes README.md."""
  target.mkdir(parents=True, exist_ok=True)
  for name in ("results.csv", "config.json"):
    shutil.copy(source / name, target / name)
  shutil.rmtree(target / "plots", ignore_errors=True)
  shutil.copytree(source / "plots", target / "plots")
  notes, report = target / "notes.md", (source / "report.md").read_text()
  text = notes.read_text() + "\n" if notes.exists() else ""
  (target / "README.md").write_text(text + report)
  if target.name == "quickstart":
    table = [line for line in report.splitlines() if line.startswith("|")]
    before, rest = README.read_text().split(START)
    README.write_text("\n".join([before + START, *table, END + rest.split(END)[1]]))


if __name__ == "__main__":
  keep(*map(Path, sys.argv[1:]))
