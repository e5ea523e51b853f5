"""Compiles training steps of known shapes for TPUs and GPUs that need not be here.

  python experiments/accelerators/run.py [--only NAME] [--top 12] [--text FOLDER] [--out FOLDER]

Writes results.json and README.md, and ends with code 1 where a figure is above its bound. All
figures are estimates of the devices' compilers, which are deterministic; nothing is run.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import sys
import time
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxtune import config, peft
from jaxtune.models import hf
from jaxtune.preflight import compiled, devices, lowered
from jaxtune.runs.trial import Trial, make_methods, objective_of

LLAMA = dict(model_type="llama", vocab_size=128256, rms_norm_eps=1e-5, rope_theta=5e5)
MODELS = {
  "Llama 1B": LLAMA | dict(
    hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
    num_key_value_heads=8, head_dim=64, max_position_embeddings=131072, tie_word_embeddings=True,
  ),
  "Llama 8B": LLAMA | dict(
    hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
    num_key_value_heads=8, max_position_embeddings=8192, tie_word_embeddings=False,
  ),
  "Llama 70B": LLAMA | dict(
    hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64,
    num_key_value_heads=8, max_position_embeddings=8192, tie_word_embeddings=False,
  ),
  "GPT-2 small": dict(
    model_type="gpt2", vocab_size=50257, n_embd=768, n_layer=12, n_head=12, n_positions=1024,
  ),
}  # fmt: skip
LORA = {"name": "lora", "rank": 8}


class Step(NamedTuple):
  """A training step of LoRA with rank 8 in bf16, and what it may take on each device.

  Attributes:
    before: the figures at commit 0cdf06b.
    bounds: the most for the keys of a row of results.
    more: the mesh, the number of trials side by side, the parts in which the batch is computed
      ("accumulate"), and options of the model, by default full rematerialisation.
  """

  model: str
  device: str
  rows: int
  tokens: int
  before: dict
  bounds: dict
  more: dict = {}


STEPS = {
  "1b": Step("Llama 1B", "v5e", 8, 1024, {"Mcycles": 1505, "peak_GB": 5.35},
             {"Mcycles": 650, "peak_GB": 3.6}, {"accumulate": 8, "remat": "linear"}),
  "1b-whole": Step("Llama 1B", "v5e", 8, 1024, {"Mcycles": 1505, "peak_GB": 5.35}, {}),
  "1b-long": Step("Llama 1B", "v5e", 1, 32768, {}, {"peak_GB": 15.75}),
  "8b-fsdp": Step("Llama 8B", "v5e:4x4", 16, 2048,
                  {"Mcycles": 3016, "peak_GB": 10.8, "gathered_GB": 13, "other_GB": 193},
                  {"Mcycles": 1100, "peak_GB": 6, "gathered_GB": 50, "other_GB": 1},
                  {"mesh": {"fsdp": 16}}),
  "8b-tensor": Step("Llama 8B", "v5e:4x4", 16, 2048, {"Mcycles": 2177}, {"Mcycles": 1200},
                    {"mesh": {"data": 4, "tensor": 4}, "accumulate": 4, "remat": "linear"}),
  "70b": Step("Llama 70B", "v5e:8x8", 64, 2048, {}, {"peak_GB": 15.75}, {"mesh": {"fsdp": 64}}),
  "16-trials": Step("GPT-2 small", "v5e", 8, 128, {"peak_GB": 12.3}, {"peak_GB": 5},
                    {"trials": 16, "remat": "linear"}),
}  # fmt: skip
TITLES = {
  "peak_GB": "peak, GB", "Mcycles": "Mcycles", "gathered_GB": "all-gather, GB",
  "other_GB": "other collectives, GB",
}  # fmt: skip


def outline(
  name: str, rows: int, trials: int = 1, mesh: Any = None, accumulate: int = 1, **model
) -> list[Trial]:
  """Makes the trials of a step, of shapes, and without data."""
  section = {"architecture": MODELS[name], "dtype": "bfloat16", "remat": True} | model
  made: list[Trial] = []
  for i in range(trials):
    full = config.complete({
      "model": section, "data": {"train": ""}, "method": LORA,
      "train": {
        "steps": 1000, "batch_size": rows, "mesh": mesh or {"data": 1}, "accumulate": accumulate,
      },
      "optim": {"learning_rate": 1e-3 * (i + 1)},
    })  # fmt: skip
    pretrained = made[0].pretrained if made else hf.outline(**full["model"])
    sites = made[0].sites if made else peft.find_sites(pretrained.model)
    methods, objective = make_methods(full), objective_of(full)
    made.append(Trial(full, pretrained, sites, None, "", methods, objective))
  return made


def measure(name: str, step: Step, text_folder: Path | None = None, top: int = 0) -> dict:
  """Compiles a step; returns its row of results."""
  trials = outline(step.model, step.rows, **step.more)
  device, found = devices.describe(step.device)
  parts = step.more.get("accumulate", 1)
  array = partial(jax.ShapeDtypeStruct, (len(trials), parts, step.rows // parts, step.tokens))
  batch = {"tokens": array(jnp.int32), "mask": array(bool), "weights": array(jnp.float32)}
  program = lowered.lower_step(lowered.outline(trials, device, found), batch, len(trials))
  began = time.perf_counter()
  (built,) = compiled.build([program], step.device, None)
  seconds = time.perf_counter() - began
  if text_folder is not None:
    text_folder.mkdir(parents=True, exist_ok=True)
    (text_folder / f"{name}.txt").write_text(built.text)
  figures = compiled.read(built, device)
  for one in figures.pop("dearest")[:top]:
    print(f"{one['Mcycles']:10.1f} Mcycles  {one['name'][-110:]}  {one['source']}", flush=True)
  del figures["parts_GB"]
  moved = figures.pop("moved_GB")
  figures["gathered_GB"] = moved.pop("all-gather", 0.0)
  figures["other_GB"] = sum(moved.values())
  return figures | {"seconds_to_compile": round(seconds, 1)}


def broken(rows: dict[str, dict]) -> list[str]:
  """Lists the figures that are above their bounds."""
  return [
    f"{name}: {TITLES[key]} {row[key]:.4g}, expected at most {most:g}"
    for name, row in rows.items()
    for key, most in STEPS[name].bounds.items()
    if row[key] > most
  ]


def table(rows: dict[str, dict]) -> str:
  """Lays the results out, each as "figure (before; at most)"."""
  lines = ["| | device | batch | " + " | ".join(TITLES.values()) + " |"]
  lines.append("| --- | --- | --- |" + " ---: |" * len(TITLES))
  for name, row in rows.items():
    step, cells = STEPS[name], []
    for key in TITLES:
      words = {"before": step.before, "at most": step.bounds}
      notes = [f"{word} {known[key]:g}" for word, known in words.items() if key in known]
      cells.append(f"{row[key]:.4g}" + (f" ({'; '.join(notes)})" if notes else ""))
    trials = f"{step.more['trials']} trials of " if "trials" in step.more else ""
    parts = f", in {step.more['accumulate']} parts" if "accumulate" in step.more else ""
    batch = f"{step.rows} x {step.tokens:,}{parts}"
    mesh = ", ".join(f"{axis} {size}" for axis, size in step.more.get("mesh", {}).items())
    cells = [f"{trials}{step.model}", f"{step.device}{mesh and ': '}{mesh}", batch, *cells]
    lines.append(f"| {' | '.join(cells)} |")
  return "\n".join(lines)


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--only", action="append", choices=STEPS, help="a step; may be repeated")
  parser.add_argument("--top", type=int, default=0, help="prints the dearest operations")
  parser.add_argument("--text", type=Path, help="a folder for the compiled modules")
  parser.add_argument("--out", type=Path, help="a folder for results.json and README.md")
  options, rows = parser.parse_args(), {}
  for name in options.only or STEPS:
    rows[name] = measure(name, STEPS[name], options.text, options.top)
    print(name, json.dumps(rows[name], default=lambda x: round(x, 3)), flush=True)
  print(table(rows))
  if options.out is not None:
    versions = {name: importlib.metadata.version(name) for name in ("jax", "libtpu")}
    result = {"date": str(date.today()), "versions": versions, "steps": rows}
    (options.out / "results.json").write_text(json.dumps(result, indent=2) + "\n")
    notes = (options.out / "notes.md").read_text() if (options.out / "notes.md").exists() else ""
    said = ", ".join(f"{name} {version}" for name, version in versions.items())
    head = (
      "# Accelerators, by their compilers\n\n"
      f"Written by `make accelerators` on {date.today()}: {said}. A step of LoRA with rank 8 in\n"
      "bf16; figures are of each device. They are the compiler's estimates; nothing was run.\n\n"
    )
    (options.out / "README.md").write_text(f"{head}{table(rows)}\n\n{notes}")
  for line in (found := broken(rows)):
    print(line, file=sys.stderr)
  return int(bool(found))


if __name__ == "__main__":
  sys.exit(main())
