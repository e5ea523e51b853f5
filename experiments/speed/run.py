"""Measures jaxtune beside others, alternately in one run, and writes results.json and the README.

  make speed                                 # everything, about 30 minutes on 2 cores
  python experiments/speed/run.py --only step
  python experiments/speed/run.py --tiny --out FOLDER   # whether it runs; the figures mean nothing

step:  one update of a method (GPT-2-small's shape with random weights, batch 4 x 128, fp32, AdamW):
       LoRA with r = 8 on q and v of every layer (peft: on q, k and v), a prefix of 20, Pfeiffer's
       adapters, everything. Each library lives in a process of its own; they take turns.
       JAXTUNE_ADAPTERS_PYTHON is an environment with AdapterHub's adapters; without it, they are
       left out.
compiling: the processor time to compile a LoRA update of 48 layers, beside one of 12.
generate: greedy texts of 64 tokens for 8 prompts of 32, the same model.
feedback: on the bundled model with LoRA of rank 8, an update of DPO on 8 pairs, and one of GRPO
       on 32 answers of 32 tokens, which are drawn and judged first; beside trl's trainers.
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
from typing import ClassVar

HERE = Path(__file__).resolve().parent
TINY = ["--tiny"] * ("--tiny" in sys.argv)  # what the other scripts are told, too
ROUNDS, STEPS = (1, 1) if TINY else (8, 3)
OTHERS = {"lora": "peft", "prefix": "peft", "adapter": "adapters", "full": "transformers"}
NAMES = {"lora": "LoRA", "prefix": "prefix", "adapter": "adapter", "full": "full fine-tuning"}
TRIALS = 2 if TINY else 16


class Worker:
  """A library in a process of its own, which runs updates when told to."""

  started: ClassVar[list[subprocess.Popen]] = []

  def __init__(self, script: str, *arguments: str, python: str = sys.executable):
    self.process = subprocess.Popen(
      [python, str(HERE / f"with_{script}.py"), *arguments, *TINY],
      stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    self.started.append(self.process)
    self.ask("warm up")

  def ask(self, what: str) -> dict:
    self.process.stdin.write(what + "\n")
    self.process.stdin.flush()
    return json.loads(self.process.stdout.readline())

  @classmethod
  def stop(cls) -> None:
    """Ends all that were started."""
    while cls.started:
      cls.started.pop().kill()


def in_turns(workers: dict[str, Worker], rounds: int, steps: int) -> dict:
  """Times workers in turns; returns medians in ms, our share of the fastest other's, and memory.

  Of a worker "products" there is the "floor", its share of the fastest other's.
  """
  times: dict[str, list[float]] = {name: [] for name in workers}
  for _ in range(rounds):
    for name, worker in workers.items():
      time.sleep(0.5)  # lets the other's idle threads stop spinning
      times[name] += worker.ask(str(steps))["ms"]
  ends = {name: worker.ask("end") for name, worker in workers.items()}
  Worker.stop()
  medians = {name: statistics.median(values) for name, values in times.items()}
  others = [name for name in medians if name not in ("jaxtune", "products")]
  fastest = min(others, key=medians.__getitem__)
  share = lambda name: round(medians[name] / medians[fastest], 3)
  return {
    "ms": {name: round(value, 1) for name, value in medians.items()},
    "ratio": share("jaxtune"),
    **({"floor": share("products")} if "products" in medians else {}),
    "peak_MB": {name: round(end["peak_MB"]) for name, end in ends.items()},
    "memory_ratio": round(ends["jaxtune"]["peak_MB"] / ends[fastest]["peak_MB"], 3),
    "loss": {name: end.get("loss") for name, end in ends.items()},
    "GFLOP": ends["jaxtune"].get("GFLOP"),
  }


def measure_step() -> dict:
  """Times an update of each method, beside the same library as it is and compiled by torch.

  And beside the matrix products alone, without which no update of a method gets by.
  """
  found = {}
  for method in ("lora", "prefix", "adapter", "full"):
    workers = {"jaxtune": Worker("jaxtune", "step", method)}
    if method in ("lora", "prefix"):
      workers["products"] = Worker("jaxtune", "products")
    python = os.environ.get("JAXTUNE_ADAPTERS_PYTHON") if method == "adapter" else sys.executable
    for how in ("eager", "compile") if python and not TINY else ("eager",) if python else ():
      workers[f"{OTHERS[method]}, {how}"] = Worker("others", "step", method, how, python=python)
    if len(workers) > 1:
      found[method] = in_turns(workers, ROUNDS, STEPS)
  return found


def measure_compiling() -> dict:
  """Measures the processor time in which an update of 12 and of 48 layers is compiled."""
  run = [sys.executable, str(HERE / "with_jaxtune.py"), "compiling", *TINY]
  seconds = json.loads(subprocess.run(run, check=True, capture_output=True, text=True).stdout)
  return {"seconds": seconds, "ratio": round(seconds["48"] / seconds["12"], 3)}


def measure_generate() -> dict:
  """Times a batch of greedy texts; the ratio is of times, so that twice as fast is 0.5."""
  workers = {"jaxtune": Worker("jaxtune", "generate"), "transformers": Worker("others", "generate")}
  return in_turns(workers, ROUNDS, 1)


def measure_feedback() -> dict:
  """Times updates of DPO and of GRPO, with its answers, beside trl with peft, by its trainers."""
  found = {}
  for objective, ways in (("dpo", ("", "precomputed")), ("grpo", ("",))):
    workers = {"jaxtune": Worker("jaxtune", "feedback", objective)}
    for how in ways:
      name = f"trl, {how}" if how else "trl"
      workers[name] = Worker("others", "feedback", objective, *filter(None, [how]))
    found[objective] = in_turns(workers, ROUNDS, STEPS)
  return found


def measure_group() -> dict:
  """Times both makespans, start-up and compilation included."""
  with tempfile.TemporaryDirectory() as folder:
    began = time.perf_counter()
    run = [sys.executable, str(HERE / "with_jaxtune.py"), "group", folder, *TINY]
    subprocess.run(run, check=True, stdout=subprocess.DEVNULL)
    ours = time.perf_counter() - began
  began = time.perf_counter()
  for trial in range(TRIALS):
    run = [sys.executable, str(HERE / "with_others.py"), "trial", str(trial), *TINY]
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


TEXT = """# Speed, beside peft, adapters and transformers

