"""Sets three wordings side by side: README.md, results.csv and a plot.

  python experiments/star_ratings/report.py runs/star_ratings experiments/star_ratings

The README is notes.md (what was asked and what it showed, by hand) followed by the tables.
"""

from __future__ import annotations

import itertools
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxtune import metrics
from jaxtune.errors import UserError
from jaxtune.metrics import intervals
from jaxtune.metrics.kinds import label
from jaxtune.sweeps import canvas, stats

METRICS = ("test_accuracy", "test_macro_f1", "test_matthews")
UNTRAINED = {"base": "base", "shots": "base, 2 demonstrations", "chance": "most frequent label"}

Wordings = dict[str, list[dict]]  # {wording: the trials of its seeds, at the rate chosen for it}


def read(folder: Path) -> list[dict]:
  """Reads every trial's result, config and predictions."""
  found = []
  for path in sorted(folder.glob("trials/*/result.json")):
    lines = (path.parent / "predictions.jsonl").read_text().splitlines()
    config = json.loads((path.parent / "config.json").read_text())
    rows = [json.loads(line) for line in lines]
    found.append(json.loads(path.read_text()) | {"config": config, "rows": rows})
  where = [[row["where"] for row in result["rows"]] for result in found]
  if any(one != where[0] for one in where):
    raise UserError("the wordings were judged on different reviews")
  return found


def wording(result: dict) -> str:
  return result["config"]["data"]["template"].partition("/")[2]


def choose(results: list[dict]) -> tuple[Wordings, list[list[str]]]:
  """Chooses each wording's learning rate by its mean validation loss; also returns the table."""
  chosen: Wordings = {}
  table = []
  for name in ("vague", "specific", "context"):
    rates: dict[float, list[dict]] = {}
    for result in results:
      if wording(result) == name:
        rates.setdefault(result["config"]["optim"]["learning_rate"], []).append(result)
    losses = {
      rate: stats.summarize(r["final"]["validation_loss"] for r in each)
      for rate, each in rates.items()
    }
    best = min(losses, key=lambda rate: losses[rate].mean)
    chosen[name] = sorted(rates[best], key=lambda result: result["config"]["seed"])
    for rate, loss in sorted(losses.items()):
      note = "chosen" if rate == best else ""
      table.append([name, f"{rate:g}", cell(loss, 3), note])
  return chosen, table


def cell(summary: stats.Summary, digits: int = 1, sign: str = "") -> str:
  half = "" if summary.half_width is None else f" ± {summary.half_width:.{digits}f}"
  return f"{summary.mean:{sign}.{digits}f}{half}"


def over(trials: Sequence[dict], metric: str, part: str = "final") -> stats.Summary:
  return stats.summarize(result[part][metric] for result in trials)


def scores(chosen: Wordings) -> list[list[str]]:
  """Makes rows of what each wording scores untuned and tuned, and the tuned one's gains."""
  rows = []
  for name, trials in chosen.items():
    for part, title in UNTRAINED.items():
      numbers = [f"{trials[0][part][metric]:.1f}" for metric in METRICS]
      rows.append([name, title, *numbers, "-", "-"])
    changes = [
      cell(stats.difference(trials, "test_accuracy", part), sign="+") for part in ("base", "shots")
    ]
    rows.append([name, "tuned", *(cell(over(trials, metric)) for metric in METRICS), *changes])
  return rows


def compare(chosen: Wordings) -> list[list[str]]:
  """Makes rows of two wordings' differences, over seeds and over reviews."""
  rows = []
  for one, other in itertools.combinations(chosen, 2):
    for metric in METRICS:
      pairs = zip(chosen[one], chosen[other], strict=True)
      over_seeds = stats.summarize(a["final"][metric] - b["final"][metric] for a, b in pairs)
      mine, theirs = (drawn(chosen[name], metric) for name in (one, other))
      low, high = intervals.between(mine - theirs)
      name = metrics.title(metric).removeprefix("test ")
      cells = [cell(over_seeds, sign="+"), f"{low:+.1f} to {high:+.1f}"]
      rows.append([f"{one} - {other}", name, *cells])
  return rows


def drawn(trials: Sequence[dict], metric: str) -> np.ndarray:
  """Draws the mean over seeds of a metric, with other reviews each time; the same for all."""
  return np.mean([intervals.draws(metric.removeprefix("test_"), *answers(r)) for r in trials], 0)


def answers(result: dict) -> tuple[list[str], list[str]]:
  return tuple([row[key] for row in result["rows"]] for key in ("prediction", "references"))


def classes(chosen: Wordings) -> list[list[str]]:
  """Makes rows of each class's precision, recall and F1, the mean over seeds."""
  rows = []
  for name, trials in chosen.items():
    tables = [label.per_class(*answers(result), labels=list("12345")) for result in trials]
    for each in zip(*tables, strict=True):
      mean = lambda key, each=each: f"{np.mean([getattr(one, key) for one in each]):.1f}"
      numbers = [mean(key) for key in ("precision", "recall", "f1")]
      rows.append([name, each[0].label, *numbers, str(each[0].support)])
  return rows


