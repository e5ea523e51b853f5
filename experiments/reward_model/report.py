"""Sets the reward models of two bases on two data sets side by side: README.md and results.csv.

  python experiments/reward_model/report.py runs/reward_model experiments/reward_model

The README is notes.md (what was asked and what it showed, by hand) followed by the tables.
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

from jaxtune.sweeps import stats
from jaxtune.sweeps.table import Table

DATA = ("rasbt", "alpaca_eval")
BASES = {"decoder": "bundled decoder", "bert": "MiniLM (BERT)"}
LENGTHS = ("longer", "shorter")
COLUMNS = ("data", "base", "seed", "pairs", "test_accuracy", "low", "high", "test_ece", "length")


def read(folder: Path) -> list[dict]:
  """Reads the results of a sweep's seeds."""
  paths = sorted(folder.glob("trials/*/result.json"))
  seed = lambda path: json.loads((path.parent / "config.json").read_text())["seed"]
  return [json.loads(path.read_text()) | {"seed": seed(path)} for path in paths]


def cell(values: list[float]) -> str:
  """Writes the mean over seeds with the half-width of its 95 % interval."""
  summary = stats.summarize(values)
  half = summary.half_width
  return f"{summary.mean:.1f}" + ("" if half is None else f" ± {half:.1f}")


def pooled(results: list[dict], part: str, key: str) -> str:
  """Writes the share that is right of one kind of pairs over all seeds, and how many pairs."""
  rows = [result[part][key] for result in results if key in result[part]]
  pairs = sum(row["pairs"] for row in rows)
  right = sum(row["right"] * row["pairs"] for row in rows)
  return f"{right / pairs:.1f} ({pairs // len(rows)})" if pairs else "-"


def scores(sweeps: dict[tuple[str, str], list[dict]]) -> Table:
  """Makes a row for each data set and base."""
  header = ["data", "base", "accuracy (%)", "of one seed", "length alone (%)", "ECE (%)"]
  header += [f"accuracy where the {name} is chosen (pairs)" for name in LENGTHS]
  body = []
  for (data, base), results in sweeps.items():
    low, high = results[0]["intervals"]["test_accuracy"]
    final = lambda name, results=results: cell([one["final"][name] for one in results])
    body.append([
      data, BASES[base], final("test_accuracy"), f"[{low:.1f}, {high:.1f}]",
      f"{results[0]['length']['test_accuracy']:.1f}", final("test_ece"),
      *(pooled(results, "by_length", name) for name in LENGTHS),
    ])  # fmt: skip
  return Table(header, body)


def calibration(results: list[dict]) -> Table:
  """Makes the reliability curve of all seeds together."""
  header = ["confidence (%)", "mean confidence", "right (%)", "judgements"]
  bins: dict[int, list[dict]] = {}
  for row in (row for result in results for row in result["calibration"]):
    bins.setdefault(min(int((row["confidence"] - 50) // 5), 9), []).append(row)
  body = []
  for number, rows in sorted(bins.items()):
    pairs = sum(row["pairs"] for row in rows)
    means = [sum(r[key] * r["pairs"] for r in rows) / pairs for key in ("confidence", "right")]
    span = f"{50 + 5 * number} to {55 + 5 * number}"
    body.append([span, *(f"{mean:.1f}" for mean in means), str(pairs)])
  return Table(header, body)


def write(source: Path, target: Path) -> None:
  """Writes README.md and results.csv."""
  sweeps = {(data, base): read(source / f"{base}-{data}") for data in DATA for base in BASES}
  sweeps = {key: results for key, results in sweeps.items() if results}
  text = (target / "notes.md").read_text() + "\n## Scores\n\n" + markdown(scores(sweeps))
  for (data, base), results in sweeps.items():
    text += f"\n## Calibration of the {BASES[base]} on {data}\n\n" + markdown(calibration(results))
  (target / "README.md").write_text(text)
  with (target / "results.csv").open("w", newline="") as file:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    for (data, base), results in sweeps.items():
      for one in results:
        final, length = one["final"], one["length"]["test_accuracy"]
        pairs = sum(row["pairs"] for row in one["calibration"])
        numbers = (final["test_accuracy"], *one["intervals"]["test_accuracy"], final["test_ece"])
        writer.writerow([data, base, one["seed"], pairs, *(f"{x:.2f}" for x in (*numbers, length))])


def markdown(table: Table) -> str:
  rule = ["---", *["---:"] * (len(table.header) - 1)]
  return "".join(f"| {' | '.join(cells)} |\n" for cells in (table.header, rule, *table.rows))


if __name__ == "__main__":
  write(*map(Path, sys.argv[1:3]))
