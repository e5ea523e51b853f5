"""Tests the shapes of quality against LoRA's rank and a prefix's length, and draws them.

  python experiments/rank_and_length/shape.py runs/rank_and_length

The folder holds sweeps of configs/rank_and_length.py, one for each task. Each one's results.csv and
table are kept here, so that tasks can be run one at a time. Every shape is one
number for each seed (a slope over doublings, a curvature, a difference), so that Student's t over
seeds tests it; Holm's correction is over all tests of the table. README.md is notes.md followed by
the table of shapes and the tables of each task.
"""

from __future__ import annotations

import csv
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.stats import t as student

from jaxtune.sweeps import canvas, paired

HERE = Path(__file__).parent
TASKS = {
  "sentiment": ("test_accuracy", "accuracy (%)"),
  "entities": ("test_span_f1", "span F1 (%)"),
  "stars": ("test_accuracy", "accuracy (%)"),
}
SIZES = {"lora": "rank", "prefix": "length"}


class Curve(NamedTuple):
  """A metric in percent against a method's sizes: sizes (N,) and values (N, seeds)."""

  sizes_N: np.ndarray
  values_NE: np.ndarray

  def fit(self, degree: int) -> np.ndarray:
    """Returns the leading coefficient of each seed's polynomial in log2 of the size, (seeds,)."""
    return np.polyfit(np.log2(self.sizes_N), self.values_NE, degree)[0]

  def difference(self, larger: int, smaller: int) -> np.ndarray:
    """Returns how much better the larger size is than the smaller one with each seed, (seeds,)."""
    of = lambda size: self.values_NE[list(self.sizes_N).index(size)]
    return of(larger) - of(smaller)


def keep(task: str, folder: Path) -> None:
  """Copies a finished sweep's results and the table of its report."""
  shutil.copy(folder / "results.csv", HERE / f"{task}.csv")
  lines = (folder / "report.md").read_text().splitlines()
  rest = lines[next(i for i, line in enumerate(lines) if line.startswith("|")) :]
  (HERE / f"{task}.md").write_text("\n".join(rest[: rest.index("")]) + "\n")


def read(task: str, metric: str) -> list[dict]:
  with (HERE / f"{task}.csv").open() as file:
    return [row for row in csv.DictReader(file) if row.get(f"final.{metric}")]


def curve(rows: list[dict], method: str, metric: str) -> Curve:
  """Collects a method's results, with a seed's results at the same place of each size."""
  size_of = lambda row: int(row[f"method.{SIZES[method]}"])
  rows = [row for row in rows if row["method.name"] == method]
  sizes = sorted(set(map(size_of, rows)))
  rows.sort(key=lambda row: int(row["seed"]))
  values = [
    [float(row[f"final.{metric}"]) for row in rows if size_of(row) == size] for size in sizes
  ]
  return Curve(np.array(sizes), np.array(values))


def shapes(task: str, rows: list[dict], metric: str) -> list[tuple[str, str, np.ndarray]]:
  """Returns (task, what is asked, its value with each seed) of a task's shapes."""
  lora, prefix = (curve(rows, method, metric) for method in SIZES)
  asked = {
    "LoRA: points for each doubling of the rank": lora.fit(1),
    "LoRA: rank 8 better than rank 1": lora.difference(8, 1),
    "LoRA: rank 64 better than rank 8": lora.difference(64, 8),
    "prefix: points for each doubling of the length": prefix.fit(1),
    "prefix: curvature (below 0: rises, then flattens or falls)": prefix.fit(2),
    "prefix: length 20 better than length 1": prefix.difference(20, 1),
    "prefix: length 50 better than length 20": prefix.difference(50, 20),
  }
  return [(task, question, values) for question, values in asked.items()]


def table(found: list[tuple[str, str, np.ndarray]]) -> str:
  tests = [paired.test(values) for _, _, values in found]
  corrected = paired.holm([test.p for test in tests])
  lines = [
    "| task | shape | points | 95 % interval | p | p by Holm |",
    "| --- | --- | ---: | ---: | ---: | ---: |",
  ]
  for (task, question, values), test, p in zip(found, tests, corrected, strict=True):
    half = half_width(values)
    interval = f"{values.mean() - half:+.2f} to {values.mean() + half:+.2f}"
    lines.append(
      f"| {task} | {question} | {values.mean():+.2f} | {interval} | {test.p:.2g} | {p:.2g} |"
    )
  return "\n".join(lines)


def scores(rows: list[dict], metric: str, title: str) -> str:
  """Returns the table of the metric whose shapes are tested: each configuration over its seeds."""
  found: dict[tuple[str, int], list[float]] = {}
  for row in rows:
    sizes = (row.get(f"method.{name}") for name in ("rank", "length", "width"))
    key = row["method.name"], int(next(filter(None, sizes), 0))
    found.setdefault(key, []).append(float(row[f"final.{metric}"]))
  lines = [f"| method | size | {title} | of its seeds |", "| --- | ---: | ---: | ---: |"]
  for (method, size), values in sorted(found.items()):
    mean, half = np.mean(values), half_width(np.array(values))
    ends = f"{min(values):.1f} to {max(values):.1f}"
    lines.append(f"| {method} | {size or '-'} | {mean:.1f} ± {half:.1f} | {ends} |")
  return "\n".join(lines) + "\n"


def half_width(values: np.ndarray) -> float:
  count = len(values)
  return student.ppf(0.975, count - 1) * values.std(ddof=1) / np.sqrt(count)


def draw(curves: dict[str, dict[str, Curve]], method: str, folder: Path) -> None:
  """Draws a method's curve on each task: means and 95 % intervals over seeds."""
  figure, frames = canvas.make(len(curves))
  for axes, (task, by_method) in zip(frames, curves.items(), strict=True):
    sizes_N, values_NE = by_method[method]
    halves = [half_width(values) for values in values_NE]
    axes.errorbar(
      np.log2(sizes_N), values_NE.mean(1), halves, color=canvas.PALETTE[0], marker="o", capsize=3
    )
    axes.plot(np.log2(sizes_N), values_NE, ".", color=canvas.GREY, alpha=0.4, markersize=4)
    axes.set_xticks(np.log2(sizes_N), list(map(str, sizes_N)))
    axes.set_xlabel(f"{method} {SIZES[method]} (log scale)")
    axes.set_ylabel(TASKS[task][1])
    axes.set_title(task, loc="left", fontsize=11)
  folder.mkdir(exist_ok=True)
  figure.savefig(folder / f"{SIZES[method]}.png", dpi=120)


def main() -> None:
  runs = Path(sys.argv[1])
  for task in TASKS:
    if (runs / task / "report.md").exists():
      keep(task, runs / task)
  done = [task for task in TASKS if (HERE / f"{task}.csv").exists()]
  rows = {task: read(task, TASKS[task][0]) for task in done}
  curves = {
    task: {method: curve(rows[task], method, TASKS[task][0]) for method in SIZES} for task in done
  }
  for method in SIZES:
    draw(curves, method, HERE / "plots")
  found = [row for task in done for row in shapes(task, rows[task], TASKS[task][0])]
  parts = [(HERE / "notes.md").read_text(), "# Shapes\n", table(found), ""]
  parts += [f"![quality against {size}](plots/{size}.png)\n" for size in SIZES.values()]
  for task in done:
    parts += [f"# {task}\n", (HERE / f"{task}.md").read_text(), scores(rows[task], *TASKS[task])]
  (HERE / "README.md").write_text("\n".join(parts))


if __name__ == "__main__":
  main()