Written by `make speed` on {date}: {device}, {cores} cores, jax {jax}, torch {torch}, peft {peft}.
Measured on: {dates}.
fp32. An update is of GPT-2 small's shape with random weights and AdamW; LoRA has rank 8 on q and v
(in peft on q, k and v, which GPT-2 has in one matrix), the prefix length 20. Below 1 jaxtune is
faster, or smaller, than the faster one of the others.

| GPT-2 small, 4 x 128: an update, median ms | jaxtune | eager | torch.compile | ratio | of memory |
| --- | ---: | ---: | ---: | ---: | ---: |
{steps}

The products alone are those with the frozen weights, forward and backward to the inputs, and of
attention, as XLA computes them in the same turns, without norms, softmax, loss, method and
optimizer. No update of a method can do without them, so their share of peft's time is the least
that the ratio could be here: {floors}.
{before}
| | jaxtune | others | ratio |
| --- | ---: | ---: | ---: |
| 64 tokens for each of 8 prompts of 32, GPT-2 small: ms (transformers) | {ours} | {theirs} | \
**{generate_ratio}** |
| DPO on 8 pairs, bundled model: ms (trl with peft) | {dpo_ours} | {dpo_theirs} | **{dpo_ratio}** |
| GRPO, drawing and learning 32 answers of 32 tokens: ms (trl with peft) | {grpo_ours} | \
{grpo_theirs} | **{grpo_ratio}** |
| 16 trials of 100 updates on the bundled model, start to end: seconds (peft) | {group_ours} | \
{group_theirs} | **{group_ratio}** |

What is measured on a GPU has [a page of its own](GPU.md).

An update of 48 layers takes {compiling} of the processor time to compile that one of 12 takes.
Trials side by side in one vmap, ms of a trial's update in a group of 16: {chunks}.
The default on this backend is {default}. The products of such an update, alone: {products} ms.

Choices that ARCHITECTURE.md names, median ms in turns (attention with its gradient):

{choices}
"""


# Of the measurement before this one: XLA's rate cannot have been below that of the whole update.
BEFORE = """
How fast XLA multiplies matrices depends on the processor more than anything else does: here at
{rate} GFLOP/s. On {date}, on two cores that did so at {old_rate} or more, the same updates took

