"""Keeps a finished sweep as an experiment: its table, plots and README.

  python experiments/keep.py runs/rank_ablation experiments/rank_ablation

The README is notes.md (what was asked and what it showed, by hand) followed by the sweep's report.
Of the quickstart, the table also goes into the repository's README.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

README = Path(__file__).resolve().parents[1] / "README.md"
START, END = "<!-- quickstart table: written by experiments/keep.py -->", "<!-- end -->"


def keep(source: Path, target: Path) -> None:
  """Copies results.csv, config.json and plots, and writes README.md."""
  target.mkdir(parents=True, exist_ok=True)
  shutil.copy(source / "results.csv", target)
  config = _portable(json.loads((source / "config.json").read_text()))
  (target / "config.json").write_text(json.dumps(config, indent=2) + "\n")
  shutil.rmtree(target / "plots", ignore_errors=True)
  shutil.copytree(source / "plots", target / "plots")
  notes, report = target / "notes.md", (source / "report.md").read_text()
  text = notes.read_text() + "\n" if notes.exists() else ""
  (target / "README.md").write_text(text + report)
  if target.name == "quickstart":
    table = [line for line in report.splitlines() if line.startswith("|")]
    before, rest = README.read_text().split(START)
    README.write_text("\n".join([before + START, *table, END + rest.split(END)[1]]))


def _portable(value):
  """Shortens absolute paths to their last two parts."""
  if isinstance(value, dict):
    return {key: _portable(part) for key, part in value.items()}
  if isinstance(value, list):
    return [_portable(part) for part in value]
  path = Path(value) if isinstance(value, str) else None
  return "/".join(path.parts[-2:]) if path and path.is_absolute() else value


if __name__ == "__main__":
  keep(*map(Path, sys.argv[1:]))
