"""Measures on a GPU what only a GPU can tell, in one call of at most ten minutes.

  make gpu                                    # measures, and writes gpu.json and GPU.md
  python experiments/speed/on_gpu.py --page   # writes GPU.md from the figures that there are
  python experiments/speed/on_gpu.py --tiny --out FOLDER   # whether it runs, on any device

An update of LoRA in bf16 (GPT-2 small, Llama 1B and 8B, random weights) beside peft, as it is and
compiled by torch: time, memory and the share of the device's peak rate that its products reach.
Texts of GPT-2 small beside transformers. A sweep of 16 trials beside peft's, of which four are run
and counted four times. Each figure is written as soon as it is known.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from run import HERE, TINY, Worker, in_turns, versions
from worker import SHAPES

from jaxtune.preflight.devices import KNOWN

os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # the other library needs memory too
ROUNDS, STEPS = (1, 1) if TINY else (4, 5)
SWEPT = 1 if TINY else 4  # of peft's 16 trials
STEP = "update of {0.model}, {0.batch} x {0.length:,}"
# What is measured; what is asked of time and memory beside the other library; the row of
# experiments/accelerators that has the compiler's estimates.
ROWS = {
  "small": (STEP.format(SHAPES["small"]), 0.75, 0.8, "small-gpu"),
  "1b": (STEP.format(SHAPES["1b"]), 0.75, 0.8, "1b-gpu"),
  "8b": (STEP.format(SHAPES["8b"]), 0.75, 0.8, "8b-gpu"),
  "generate": ("64 tokens for each of 8 prompts of 32, GPT-2 small", 0.2, None, None),
  "group": ("16 trials of 100 updates, bundled model, seconds", 0.1, None, None),
}
UTILISATION = 0.5  # that is asked of Llama's shapes


def step(shape: str) -> dict:
  """Times an update of LoRA beside peft's."""
  workers = {"jaxtune": Worker("jaxtune", "step", "lora", shape)}
  for how in ("eager",) if TINY else ("eager", "compile"):
    workers[f"peft, {how}"] = Worker("others", "step", "lora", how, shape)
  return in_turns(workers, ROUNDS, STEPS)


def generate() -> dict:
  """Times a batch of greedy texts."""
  workers = {"jaxtune": Worker("jaxtune", "generate", "small")}
  return in_turns(workers | {"transformers": Worker("others", "generate", "small")}, ROUNDS, 1)


def group() -> dict:
  """Times a sweep from its start to its end, and some of peft's trials, each a process."""
  seconds = {}
  with tempfile.TemporaryDirectory() as folder:
    ours = [["with_jaxtune.py", "group", folder]]
    theirs = [["with_others.py", "trial", str(trial)] for trial in range(SWEPT)]
    for name, runs, times in (("jaxtune", ours, 1), ("peft", theirs, 16 / SWEPT)):
      began = time.perf_counter()
      for script, *arguments in runs:
        command = [sys.executable, str(HERE / script), *arguments, *TINY]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
      seconds[name] = round(times * (time.perf_counter() - began), 1)
  return {"ms": seconds, "ratio": round(seconds["jaxtune"] / seconds["peft"], 3)}


def measure(path: Path) -> None:
  """Measures everything; what fails is written down, and the rest is measured."""
  import jax

  kind = jax.devices()[0].device_kind
  result: dict = {"versions": versions() | {"kind": kind}, "rows": {}}
  for name in ROWS:
    run = {"generate": generate, "group": group}.get(name, lambda name=name: step(name))
    try:
      result["rows"][name] = run()
    except Exception as error:  # the other rows are still wanted
      Worker.stop()
      result["rows"][name] = {"failed": f"{type(error).__name__}: {error}"}
    print(name, json.dumps(result["rows"][name]), flush=True)
    path.write_text(json.dumps(result, indent=2) + "\n")


def page(result: dict, estimates: dict) -> str:
  """Lays out what was measured beside what was asked, and beside the compiler's estimates."""
  known = result.get("versions", {})
  said = "Nothing was measured yet: no GPU was at hand." if not known else (
    f"Measured by `make gpu` on {known['date']}: {known['kind']}, jax {known['jax']}, torch "
    f"{known['torch']}, peft {known['peft']}."
  )  # fmt: skip
  kinds = (device for name, device in KNOWN.items() if name.upper() in known.get("kind", ""))
  peak = next((device.flops for device in kinds), None)
  lines = [
    "# On a GPU", "", said, "",
    "In bf16, random weights, LoRA of rank 8 on q and v. A ratio below 1 is in favour of jaxtune,",
    "beside the faster way of the other library. The last columns are the compiler's estimates for",
    "an h200, with full rematerialisation: what its products take at the peak rate, and the peak.",
    "",
    "| | jaxtune, ms | others, ms | time | memory | of the peak rate | products, ms | peak, GB |",
    "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
  ]  # fmt: skip
  for name, (what, time_asked, memory_asked, estimate) in ROWS.items():
    row, unknown = result.get("rows", {}).get(name, {}), "not measured"
    others = ", ".join(f"{ms} ({who})" for who, ms in row.get("ms", {}).items() if who != "jaxtune")
    asked = lambda value, most, word="at most": f"{value} ({word} {most})"
    cells = [what, row.get("ms", {}).get("jaxtune", row.get("failed", unknown)), others or unknown]
    cells.append(asked(row.get("ratio", unknown), time_asked))
    memory = row.get("memory_ratio", unknown)
    cells.append(asked(memory, memory_asked) if memory_asked else "")
    rate = unknown
    if peak and row.get("GFLOP"):
      rate = f"{1e12 * row['GFLOP'] / row['ms']['jaxtune'] / peak:.0%}"
    utilised = asked(rate, f"{UTILISATION:.0%}", "at least") if name in ("1b", "8b") else rate
    cells.append(utilised if memory_asked else "")
    there = estimates.get(estimate, {})
    cells += [f"{there[key]:.3g}" if there else "" for key in ("floor_ms", "peak_GB")]
    lines.append("| " + " | ".join(map(str, cells)) + " |")
  return "\n".join(lines) + "\n"


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--page", action="store_true", help="writes GPU.md alone")
  parser.add_argument("--tiny", action="store_true", help="the smallest sizes of everything")
  parser.add_argument("--out", type=Path, default=HERE, help="where results go")
  options = parser.parse_args()
  path = options.out / "gpu.json"
  if not options.page:
    measure(path)
  result = json.loads(path.read_text()) if path.exists() else {}
  estimates = json.loads((HERE.parent / "accelerators" / "results.json").read_text())["steps"]
  (options.out / "GPU.md").write_text(page(result, estimates))


if __name__ == "__main__":
  main()
