"""Measures what grouping, early exit and workers bring: 48 trials, start of the command to its end.

  python experiments/grouping/run.py
  python experiments/grouping/run.py --trials 4 --out FOLDER   # the figures mean nothing

one at a time:       a process for each trial, each of which compiles its program, or reads it from
                     the compilation cache, which is empty at the start
grouped:             a sweep
grouped, early exit: a sweep, in which successive halving leaves configurations out
two Ray workers:     a sweep, whose programs go to two processes on this machine
peft:                a process for each trial, in the loop of with_peft.py

The ways take turns: first all of them with one half of the trials (two of the four programs), then
with the other half, so that a machine that becomes slower does so for all. The winner is
the configuration with the lowest mean validation loss; its test loss is reported.
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
from collections.abc import Callable, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
CONFIG = HERE.parents[1] / "configs" / "grouping.py"
ROUNDS = 2
Way = Callable[[Path, Sequence[int], dict], list[dict]]


def trials() -> tuple[list[str], list[dict]]:
  """Returns the configuration of each trial, its name without the seed, and its complete config."""
  import jaxtune
  from jaxtune.api import sweep

  names, _, configs = sweep.expand(jaxtune.load_config(str(CONFIG)))
  return [name.rpartition(",seed=")[0] for name in names], configs


def alone(config: str, folder: str) -> None:
  """Trains one trial and leaves out what a sweep adds."""
  import jaxtune

  jaxtune.fit(json.loads(Path(config).read_text()), folder)


def write_configs(folder: Path, numbers: Sequence[int]) -> list[Path]:
  """Writes the complete config of each trial."""
  _, configs = trials()
  paths = [folder / f"{number}.json" for number in numbers]
  for number, path in zip(numbers, paths, strict=True):
    path.write_text(json.dumps(configs[number], default=str))
  return paths


def one_at_a_time(folder: Path, numbers: Sequence[int], environment: dict) -> list[dict]:
  for path in write_configs(folder, numbers):
    run = [sys.executable, __file__, "--alone", str(path), str(path.with_suffix(""))]
    subprocess.run(run, check=True, stdout=subprocess.DEVNULL, env=environment)
  found = [json.loads((folder / str(n) / "result.json").read_text()) for n in numbers]
  names, _ = trials()
  return [
    {"updates": result["stopped_at"], "configuration": names[n], **result["final"]}
    for result, n in zip(found, numbers, strict=True)
  ]


def with_peft(folder: Path, numbers: Sequence[int], environment: dict) -> list[dict]:
  found, (names, configs) = [], trials()
  for number, path in zip(numbers, write_configs(folder, numbers), strict=True):
    run = [sys.executable, str(HERE / "with_peft.py"), str(path)]
    text = subprocess.run(run, check=True, capture_output=True, text=True, env=environment).stdout
    known = {"updates": configs[number]["train"]["steps"], "configuration": names[number]}
    found.append(known | json.loads(text.splitlines()[-1]))
  return found


def swept(*options: str, exits: str = "") -> Way:
  """Returns a way that is one sweep, started by the command."""

  def run(folder: Path, numbers: Sequence[int], environment: dict) -> list[dict]:
    import jaxtune
    from jaxtune.sweeps import grid

    config = jaxtune.load_config(f"{CONFIG}:{exits}").to_dict()
    every = list(grid.expand(config["sweep"]))
    config["sweep"] = [{axis: [value] for axis, value in every[n].items()} for n in numbers]
    (folder / "config.json").write_text(json.dumps(config))
    command = [sys.executable, "-m", "jaxtune.main", "sweep", "--config", folder / "config.json"]
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


WAYS: dict[str, Way] = {
  "one at a time": one_at_a_time,
  "grouped": swept(),
  "grouped, early exit": swept(exits="halving"),
  "two Ray workers": swept("--launcher", "ray", "--workers", "2"),
  "peft": with_peft,
}


def timed(way: str, numbers: Sequence[int]) -> tuple[float, list[dict]]:
  """Runs trials in one way, with an empty compilation cache; returns the seconds, and results."""
  with tempfile.TemporaryDirectory() as folder:
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(Path(folder) / "cache")}
    began = time.perf_counter()
    found = WAYS[way](Path(folder), numbers, environment)
    return time.perf_counter() - began, found


def summarised(seconds: Sequence[float], found: Sequence[dict]) -> dict:
  """Returns what the table has of one way.

  Args:
    seconds: of each round.
    found: the results of all trials.
  """
  seen = [trial for trial in found if not trial.get("exited")]
  losses = {
    configuration: [
      statistics.mean(t[f"{split}_loss"] for t in seen if t["configuration"] == configuration)
      for split in ("validation", "test")
    ]
    for configuration in {trial["configuration"] for trial in seen}
  }
  winner = min(losses, key=lambda name: losses[name][0])
  return {
    "seconds": [round(x, 1) for x in seconds],
    "updates": sum(trial["updates"] for trial in found),
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
    "| | seconds | of one at a time | in each half | updates | winner | its test loss |",
    "| --- | ---: | ---: | ---: | ---: | --- | ---: |",
  ]
  for way in WAYS:
    row = results[way]
    halves = ", ".join(f"{x / y:.2f}" for x, y in zip(row["seconds"], slowest, strict=True))
    seconds = sum(row["seconds"])
    rows.append(
      f"| {way} | {seconds:,.0f} | {seconds / sum(slowest):.2f} | {halves} | "
      f"{row['updates']:,} | {row['winner']} | {row['test_loss']:.3f} |"
    )
  v = results["versions"]
  return "\n".join(rows) + (
    f"\n\nMeasured on {v['date']}: {v['device']}, {v['cores']} cores, jax {v['jax']}, torch "
    f"{v['torch']}, peft {v['peft']}, ray {v['ray']}; the ways in turn, each with one half of the "
    "trials (LoRA and LoHa), and then each with the other (prefixes and prompts).\n"
  )


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--trials", type=int, default=48, help="how many of the 48 trials")
  parser.add_argument("--out", type=Path, default=HERE, help="where results go")
  parser.add_argument("--alone", nargs=2, metavar=("CONFIG", "FOLDER"), help=argparse.SUPPRESS)
  options = parser.parse_args()
  if options.alone:
    return alone(*options.alone)
  seconds, found = ({way: [] for way in WAYS} for _ in range(2))
  half = -(-options.trials // ROUNDS)
  for start in range(0, options.trials, half):
    for way in WAYS:
      took, of_trials = timed(way, range(start, min(start + half, options.trials)))
      seconds[way].append(took)
      found[way] += of_trials
      print(f"{way}, from trial {start}: {took:.1f} s", flush=True)
      results = {way: summarised(seconds[way], found[way]) for way in WAYS if found[way]}
      results["versions"] = versions()
      (options.out / "results.json").write_text(json.dumps(results, indent=2) + "\n")
  notes = (HERE / "notes.md").read_text()
  (options.out / "README.md").write_text(notes + "\n" + written(results))


if __name__ == "__main__":
  main()
