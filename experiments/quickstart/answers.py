"""Exports the best adapter of the finished quickstart, and shows what it answers.

  python experiments/quickstart/answers.py runs/quickstart [--keep]

With --keep the answers go into the repository's README too.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

import jaxtune
from jaxtune import libraries

README = Path(__file__).resolve().parents[2] / "README.md"
START, END = (
  "<!-- answers: written by experiments/quickstart/answers.py -->",
  "<!-- end of answers -->",
)
SHOWN = (0, 1, 4)  # of the test split: facts of a text, a summary, a rating


def best_adapter(sweep: Path) -> Path:
  """Finds the trial with the lowest test loss, but for full fine-tuning."""
  with open(sweep / "results.csv", newline="") as file:
    rows = [row for row in csv.DictReader(file) if row["method.name"] != "full"]
  best = min(rows, key=lambda row: float(row["final.test_loss"]))
  return sweep / "trials" / best["trial"]


def answers(trial: Path) -> str:
  """Lays out a few of a trial's predictions beside their references."""
  rows = [json.loads(line) for line in (trial / "predictions.jsonl").read_text().splitlines()]
  right = sum(row["prediction"].strip() in map(str.strip, row["references"]) for row in rows)
  lines = [f"{trial.name} answers {right} of {len(rows)} test examples exactly; three of them:"]
  for row in (rows[i] for i in SHOWN):
    _, instruction, text, *_ = (part for part in row["prompt"].split("\n") if part)
    lines += ["", instruction, text, f"Answer: {row['prediction'].strip()}"]
    lines += [f"Expected: {row['references'][0].strip()}"]
  return "\n".join(lines)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("sweep", type=Path)
  parser.add_argument("--keep", action="store_true", help="write the answers into the README")
  options = parser.parse_args()
  libraries.quieten()
  trial = best_adapter(options.sweep)
  done = jaxtune.export_run(jaxtune.load_run(trial), options.sweep / "export")
  print(f"exported {trial} to {done.folder} ({done.format})\n")
  print(text := answers(trial))
  if options.keep:
    before, rest = README.read_text().split(START)
    block = f"{START}\n```\n{text}\n```\n"
    README.write_text(before + block + END + rest.split(END)[1])


if __name__ == "__main__":
  main()
