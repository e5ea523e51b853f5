"""Keeps the comparison of methods: its table, a Pareto plot and README.md.

  python experiments/method_comparison/report.py RATES RUNS

RATES and RUNS are the folders of the sweeps configs/method_comparison_rates.py and
configs/method_comparison.py. The README is notes.md followed by the tables.
"""

from __future__ import annotations

import csv
import json
import math
import sys
from pathlib import Path
from typing import NamedTuple

from matplotlib.ticker import EngFormatter

from jaxtune.config import complete_method
from jaxtune.sweeps import canvas, stats

HERE = Path(__file__).parent
CONFIGS = HERE.parents[1] / "configs"
METRICS = ("test_loss", "test_bleu", "test_rougeL")


class Entry(NamedTuple):
  """A method: its name in the config, its results over seeds, and its rate."""

  name: str
  results: list[dict]
  rate: float

  @property
  def size(self) -> int:
    return self.results[0]["trained_parameters"]

  def over(self, metric: str) -> stats.Summary:
    return stats.over_seeds(self.results, metric)


def named() -> dict[str, str]:
  """Returns {a completed method's JSON: its name}, from the config's list of methods."""
  text = (CONFIGS / "method_comparison.py").read_text()
  scope: dict = {}
  exec(compile(text, "method_comparison.py", "exec"), scope)
  key = lambda section: json.dumps(complete_method(section), sort_keys=True)
  return {key(section): name for name, section in scope["METHODS"].items()}


def results(folder: Path) -> list[tuple[str, dict, dict]]:
  """Lists (name of the method, config, result) of a sweep's trials."""
  names, found = named(), []
  for path in sorted(folder.glob("trials/*/result.json")):
    config = json.loads((path.parent / "config.json").read_text())
    name = names[json.dumps(complete_method(config["method"]), sort_keys=True)]
    found.append((name, config, json.loads(path.read_text())))
  return found


def entries(folder: Path) -> list[Entry]:
  """Gathers the seeds of each method, best first."""
  groups: dict[str, list] = {}
  for name, config, result in results(folder):
    groups.setdefault(name, []).append((config["optim"]["learning_rate"], result))
  made = [Entry(name, [r for _, r in pairs], pairs[0][0]) for name, pairs in groups.items()]
  return sorted(made, key=lambda entry: entry.over("test_loss").mean or math.inf)


def front(table: list[Entry]) -> list[Entry]:
  """Lists the methods that no other one beats with as few trained numbers."""
  kept, best = [], math.inf
  for entry in sorted(table, key=lambda e: (e.size, e.over("test_loss").mean)):
    if entry.over("test_loss").mean < best:
      kept, best = [*kept, entry], entry.over("test_loss").mean
  return kept


def cell(summary: stats.Summary, digits: int = 3) -> str:
  half = "" if summary.half_width is None else f" ± {summary.half_width:.{digits}f}"
  return "-" if summary.mean is None else f"{summary.mean:.{digits}f}{half}"


def markdown(table: list[Entry]) -> str:
  base, best = table[0].results[0]["base"], {entry.name for entry in front(table)}
  lines = [
    "| method | trained parameters | learning rate | test loss ↓ | BLEU ↑ | ROUGE-L ↑ | Pareto |",
    "| --- | ---: | ---: | ---: | ---: | ---: | :-: |",
    f"| base (untuned) | 0 | - | {base['test_loss']:.3f} | {base['test_bleu']:.2f} "
    f"| {base['test_rougeL']:.2f} | |",
  ]
  for entry in table:
    loss, bleu, rouge = (entry.over(metric) for metric in METRICS)
    lines.append(
      f"| {entry.name} | {entry.size:,} | {entry.rate:g} | {cell(loss)} | {cell(bleu, 2)} "
      f"| {cell(rouge, 2)} | {'●' * (entry.name in best)} |"
    )
  return "\n".join(lines)


