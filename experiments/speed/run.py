"""Measures jaxtune beside peft, alternately in one run, and writes results.json and the README.

  python experiments/speed/run.py            # everything, about 15 minutes on 2 cores
  python experiments/speed/run.py --only step
  python experiments/speed/run.py --tiny --out FOLDER   # whether it runs; the figures mean nothing

step:  one LoRA update (r = 8, on q and v of every layer; GPT-2-small's shape with random weights,
       batch 4 x 128, fp32, AdamW). Each library lives in a process of its own; they take turns.
group: the makespan of 16 trials of 100 updates on the bundled model, from the start of the command:
       one jaxtune sweep against 16 peft processes one after another.
chunk: how many trials to run side by side in one vmap.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
TINY = ["--tiny"] * ("--tiny" in sys.argv)  # what the other scripts are told, too
ROUNDS, STEPS = (1, 1) if TINY else (10, 4)
TRIALS = 2 if TINY else 16


class Worker:
  """A library in a process of its own, which runs updates when told to."""

  def __init__(self, library: str):
    self.process = subprocess.Popen(
      [sys.executable, str(HERE / f"with_{library}.py"), "step", *TINY],
      stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    self.ask("warm up")

  def ask(self, what: str) -> dict:
    self.process.stdin.write(what + "\n")
    self.process.stdin.flush()
    return json.loads(self.process.stdout.readline())


def measure_step() -> dict:
  """Times updates in turns; returns medians in ms, their ratio, and each process's peak memory."""
  workers = {name: Worker(name) for name in ("jaxtune", "peft")}
  times: dict[str, list[float]] = {name: [] for name in workers}
  for _ in range(ROUNDS):
    for name, worker in workers.items():
      time.sleep(0.5)  # lets the other's idle threads stop spinning
      times[name] += worker.ask(str(STEPS))["ms"]
  ends = {name: worker.ask("end") for name, worker in workers.items()}
  medians = {name: statistics.median(values) for name, values in times.items()}
  return {
    "ms": {name: round(value, 1) for name, value in medians.items()},
    "ratio": round(medians["jaxtune"] / medians["peft"], 3),
    "peak_MB": {name: round(end["peak_MB"]) for name, end in ends.items()},
    "loss": {name: end["loss"] for name, end in ends.items()},
  }


def measure_group() -> dict:
  """Times both makespans, start-up and compilation included."""
  with tempfile.TemporaryDirectory() as folder:
    began = time.perf_counter()
    run = [sys.executable, str(HERE / "with_jaxtune.py"), "group", folder, *TINY]
    subprocess.run(run, check=True, stdout=subprocess.DEVNULL)
    ours = time.perf_counter() - began
  began = time.perf_counter()
  for trial in range(TRIALS):
    run = [sys.executable, str(HERE / "with_peft.py"), "trial", str(trial), *TINY]
    subprocess.run(run, check=True, stdout=subprocess.DEVNULL)
  theirs = time.perf_counter() - began
  return {
    "seconds": {"jaxtune": round(ours, 1), "peft": round(theirs, 1)},
    "ratio": round(ours / theirs, 3),
  }


def measure_chunk() -> dict:
  """Times one update of a group of 16 at several chunk sizes, ms a trial."""
  run = [sys.executable, str(HERE / "with_jaxtune.py"), "chunk", *TINY]
  return json.loads(subprocess.run(run, check=True, capture_output=True, text=True).stdout)


def measure_choices() -> dict:
  """Times the alternatives that ARCHITECTURE.md chose between, in turns, in ms."""
  run = [sys.executable, str(HERE / "with_jaxtune.py"), "choices", *TINY]
  return json.loads(subprocess.run(run, check=True, capture_output=True, text=True).stdout)


def versions() -> dict:
  import peft
  import torch

  from jaxtune.runs.folder import versions as ours

  cores = len(os.sched_getaffinity(0))
  return ours() | {
    "torch": torch.__version__, "peft": peft.__version__, "machine": platform.machine(),
    "cores": cores, "date": datetime.date.today().isoformat(),
  }  # fmt: skip


TEXT = """# Speed, beside peft

Written by `python experiments/speed/run.py` on {date}: {device}, {cores} cores, jax {jax},
torch {torch}, peft {peft}. fp32. An update is of r = 8 on q and v with
random weights; the 16 trials take 100 updates each on the bundled model, start-up and compilation
included. The script says the rest; run it to get your own figures.

| | jaxtune | peft | ratio |
| --- | ---: | ---: | ---: |
| LoRA update, GPT-2 small, 4 x 128: median ms | {step_ours} | {step_theirs} | **{step_ratio}** |
| the same: peak memory, MB | {peak_ours} | {peak_theirs} | {peak_ratio} |
| 16 trials, start to end: seconds | {group_ours} | {group_theirs} | **{group_ratio}** |

Below 1 jaxtune is faster, or smaller. Trials side by side in one vmap, ms of a trial's update in a
group of 16: {chunks}. The default on this backend is {default}.

Choices that ARCHITECTURE.md names, median ms in turns (attention with its gradient):

{choices}
"""


def write(results: dict, folder: Path) -> None:
  step, group = results["step"], results["group"]
  choices = "\n".join(
    f"- {what}: " + ", ".join(f"{name} {ms}" for name, ms in row.items())
    for what, row in results["choices"].items()
  )
  chunks = ", ".join(f"{n} at a time {ms} ms" for n, ms in results["chunk"].items())
  text = TEXT.format(
    **results["versions"],
    step_ours=step["ms"]["jaxtune"], step_theirs=step["ms"]["peft"], step_ratio=step["ratio"],
    peak_ours=step["peak_MB"]["jaxtune"], peak_theirs=step["peak_MB"]["peft"],
    peak_ratio=round(step["peak_MB"]["jaxtune"] / step["peak_MB"]["peft"], 2),
    group_ours=group["seconds"]["jaxtune"], group_theirs=group["seconds"]["peft"],
    group_ratio=group["ratio"], chunks=chunks, choices=choices,
    default="1" if results["versions"]["device"] == "cpu" else "all of them",
  )  # fmt: skip
  (folder / "README.md").write_text(text)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--only", choices=("step", "group", "chunk", "choices"))
  parser.add_argument("--tiny", action="store_true", help="the smallest sizes of everything")
  parser.add_argument("--out", type=Path, default=HERE, help="where results go")
  options = parser.parse_args()
  only, path = options.only, options.out / "results.json"
  results = json.loads(path.read_text()) if only and path.exists() else {}
  measures = {
    "step": measure_step,
    "chunk": measure_chunk,
    "choices": measure_choices,
    "group": measure_group,
  }
  for name, measure in measures.items():
    if only in (None, name):
      print(f"measuring {name} ...", flush=True)
      results[name] = measure()
      print(json.dumps(results[name], indent=2), flush=True)
  results["versions"] = versions()
  path.write_text(json.dumps(results, indent=2) + "\n")
  if all(name in results for name in measures):
    write(results, options.out)


if __name__ == "__main__":
  main()
