"""Sets the mixtures beside the runs of each task alone: README.md, results.csv and a plot.

  python experiments/task_mixture/report.py runs/task_mixture experiments/task_mixture

The README is notes.md (what was asked and what it showed, by hand) followed by the tables.
"""

from __future__ import annotations

import csv
import itertools
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from jaxtune.sweeps import canvas, stats, table

METRICS = {
  "test_loss": "loss (nats/token)",
  "test_exact_match": "exact match (%)",
  "test_rougeL": "ROUGE-L",
}

# {kind of run: {task: {seed: metrics}}}
Found = dict[str, dict[str, dict[int, dict]]]


def read(folder: Path) -> list[dict]:
  """Reads the results of a sweep, each with its config."""
  paths = sorted(folder.glob("trials/*/result.json"))
  config = lambda path: json.loads((path.parent / "config.json").read_text())
  return [json.loads(path.read_text()) | {"config": config(path)} for path in paths]


def kind(config: dict) -> str:
  data = config["data"]
  heat = f", temperature {data['temperature']:g}" if data["temperature"] != 1 else ""
  return f"mixture, {data['mixture']}{heat}"


def collect(mixed: list[dict], alone: list[dict]) -> Found:
  """Sorts all final metrics by kind, task and seed, and what no training gave."""
  found: Found = {}
  put = lambda name, task, seed, metrics: (
    found.setdefault(name, {}).setdefault(task, {}).update({seed: metrics})
  )
  tasks = list(mixed[0]["mixture"])
  of_task = lambda scores, task: {m: scores.get(f"{m}/{task}") for m in METRICS}
  for task in tasks:
    put("base (untuned)", task, 0, of_task(mixed[0]["base"], task))
  for result in alone:
    task = result["config"]["data"]["only"]["task"]
    put("most frequent answer", task, 0, {"test_loss": None} | result["chance"])
  for result in alone:
    put(
      "alone", result["config"]["data"]["only"]["task"], result["config"]["seed"], result["final"]
    )
  for result in mixed:
    for task in tasks:
      name, scores = kind(result["config"]), of_task(result["final"], task)
      put(name, task, result["config"]["seed"], scores)
  return found


def values(found: Found, name: str, task: str, metric: str) -> list[float]:
  return [one[metric] for one in found[name][task].values() if one.get(metric) is not None]


def means(found: Found, name: str, metric: str) -> list[float]:
  """Returns the plain mean over tasks of each seed."""
  tasks = list(found[name])
  seeds = found[name][tasks[0]]
  rows = [[found[name][task][seed].get(metric) for task in tasks] for seed in seeds]
  return [float(np.mean(row)) for row in rows if None not in row]


def cell(numbers: Sequence[float], digits: int, sign: str = "") -> str:
  mean, half, *_ = stats.summarize(numbers)
  if mean is None:
    return "-"
  return f"{mean:{sign}.{digits}f}" + (f" ± {half:.{digits}f}" if half is not None else "")


def overall(found: Found, drawn: dict[str, str]) -> table.Table:
  """Makes the table of means over tasks, and of their differences from the tasks alone."""
  header = ["run", "examples drawn, all tasks", "seeds"]
  header += [f"{title}, mean of tasks" for title in METRICS.values()]
  header += [f"{title} against alone, over tasks" for title in METRICS.values()]
  body = []
  for name, tasks in found.items():
    digits = {metric: 3 if metric == "test_loss" else 1 for metric in METRICS}
    scores = [cell(means(found, name, metric), digits[metric]) for metric in METRICS]
    changes = []
    for metric in METRICS:
      mean = lambda one, task, metric=metric: np.mean(values(found, one, task, metric) or [np.nan])
      pairs = [mean(name, task) - mean("alone", task) for task in tasks]
      lost = name == "alone" or not np.isfinite(pairs).all()
      changes.append("-" if lost else cell(pairs, digits[metric], "+"))
    seeds = "-" if name not in drawn else str(len(next(iter(tasks.values()))))
    body.append([name, drawn.get(name, "-"), seeds, *scores, *changes])
  return table.Table(header, body)


def between(found: Found) -> table.Table:
  """Makes the table of differences between mixtures, paired by seed."""
  names = [name for name in found if name.startswith("mixture")]
  body = []
  for one, other in itertools.combinations(names, 2):
    pairs = [zip(means(found, one, m), means(found, other, m), strict=True) for m in METRICS]
    changes = [[a - b for a, b in pair] for pair in pairs]
    cells = [cell(each, 3 if i == 0 else 1, "+") for i, each in enumerate(changes)]
    body.append([f"{one} - {other.removeprefix('mixture, ')}", *cells])
  return table.Table(["difference", *METRICS.values()], body)


def by_task(found: Found, metric: str, names: Sequence[str], counts: dict) -> table.Table:
  body = [
    [task, str(counts[task])]
    + [cell(values(found, name, task, metric), 3 if metric == "test_loss" else 1) for name in names]
    for task in found["alone"]
  ]
  return table.Table([f"{METRICS[metric]}, task", "test examples", *names], body)