def rates(folder: Path) -> str:
  """Lays out every rate that was tried and its validation loss, the chosen one in bold."""
  found: dict[str, dict[float, float]] = {}
  for name, config, result in results(folder):
    loss = result["final"]["validation_loss"]
    found.setdefault(name, {})[config["optim"]["learning_rate"]] = loss
  lines = ["| method | validation loss at each learning rate (one seed) |", "| --- | --- |"]
  for name, losses in found.items():
    best = min(losses, key=lambda rate: losses[rate] if losses[rate] == losses[rate] else math.inf)
    show = lambda rate, losses=losses: f"{rate:g}: {losses[rate]:.3f}"
    cells = [f"**{show(r)}**" if r == best else show(r) for r in sorted(losses)]
    lines.append(f"| {name} | {', '.join(cells)} |")
  return "\n".join(lines)


def plot(table: list[Entry]) -> None:
  """Draws loss against size, and the methods of one budget side by side."""
  figure, (left, right) = canvas.make(2)
  _pareto(left, table)
  budget = [e for e in table if 12_000 < e.size < 20_000]
  places = range(len(budget))[::-1]
  for place, entry in zip(places, budget, strict=True):
    loss = entry.over("test_loss")
    right.errorbar(loss.mean, place, xerr=loss.half_width, fmt="o", color=canvas.PALETTE[0],
                   capsize=3, markersize=5)  # fmt: skip
    seeds = [stats.final(result, "test_loss") for result in entry.results]
    right.plot(seeds, [place - 0.25] * len(seeds), "o", color=canvas.PALETTE[0], alpha=0.35,
               markersize=3)  # fmt: skip
  right.set_yticks(list(places), [entry.name for entry in budget])
  right.set_xlabel("test loss (nats a token)")
  right.grid(axis="x", color="#e5e5e5", linewidth=0.8)
  canvas.write_title(
    right, "About 16,000 trained numbers", ["mean, 95 % interval, and single seeds"]
  )
  mean = lambda entry: entry.over("test_loss")
  named = [e for e in table if e in front(table) or not 12_000 < e.size < 20_000]
  bar = lambda s: (s.mean - (s.half_width or 0), s.mean + (s.half_width or 0))
  canvas.write_names(
    figure, left, [(e.size, mean(e).mean, e.name) for e in named],
    [(e.size, *bar(mean(e))) for e in table],
  )  # fmt: skip
  (HERE / "plots").mkdir(exist_ok=True)
  figure.savefig(HERE / "plots" / "pareto.png", dpi=150)


def _pareto(axes, table: list[Entry]) -> None:
  axes.set_xscale("log")
  best = front(table)
  axes.step([e.size for e in best], [e.over("test_loss").mean for e in best], where="post",
            color=canvas.GREY, linewidth=1.2, linestyle="--", zorder=1)  # fmt: skip
  for entry in table:
    loss = entry.over("test_loss")
    color = canvas.PALETTE[1] if entry in best else canvas.PALETTE[0]
    axes.errorbar(entry.size, loss.mean, yerr=loss.half_width, fmt="o", color=color, capsize=2,
                  markersize=4.5, elinewidth=1)  # fmt: skip
  axes.xaxis.set_major_formatter(EngFormatter(sep=""))
  axes.set_xlim(600, 2e7)
  axes.set_xlabel("trained parameters (log scale)")
  axes.set_ylabel("test loss (nats a token)")
  canvas.write_title(axes, "Loss against size", ["orange and dashed: nothing smaller is better"])


def main(rates_folder: str, folder: str) -> None:
  table = entries(Path(folder))
  versions = table[0].results[0]["versions"]
  with (HERE / "results.csv").open("w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(["method", "trained_parameters", "learning_rate", "seed", *METRICS, "seconds"])
    for name, config, result in results(Path(folder)):
      values = [result["final"].get(metric) for metric in METRICS]
      seed, rate = config["seed"], config["optim"]["learning_rate"]
      size, seconds = result["trained_parameters"], result["seconds"]
      writer.writerow([name, size, rate, seed, *values, seconds])
  plot(table)
  notes = (HERE / "notes.md").read_text()
  libraries = ", ".join(f"{name} {version}" for name, version in versions.items())
  parts = [notes, markdown(table), "![Loss against size](plots/pareto.png)", "## Learning rates",
           rates(Path(rates_folder)), f"Versions: {libraries}."]  # fmt: skip
  (HERE / "README.md").write_text("\n\n".join(part.strip() for part in parts) + "\n")


if __name__ == "__main__":
  main(*sys.argv[1:])
