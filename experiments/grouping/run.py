"""Measures what grouping, early exit and workers bring: 48 trials, start of the command to its end.

  python experiments/grouping/run.py                   # all of them
  python experiments/grouping/run.py --only grouped
  python experiments/grouping/run.py --trials 4 --out FOLDER   # the figures mean nothing

one at a time:       a process for each trial, each of which compiles its program, or reads it from
                     the compilation cache, which is empty at the start of each way
grouped:             one sweep
grouped, early exit: one sweep, in which successive halving leaves configurations out
two Ray workers:     one sweep, whose programs go to two processes on this machine
peft:                a process for each trial, in the loop of with_peft.py

The winner is the configuration with the lowest mean validation loss; its test loss is reported.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
CONFIG = HERE.parents[1] / "configs" / "grouping.py"


def configs(count: int | None = None) -> list[dict]:
  """Returns the complete config of each trial."""
  import jaxtune
  from jaxtune.api import sweep

  return sweep.expand(jaxtune.load_config(str(CONFIG)))[2][:count]


def alone(number: int, folder: str) -> None:
  """Trains one trial and leaves out what a sweep adds."""
  import jaxtune

  jaxtune.fit(configs()[number], folder)


def one_at_a_time(folder: Path, count: int, environment: dict) -> list[dict]:
  for number in range(count):
    trial = folder / str(number)
    run = [sys.executable, __file__, "--alone", str(number), str(trial)]
    subprocess.run(run, check=True, stdout=subprocess.DEVNULL, env=environment)
  found = [json.loads((folder / str(i) / "result.json").read_text()) for i in range(count)]
  return [
    {"updates": result["stopped_at"], "configuration": configuration, **result["final"]}
    for result, configuration in zip(found, labels(count), strict=True)
  ]


def with_peft(folder: Path, count: int, environment: dict) -> list[dict]:
  found = []
  for number in range(count):
    run = [sys.executable, str(HERE / "with_peft.py"), str(number)]
    text = subprocess.run(run, check=True, capture_output=True, text=True, env=environment).stdout
    found.append(json.loads(text.splitlines()[-1]))
  updates = configs()[0]["train"]["steps"]
  return [
    {"updates": updates, "configuration": configuration, **losses}
    for losses, configuration in zip(found, labels(count), strict=True)
  ]


def swept(*options: str, exits: str = "") -> Callable[[Path, int, dict], list[dict]]:
  """Returns a way that is one sweep, started by the command."""

  def run(folder: Path, count: int, environment: dict) -> list[dict]:
    path = folder / "config.json"
    if count < len(configs()):
      import jaxtune
      from jaxtune.sweeps import grid

      config = jaxtune.load_config(f"{CONFIG}:{exits}").to_dict()
      first = grid.expand(config["sweep"])[:count]
      config["sweep"] = [{axis: [value] for axis, value in one.items()} for one in first]
      path.write_text(json.dumps(config))
    source = str(path) if path.exists() else f"{CONFIG}:{exits}"
    command = [sys.executable, "-m", "jaxtune.main", "sweep", "--config", source]
    command += ["--workdir", str(folder / "sweep"), *options]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
    with (folder / "sweep" / "results.csv").open() as file:
      rows = list(csv.DictReader(file))
    return [
      {
        "updates": int(row["exited_at"] or row["stopped_at"]),
        "configuration": row["trial"].rpartition(",seed=")[0],
        "exited": bool(row["exited_at"]),
        "validation_loss": float(row["final.validation_loss"]),
        "test_loss": float(row["final.test_loss"] or "nan"),  # trials that left are not judged
      }
      for row in rows
    ]

  return run


WAYS = {
  "one at a time": one_at_a_time,
  "grouped": swept(),
  "grouped, early exit": swept(exits="halving"),
  "two Ray workers": swept("--launcher", "ray", "--workers", "2"),
  "peft": with_peft,
}


def labels(count: int) -> list[str]:
  """Returns the configuration of each trial: its name without the seed."""
  import jaxtune
  from jaxtune.api import sweep

  names = sweep.expand(jaxtune.load_config(str(CONFIG)))[0][:count]
  return [name.rpartition(",seed=")[0] for name in names]


def measure(way: str, count: int) -> dict:
  """Runs the trials in one way, with an empty compilation cache."""
  with tempfile.TemporaryDirectory() as folder:
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(Path(folder) / "cache")}
    began = time.perf_counter()
    trials = WAYS[way](Path(folder), count, environment)
    seconds = time.perf_counter() - began
  seen = [trial for trial in trials if not trial.get("exited")]
  losses = {
    configuration: [
      statistics.mean(t[f"{split}_loss"] for t in seen if t["configuration"] == configuration)
      for split in ("validation", "test")
    ]
    for configuration in {trial["configuration"] for trial in seen}
  }
  winner = min(losses, key=lambda name: losses[name][0])
  return {
    "seconds": round(seconds, 1),
    "updates": sum(trial["updates"] for trial in trials),
    "winner": winner,
    "test_loss": round(losses[winner][1], 4),
  }


def versions() -> dict:
  import peft
  import ray
  import torch

  from jaxtune.runs.folder import versions as ours

  others = {"torch": torch.__version__, "peft": peft.__version__, "ray": ray.__version__}
  cores = len(os.sched_getaffinity(0))
  return ours() | others | {"cores": cores, "date": datetime.date.today().isoformat()}


def written(results: dict) -> str:
  """Returns the table of the results as Markdown."""
  slowest = results["one at a time"]["seconds"]
  rows = [
    "| | seconds | of one at a time | updates of all trials | winner | its test loss |",
    "| --- | ---: | ---: | ---: | --- | ---: |",
  ]
  for way in WAYS:
    if row := results.get(way):
      share = f"{row['seconds'] / slowest:.2f}"
      rows.append(
        f"| {way} | {row['seconds']} | {share} | {row['updates']:,} | {row['winner']} | "
        f"{row['test_loss']:.3f} |"
      )
  v = results["versions"]
  return "\n".join(rows) + (
    f"\n\nMeasured on {v['date']}: {v['device']}, {v['cores']} cores, jax {v['jax']}, torch "
    f"{v['torch']}, peft {v['peft']}, ray {v['ray']}; each way once, one after another.\n"
  )


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--only", choices=WAYS)
  parser.add_argument("--trials", type=int, default=48, help="how many of the 48 trials")
  parser.add_argument("--out", type=Path, default=HERE, help="where results go")
  parser.add_argument("--alone", nargs=2, metavar=("NUMBER", "FOLDER"), help=argparse.SUPPRESS)
  options = parser.parse_args()
  if options.alone:
    return alone(int(options.alone[0]), options.alone[1])
  path = options.out / "results.json"
  results = json.loads(path.read_text()) if options.only and path.exists() else {}
  for way in WAYS:
    if options.only in (None, way):
      print(f"measuring {way} ...", flush=True)
      results[way] = measure(way, options.trials)
      print(json.dumps(results[way], indent=2), flush=True)
      results["versions"] = versions()
      path.write_text(json.dumps(results, indent=2) + "\n")
  if "one at a time" in results:
    notes = (HERE / "notes.md").read_text()
    (options.out / "README.md").write_text(notes + "\n" + written(results))


if __name__ == "__main__":
  main()
