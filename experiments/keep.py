"""Keeps a finished sweep as an experiment: its table, plots and README.

  python experiments/keep.py runs/rank_ablation experiments/rank_ablation
  python experiments/keep.py

The README is notes.md (what was asked and what it showed, by hand) followed by the sweep's report.
Of the quickstart, the table also goes into the repository's README. The config's docstring gets the
cost and the score to expect; without arguments those of all experiments are written anew.
"""

from __future__ import annotations

import csv
import json
import shutil
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
MARK = "\n\nCost and score, written by experiments/keep.py:\n"
START, END = "<!-- quickstart table: written by experiments/keep.py -->", "<!-- end -->"


def keep(source: Path, target: Path) -> None:
  """Copies results.csv, config.json and plots, and writes README.md."""
  target.mkdir(parents=True, exist_ok=True)
  shutil.copy(source / "results.csv", target)
  config = _portable(json.loads((source / "config.json").read_text()))
  (target / "config.json").write_text(json.dumps(config, indent=2) + "\n")
  shutil.rmtree(target / "plots", ignore_errors=True)
  if (source / "plots").is_dir():  # a sweep of one configuration and few steps has none
    shutil.copytree(source / "plots", target / "plots")
  notes, report = target / "notes.md", (source / "report.md").read_text()
  text = notes.read_text() + "\n" if notes.exists() else ""
  (target / "README.md").write_text(text + report)
  if target.name == "quickstart":
    first = report.partition("\n<details>")[0]
    table = [line for line in first.splitlines() if line.startswith("|")]
    before, rest = README.read_text().split(START)
    README.write_text("\n".join([before + START, *table, END + rest.split(END)[1]]))


def config_of(experiment: Path) -> Path:
  """Returns the config of an experiment; two of summarisation share theirs."""
  shared = {"titles": "summarisation", "dialogues": "summarisation"}
  return ROOT / "configs" / f"{shared.get(experiment.name, experiment.name)}.py"


def expectation(experiment: Path) -> str:
  """Says what a sweep costs and scores: the first configuration of its table, and the base."""
  lines = (experiment / "README.md").read_text().splitlines()
  table = [
    [cell.strip() for cell in line.strip("|").split("|")] for line in lines if line[:1] == "|"
  ]
  column = next(i for i, title in enumerate(table[0]) if title[-1:] in ("↓", "↑"))
  base = next(row for row in table if row[0] == "base (untuned)")
  best = next(row for row in table[2:] if row[1] not in ("0", "-"))
  with (experiment / "results.csv").open() as file:
    seconds = [float(row["seconds"]) for row in csv.DictReader(file) if row["seconds"]]
  metric = table[0][column][:-1].strip()
  score, minutes = best[column].removesuffix(" ± -"), sum(seconds) / 60
  trials = f"{len(seconds)} trial{'s'[: len(seconds) - 1]}"
  return (
    f"{experiment.name}: {trials}, {minutes:.0f} minutes one after another; "
    f"{metric} {score} with {best[0]}, {base[column]} untuned."
  )


def describe(config: Path, experiments: list[Path]) -> str:
  """Returns a config's text with the cost and the scores of its experiments in the docstring."""
  text = config.read_text()
  blocks = [textwrap.fill(expectation(one), 98, subsequent_indent="  ") for one in experiments]
  head, quotes, rest = text.partition('\n"""\n')
  head = head.partition(MARK)[0].rstrip()
  return head + MARK + "\n".join(blocks) + quotes + rest


def describe_all() -> dict[Path, str]:
  """Returns {config: its text as it shall be} of all experiments that keep a sweep's own report."""
  kept: dict[Path, list[Path]] = {}
  for experiment in sorted((ROOT / "experiments").iterdir()):
    if (experiment / "config.json").exists():
      kept.setdefault(config_of(experiment), []).append(experiment)
  return {config: describe(config, some) for config, some in kept.items() if config.exists()}


def _portable(value):
  """Shortens absolute paths to their last two parts."""
  if isinstance(value, dict):
    return {key: _portable(part) for key, part in value.items()}
  if isinstance(value, list):
    return [_portable(part) for part in value]
  path = Path(value) if isinstance(value, str) else None
  return "/".join(path.parts[-2:]) if path and path.is_absolute() else value


if __name__ == "__main__":
  if sys.argv[1:]:
    keep(*map(Path, sys.argv[1:]))
  for path, text in describe_all().items():
    path.write_text(text)