def rates(folder: Path) -> table.Table:
  """Makes the table that the learning rates were chosen by."""
  body = []
  for part in ("mixed", "alone"):
    losses: dict[float, list] = {}
    for result in read(folder / f"{part}_rates"):
      final = result["final"]
      loss = final.get("validation_loss/mean", final["validation_loss"])
      losses.setdefault(result["config"]["optim"]["learning_rate"], []).append(loss)
    best = min(losses, key=lambda rate: np.mean(losses[rate]))
    for rate, each in sorted(losses.items()):
      chosen = "chosen" if rate == best else ""
      body.append([part, f"{rate:g}", f"{np.mean(each):.3f}", chosen])
  return table.Table(["run", "learning rate", "validation loss, mean of tasks", ""], body)


def plot(found: Found, path: Path) -> None:
  """Draws each task's test loss under every kind of run."""
  names = [name for name in found if name not in ("base (untuned)", "most frequent answer")]
  tasks = sorted(
    found["alone"], key=lambda task: np.mean(values(found, "alone", task, "test_loss"))
  )
  figure, (axes,) = canvas.make()
  figure.set_size_inches(10, 6)
  axes.grid(axis="y", visible=False)
  axes.grid(axis="x", color="#e5e5e5", linewidth=0.8)
  looks = canvas.looks(names)
  for i, name in enumerate(names):
    found_here = [stats.summarize(values(found, name, task, "test_loss")) for task in tasks]
    places = np.arange(len(tasks)) + 0.14 * (i - (len(names) - 1) / 2)
    axes.errorbar(
      [one.mean for one in found_here], places, xerr=[one.half_width or 0 for one in found_here],
      fmt=looks[name].marker, color=looks[name].color, markersize=5, capsize=2, linewidth=1,
      linestyle="none", label=name,
    )  # fmt: skip
  axes.set_yticks(range(len(tasks)), [task.replace("_", " ", 1) for task in tasks], fontsize=9)
  axes.set_xlabel("test loss (nats/token)")
  reading = ["mean over seeds; bars: 95 % interval"]
  canvas.write_title(axes, "Test loss by task: alone and in mixtures", reading)
  canvas.legend(figure, axes)
  path.parent.mkdir(exist_ok=True)
  figure.savefig(path, dpi=150)


def markdown(part: table.Table) -> str:
  lines = [part.header, ["---"] + ["---:"] * (len(part.header) - 1), *part.rows]
  return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write_csv(found: Found, path: Path) -> None:
  with path.open("w", newline="") as file:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["run", "task", "seed", *METRICS])
    for name, tasks in found.items():
      for task, seeds in tasks.items():
        for seed, scores in seeds.items():
          writer.writerow([name, task, seed, *(scores.get(metric) for metric in METRICS)])


def main(source: Path, target: Path) -> None:
  mixed, alone = read(source / "mixed"), read(source / "alone")
  found = collect(mixed, alone)
  tests = lambda result: result["data"]["splits"]["test"]["kept"]
  counts = {result["config"]["data"]["only"]["task"]: tests(result) for result in alone}
  size = lambda result: result["steps"] * result["config"]["train"]["batch_size"]
  drawn = {kind(result["config"]): f"{size(result):,}" for result in mixed}
  drawn["alone"] = f"{len(counts)} x {size(alone[0])}"
  trained = [name for name in found if name != "most frequent answer"]
  shown = [kind(r["config"]) for r in mixed]
  rows = [
    r | {"settings": {"data.mixture": name.removeprefix("mixture, "), "seed": 0}}
    for name, r in dict(zip(shown, mixed, strict=True)).items()
  ]
  titled: dict[str, Callable[[], table.Table]] = {
    "Mean over tasks": lambda: overall(found, drawn),
    "Between mixtures": lambda: between(found),
    "Test loss by task": lambda: by_task(found, "test_loss", trained, counts),
    "Exact match by task": lambda: by_task(found, "test_exact_match", list(found), counts),
    "ROUGE-L by task": lambda: by_task(found, "test_rougeL", trained, counts),
    "What was drawn of each task": lambda: table.mixtures(rows),
    "Learning rates": lambda: rates(source),
  }
  plot(found, target / "plots" / "test_loss.png")
  write_csv(found, target / "results.csv")
  seconds = sum(result["seconds"] for result in mixed + alone)
  parts = [(target / "notes.md").read_text().rstrip()]
  for title, make in titled.items():
    parts += [f"## {title}", markdown(make())]
    if title == "Mean over tasks":
      parts.append("± is the half-width of the 95 % interval (Student's t): over seeds for scores, "
                   "over the tasks' paired differences for differences.")  # fmt: skip
    if title == "Test loss by task":
      parts.append("![Test loss by task](plots/test_loss.png)")
  versions = ", ".join(f"{name} {value}" for name, value in mixed[0]["versions"].items())
  parts += ["## The runs", f"- seconds of all trials: {seconds:.0f}\n- versions: {versions}"]
  (target / "README.md").write_text("\n\n".join(parts) + "\n")


if __name__ == "__main__":
  main(*map(Path, sys.argv[1:]))