def plot(chosen: Wordings, path: Path) -> None:
  """Draws the accuracy of every wording: untuned, with demonstrations, and tuned."""
  figure, (axes,) = canvas.make()
  kinds = {"final": "tuned", "base": "base", "shots": "base, 2 demonstrations"}
  looks = canvas.looks(list(kinds))
  for i, (part, title) in enumerate(kinds.items()):
    for at, trials in enumerate(chosen.values()):
      mean, half, *_ = over(trials, "test_accuracy", part)
      low, high = np.mean([r["intervals"]["test_accuracy"] for r in trials], 0)
      bars = [[mean - low], [high - mean]] if part == "final" else None
      axes.errorbar(
        [at + 0.12 * (i - 1)], [mean], yerr=bars, fmt=looks[part].marker, capsize=3,
        color=looks[part].color, label=title if at == 0 else None,
      )  # fmt: skip
      if part == "final":
        seeds = [r["final"]["test_accuracy"] for r in trials]
        place = [at + 0.12 * (i - 1) - 0.05] * len(seeds)
        axes.plot(place, seeds, "o", color=looks[part].color, alpha=0.4, markersize=4)
  chance = next(iter(chosen.values()))[0]["chance"]["test_accuracy"]
  axes.axhline(chance, color=canvas.GREY, linestyle="--", linewidth=1.2)
  axes.annotate(
    "most frequent label", (0.99, chance), xycoords=axes.get_yaxis_transform(), xytext=(0, 3),
    textcoords="offset points", fontsize=9, color=canvas.GREY, ha="right",
  )  # fmt: skip
  axes.set_xticks(range(len(chosen)), list(chosen))
  axes.set_xlim(-0.5, len(chosen) - 0.5)
  axes.set_ylabel(metrics.title("test_accuracy"))
  reading = ["mean over seeds; faint: single seeds; bars: 95 % interval over reviews (bootstrap)"]
  canvas.write_title(axes, "Accuracy of star ratings by the wording of the task", reading)
  canvas.legend(figure, axes)
  path.parent.mkdir(exist_ok=True)
  figure.savefig(path, dpi=150)


def markdown(header: list[str], rows: list[list[str]]) -> str:
  rule = ["---"] + ["---:"] * (len(header) - 1)
  return "\n".join("| " + " | ".join(line) + " |" for line in [header, rule, *rows])


def main(source: Path, target: Path) -> None:
  results = read(source)
  chosen, rates = choose(results)
  titles = [metrics.title(metric).removeprefix("test ") for metric in METRICS]
  trials = next(iter(chosen.values()))
  used = "; ".join(f"{name} {r[0]['demonstrations']['used']}" for name, r in chosen.items())
  sizes = {name: part["kept"] for name, part in trials[0]["data"]["splits"].items()}
  versions = ", ".join(f"{name} {value}" for name, value in trials[0]["versions"].items())
  tables = {
    "Scores": (["wording", "model", *titles, "accuracy against base", "against 2 demonstrations"],
               scores(chosen)),
    "Does the wording matter?": (
      ["tuned wordings", "metric", "difference, ± over seeds", "95 % interval over reviews"],
      compare(chosen),
    ),
    "Classes (tuned, mean over seeds)": (
      ["wording", "stars", "precision (%)", "recall (%)", "F1 (%)", "reviews"], classes(chosen),
    ),
    "Learning rates": (["wording", "learning rate", "validation loss", ""], rates),
  }  # fmt: skip
  plot(chosen, target / "plots" / "accuracy.png")
  shutil.copy(source / "results.csv", target)
  shutil.copy(source / "plots" / "confusion.png", target / "plots")
  parts = [(target / "notes.md").read_text().rstrip()]
  for title, table in tables.items():
    parts += [f"## {title}", markdown(*table)]
  parts += [
    "± is the half-width of the 95 % interval over seeds (Student's t); intervals over reviews are "
    "paired bootstraps of the mean over seeds.",
    "![Accuracy by wording](plots/accuracy.png)",
    "Of the trial with the highest test accuracy:",
    "![Who was taken for whom](plots/confusion.png)",
    "## The runs",
    f"- reviews: {sizes}; the test reviews of all trials are the same (the script checks it)\n"
    f"- demonstrations that fitted, {{how many: reviews}}: {used}\n"
    f"- seconds of all {len(results)} trials: {sum(r['seconds'] for r in results):.0f}\n"
    f"- versions: {versions}",
  ]
  (target / "README.md").write_text("\n\n".join(parts) + "\n")


if __name__ == "__main__":
  main(*map(Path, sys.argv[1:]))