| GPT-2 small, 4 x 128: an update, median ms | jaxtune | eager | torch.compile | ratio | of memory |
| --- | ---: | ---: | ---: | ---: | ---: |
{steps}
"""


def _before(results: dict) -> str:
  """Lays out the measurement of updates before this one, if there is one."""
  known, lora = results.get("before"), results["step"].get("lora", {})
  if not known or not lora.get("GFLOP"):
    return ""
  rate = lambda step, name: round(1000 * lora["GFLOP"] / step["lora"]["ms"][name])
  return BEFORE.format(
    date=known["date"], steps=_rows(known["step"]), rate=rate(results["step"], "products"),
    old_rate=rate(known["step"], "jaxtune"),
  )  # fmt: skip


def _rows(step: dict) -> str:
  """Lays out the updates of each method."""
  rows = []
  for method, one in step.items():
    by_how = {name.rpartition(", ")[2]: ms for name, ms in one["ms"].items()}
    cells = [by_how.get(how, "") for how in ("jaxtune", "eager", "compile")]
    name = f"{NAMES[method]} ({OTHERS[method]})"
    cells = [name, *cells, f"**{one['ratio']}**", one["memory_ratio"]]
    rows.append("| " + " | ".join(map(str, cells)) + " |")
  return "\n".join(rows)


def write(results: dict, folder: Path) -> None:
  group, generate = results["group"], results["generate"]
  choices = "\n".join(
    f"- {what}: " + ", ".join(f"{name} {ms}" for name, ms in row.items())
    for what, row in results["choices"].items()
  )
  sizes = {n: ms for n, ms in results["chunk"].items() if n != "products"}
  chunks = ", ".join(f"{n} at a time {ms} ms" for n, ms in sizes.items())
  floors = ", ".join(
    f"{NAMES[method]} {one['ms']['products']} ms, {one['floor']}"
    for method, one in results["step"].items()
    if "floor" in one
  )
  text = TEXT.format(
    **results["versions"], steps=_rows(results["step"]), chunks=chunks, choices=choices,
    floors=floors, products=results["chunk"].get("products", "not measured"),
    before=_before(results),
    dates=", ".join(f"{name} {date}" for name, date in results["dates"].items()),
    ours=generate["ms"]["jaxtune"], theirs=generate["ms"]["transformers"],
    generate_ratio=generate["ratio"], compiling=results["compiling"]["ratio"],
    **_of_feedback(results["feedback"]),
    group_ours=group["seconds"]["jaxtune"],
    group_theirs=group["seconds"]["peft"], group_ratio=group["ratio"],
    default="1" if results["versions"]["device"] == "cpu" else "all of them",
  )  # fmt: skip
  (folder / "README.md").write_text(text)


def _of_feedback(results: dict) -> dict:
  """Returns what TEXT needs of DPO and GRPO."""
  found = {}
  for name, one in results.items():
    others = ", ".join(f"{ms} ({who})" for who, ms in one["ms"].items() if who != "jaxtune")
    found |= {f"{name}_ours": one["ms"]["jaxtune"], f"{name}_theirs": others}
    found[f"{name}_ratio"] = one["ratio"]
  return found


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument(
    "--only", choices=("step", "generate", "feedback", "compiling", "group", "chunk", "choices")
  )
  parser.add_argument("--tiny", action="store_true", help="the smallest sizes of everything")
  parser.add_argument("--out", type=Path, default=HERE, help="where results go")
  options = parser.parse_args()
  only, path = options.only, options.out / "results.json"
  results = json.loads(path.read_text()) if only and path.exists() else {}
  measures = {
    "step": measure_step,
    "generate": measure_generate,
    "feedback": measure_feedback,
    "compiling": measure_compiling,
    "chunk": measure_chunk,
    "choices": measure_choices,
    "group": measure_group,
  }
  for name, measure in measures.items():
    if only in (None, name):
      print(f"measuring {name} ...", flush=True)
      if name == "step" and "step" in results:
        results["before"] = {"date": results["versions"]["date"], "step": results["step"]}
      results[name] = measure()
      results.setdefault("dates", {})[name] = datetime.date.today().isoformat()
      print(json.dumps(results[name], indent=2), flush=True)
  results["versions"] = versions()
  path.write_text(json.dumps(results, indent=2) + "\n")
  if all(name in results for name in measures):
    write(results, options.out)


if __name__ == "__main__":
  main()
