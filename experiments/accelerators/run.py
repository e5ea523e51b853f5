"""Compiles training steps of known shapes for TPUs and GPUs that need not be here.

  python experiments/accelerators/run.py [--only NAME] [--top 12] [--text FOLDER] [--out FOLDER]

Writes results.json and README.md, and ends with code 1 where a figure is above its bound, or where
a GPU's step lacks a fused kernel. With --only, other rows of the same versions stay. All figures
are estimates of the devices' compilers, which are deterministic; nothing is run.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import re
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
from jaxtune.preflight import compiled, devices, elsewhere, fit, lowered
from jaxtune.runs.trial import Trial, make_methods, objective_of

HERE = Path(__file__).resolve().parent
MODELS = json.loads((HERE / "models.json").read_text())
LORA, PREFIX = {"name": "lora", "rank": 8}, {"name": "prefix", "length": 16}
LARGE = {"name": "lora", "rank": 128, "targets": ["q_proj", "v_proj", "up_proj"]}
PACKAGES = ("jax", "libtpu", "jax-cuda12-plugin")


# The rows of the README's table.
SHORT = {
  "1b": "Llama 1B, LoRA, 8 x 1,024",
  "1b-long": "Llama 1B, LoRA, 1 x 32,768",
  "1b-sequence": "Llama 1B, LoRA, 1 x 131,072, sequence 4",
  "8b-fsdp": "Llama 8B, LoRA, 16 x 2,048, fsdp 16",
  "70b": "Llama 70B, LoRA, 64 x 2,048, fsdp 64",
  "16-trials": "16 LoRA trials of GPT-2 small in one program, 8 x 128",
  "16-trials-gpu": "the same",
  "8b-nf4-small": "Llama 8B in NF4, LoRA, 4 x 1,024",
}
# What an operation's name says of where it belongs; the first that fits.
PLACES = {
  "norms": r"norm", "attention": r"attend|splash|fmha", "feed-forward": r"/mlp",
  "projections, RoPE": r"/attn", "logits": r"score|logits|head|embed",
  "loops and layers": r"trunk|layers",
}  # fmt: skip
# What it says of the pass that it belongs to; the first that fits.
PASSES = {
  "computed again": r"rematted_computation", "backward": r"transpose\(|splash_mha_d",
  "forward": r"",
}  # fmt: skip
BEGIN = "<!-- accelerators table: written by experiments/accelerators/run.py -->\n"
END = "<!-- end of accelerators -->\n"


class Step(NamedTuple):
  """A training step in bf16, and what it may take on each device.

  Attributes:
    before: the figures at commit 0cdf06b.
    bounds: the most for the keys of a row of results.
    more: the method, by default LoRA with rank 8; the mesh, the number of trials side by side, the
      parts in which the batch is computed ("accumulate"), and options of the model, by default full
      rematerialisation.
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
  "gemma3-long": Step("Gemma 3 1B", "v5e", 1, 32768, {}, {"peak_GB": 15.75}),
  "1b-sequence": Step("Llama 1B", "v5e:2x2", 1, 131072, {},
                      {"peak_GB": 8, "gathered_GB": 0.1, "other_GB": 16.2},
                      {"mesh": {"sequence": 4}}),
  "1b-sequence-16": Step("Llama 1B", "v5e:4x4", 1, 131072, {},
                         {"peak_GB": 5, "gathered_GB": 8.7, "other_GB": 4.4},
                         {"mesh": {"sequence": 16}}),
  "8b-fsdp": Step("Llama 8B", "v5e:4x4", 16, 2048,
                  {"Mcycles": 3016, "peak_GB": 10.8, "gathered_GB": 13, "other_GB": 193},
                  {"Mcycles": 1100, "peak_GB": 6, "gathered_GB": 50, "other_GB": 1},
                  {"mesh": {"fsdp": 16}}),
  "8b-rank": Step("Llama 8B", "v5e:4x4", 16, 2048, {}, {"peak_GB": 3},
                  {"mesh": {"fsdp": 16}, "method": LARGE}),
  "8b-tensor": Step("Llama 8B", "v5e:4x4", 16, 2048, {"Mcycles": 2177}, {"Mcycles": 1200},
                    {"mesh": {"data": 4, "tensor": 4}, "accumulate": 4, "remat": "linear"}),
  "70b": Step("Llama 70B", "v5e:8x8", 64, 2048, {}, {"peak_GB": 15.75}, {"mesh": {"fsdp": 64}}),
  "16-trials": Step("GPT-2 small", "v5e", 8, 128, {"peak_GB": 12.3}, {"peak_GB": 5},
                    {"trials": 16, "remat": "linear"}),
  "16-trials-fsdp": Step("Llama 1B", "v5e:4x4", 8, 1024, {},
                         {"peak_GB": 8, "Mcycles": 750, "gathered_GB": 5, "other_GB": 0.1},
                         {"trials": 16, "mesh": {"trial": 4, "fsdp": 4}, "remat": "linear"}),
  "small-gpu": Step("GPT-2 small", "h200", 8, 512, {}, {}),
  "8b-gpu": Step("Llama 8B", "h200", 4, 1024, {}, {}),
  "1b-gpu": Step("Llama 1B", "h200", 8, 1024, {"peak_GB": 5.53}, {}),
  "1b-gpu-sequence": Step("Llama 1B", "h200:4", 1, 65536, {}, {}, {"mesh": {"sequence": 4}}),
  "1b-gpu-prefix": Step("Llama 1B", "h200", 8, 1024, {}, {}, {"method": PREFIX}),
  "mistral": Step("Mistral 7B", "h200", 1, 8192, {}, {}),
  "mistral-prefix": Step("Mistral 7B", "h200", 1, 8192, {}, {}, {"method": PREFIX}),
  "gemma3": Step("Gemma 3 1B", "h200", 8, 1024, {}, {}),
  "gemma3-prefix": Step("Gemma 3 1B", "h200", 8, 1024, {}, {}, {"method": PREFIX}),
  "8b-nf4": Step("Llama 8B", "h200", 4, 1024, {"peak_GB": 8.3}, {"peak_GB": 6.8},
                 {"quantize": "nf4", "accumulate": 4}),
  "8b-nf4-whole": Step("Llama 8B", "h200", 4, 1024, {"peak_GB": 8.3}, {}, {"quantize": "nf4"}),
  "8b-nf4-small": Step("Llama 8B", "rtx4090", 4, 1024, {}, {"peak_GB": 6.8},
                       {"quantize": "nf4", "accumulate": 4}),
  "16-trials-gpu": Step("GPT-2 small", "h200", 8, 128, {"peak_GB": 12.3}, {"peak_GB": 5},
                        {"trials": 16, "remat": "linear"}),
}  # fmt: skip
TITLES = {
  "tpu": {
    "peak_GB": "peak, GB", "Mcycles": "Mcycles", "gathered_GB": "all-gather, GB",
    "other_GB": "other collectives, GB",
  },
  "cuda": {
    "peak_GB": "peak, GB", "floor_ms": "FLOPs at the peak rate, ms",
    "fused_forward": "fused kernels forward", "fused_backward": "and backward",
  },
}  # fmt: skip


def outline(
  name: str, rows: int, trials: int = 1, mesh: Any = None, accumulate: int = 1,
  method: dict = LORA, **model,
) -> list[Trial]:  # fmt: skip
  """Makes the trials of a step, of shapes, and without data."""
  section = {"architecture": MODELS[name], "dtype": "bfloat16", "remat": True} | model
  made: list[Trial] = []
  for i in range(trials):
    full = config.complete({
      "model": section, "data": {"train": ""}, "method": method,
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
  batch = shapes(step, len(trials), parts)
  group = lowered.outline(trials, device, found)
  program = lowered.lower_step(group, batch, len(trials))
  began = time.perf_counter()
  (built,) = compiled.build([program], step.device, None)
  seconds = time.perf_counter() - began
  if text_folder is not None:
    text_folder.mkdir(parents=True, exist_ok=True)
    (text_folder / f"{name}.txt").write_text(built.text)
  figures = compiled.read(
    built,
    device,
    fit.bytes_of(group, group.base),
    elsewhere.marks(group, batch, "training step"),
    elsewhere.local(group),
  )
  operations = figures.pop("dearest")
  for one in operations[:top]:
    print(f"{one['Mcycles']:10.1f} Mcycles  {one['name'][-110:]}  {one['source']}", flush=True)
  sums = lambda names: {key: sums_of(operations, key, names) for key in ("Mcycles", "GB")}
  figures["where"], figures["passes"] = sums(PLACES), sums(PASSES)
  moved = figures.pop("moved_GB")
  figures["gathered_GB"] = moved.pop("all-gather", 0.0)
  figures["other_GB"] = sum(moved.values())
  if device.platform == "cuda":
    figures |= fused(figures["kernels"])
  whole = lowered.flops(group, shapes(step, len(trials), 1))
  figures["floor_ms"] = 1e3 * whole / group.parallel.devices / device.flops
  figures["traffic_ms"] = 1e12 * figures["traffic_GB"] / device.bandwidth
  return figures | {"seconds_to_compile": round(seconds, 1)}


def sums_of(operations: list[dict], key: str, names: dict[str, str]) -> dict[str, float]:
  """Adds up "Mcycles", or "GB" to and from memory, of operations by what their names say."""
  sums = dict.fromkeys([*names, "the rest"], 0.0)
  for one in operations:
    fits = (place for place, name in names.items() if re.search(name, one["name"]))
    sums[next(fits, "the rest")] += one[key]
  return sums


def shapes(step: Step, trials: int, parts: int) -> dict:
  """Returns the shapes of a batch (E, A, B, T) in A parts."""
  array = partial(jax.ShapeDtypeStruct, (trials, parts, step.rows // parts, step.tokens))
  return {"tokens": array(jnp.int32), "mask": array(bool), "weights": array(jnp.float32)}


def fused(kernels: dict[str, int]) -> dict:
  """Counts cuDNN's kernels for attention in a text, which has the layers' loops once."""
  backward = sum(count for name, count in kernels.items() if name.endswith("Backward"))
  return {"fused_forward": sum(kernels.values()) - backward, "fused_backward": backward}


def broken(rows: dict[str, dict]) -> list[str]:
  """Lists the figures that are above their bounds, and the steps without fused kernels."""
  above = [
    f"{name}: {key} is {row[key]:.4g}, expected at most {most:g}"
    for name, row in rows.items()
    for key, most in STEPS[name].bounds.items()
    if row[key] > most
  ]
  plain = [
    f"{name}: {key} is 0, expected kernels for attention"
    for name, row in rows.items()
    for key in ("fused_forward", "fused_backward")
    if row.get(key) == 0
  ]
  return above + plain


def table(rows: dict[str, dict], platform: str) -> str:
  """Lays the results of a platform out, each as "figure (before; at most)"."""
  titles = TITLES[platform]
  lines = ["| | device | batch | " + " | ".join(titles.values()) + " |"]
  lines.append("| --- | --- | --- |" + " ---: |" * len(titles))
  for name, step in STEPS.items():
    if name not in rows or devices.KNOWN[step.device.partition(":")[0]].platform != platform:
      continue
    row, cells = rows[name], []
    for key in titles:
      words = {"before": step.before, "at most": step.bounds}
      notes = [f"{word} {known[key]:g}" for word, known in words.items() if key in known]
      cells.append(f"{row[key]:.4g}" + (f" ({'; '.join(notes)})" if notes else ""))
    trials = f"{step.more['trials']} trials of " if "trials" in step.more else ""
    parts = f", in {step.more['accumulate']} parts" if "accumulate" in step.more else ""
    batch = f"{step.rows} x {step.tokens:,}{parts}"
    mesh = ", ".join(f"{axis} {size}" for axis, size in step.more.get("mesh", {}).items())
    method = step.more.get("method", {})
    named = f"LoRA of rank {method['rank']}" if "rank" in method else method.get("name")
    extras = [step.more.get("quantize", "").upper(), named]
    model = ", ".join(filter(None, [f"{trials}{step.model}", *extras]))
    cells = [model, f"{step.device}{mesh and ': '}{mesh}", batch, *cells]
    lines.append(f"| {' | '.join(cells)} |")
  return "\n".join(lines)


def where(rows: dict[str, dict]) -> str:
  """Lays out where the cycles, or the bytes, of each step go, and what its peak consists of."""
  parts, lines = ("base", "trained", "logits", "activations"), []
  heads = [*(f"{part}, GB" for part in parts), *PLACES, "the rest"]
  lines = [f"| | {' | '.join(heads)} |", "| --- |" + " ---: |" * len(heads)]
  for name in (name for name in STEPS if name in rows):
    row, unit = rows[name], "Mcycles" if rows[name]["Mcycles"] else "GB"
    cells = [f"{row['parts_GB'].get(part, 0.0):.2f}" for part in parts]
    cells += [f"{value:.4g} {unit}" for value in row["where"][unit].values()]
    lines.append(f"| {name} | {' | '.join(cells)} |")
  return "\n".join(lines)


def above(rows: dict[str, dict]) -> str:
  """Lays out each step's time beside what its products and its traffic take at the peak rates."""
  heads = ("time, ms", "its products, ms", "its traffic, ms", *PASSES)
  lines = [f"| | {' | '.join(heads)} |", "| --- |" + " ---: |" * len(heads)]
  for name in (name for name in STEPS if name in rows):
    row, device = rows[name], devices.KNOWN[STEPS[name].device.partition(":")[0]]
    unit = "Mcycles" if row["Mcycles"] else "GB"
    time = f"{1e9 * row['Mcycles'] / device.clock:,.0f}" if row["Mcycles"] else "not known"
    total = sum(row["passes"][unit].values())
    shares = [f"{row['passes'][unit][key] / total:.0%}" for key in PASSES]
    cells = [time, f"{row['floor_ms']:,.0f}", f"{row['traffic_ms']:,.0f}", *shares]
    lines.append(f"| {name} | {' | '.join(cells)} |")
  return "\n".join(lines)


def tables(rows: dict[str, dict]) -> str:
  """Lays all results out."""
  return "\n\n".join([
    *(table(rows, platform) for platform in TITLES),
    "What stands in memory at the peak, and where the cycles of a TPU's step, or the bytes of\n"
    "a GPU's to and from memory, go; forward, backward and recomputed together:",
    where(rows),
    "The time of each step beside what its products, none of them twice and attention between all\n"
    "pairs of tokens, and its traffic with memory take at the device's peak rates; and the shares\n"
    "of its cycles, or on GPUs of its traffic, by pass:",
    above(rows),
  ])  # fmt: skip


def write(out: Path, rows: dict[str, dict], versions: dict[str, str]) -> dict[str, dict]:
  """Writes results.json and README.md; returns all rows, with those of earlier runs."""
  place = out / "results.json"
  known = json.loads(place.read_text()) if place.exists() else {"versions": {}, "steps": {}}
  if known["versions"].items() <= versions.items():
    rows = {name: row for name, row in known["steps"].items() if name in STEPS} | rows
  result = {"date": str(date.today()), "versions": versions, "steps": rows}
  place.write_text(json.dumps(result, indent=2) + "\n")
  notes = (out / "notes.md").read_text() if (out / "notes.md").exists() else ""
  said = ", ".join(f"{name} {version}" for name, version in versions.items())
  head = (
    "# Accelerators, by their compilers\n\n"
    f"Written by `make accelerators` on {date.today()}: {said}.\n"
    "A step in bf16, of LoRA with rank 8 where no other method is named; figures are of each\n"
    "device. They are the compilers' estimates; nothing was run.\n\n"
  )
  (out / "README.md").write_text(f"{head}{tables(rows)}\n\n{notes}")
  if out.resolve() == HERE and SHORT.keys() <= rows.keys():
    page = HERE.parents[1] / "README.md"
    page.write_text(insert(page.read_text(), rows))
  return rows


def insert(page: str, rows: dict[str, dict]) -> str:
  """Returns the text of the README with its short table."""
  lines = ["| a step | on each device | peak, GB | time |", "| --- | --- | ---: | --- |"]
  for name, what in SHORT.items():
    step, row = STEPS[name], rows[name]
    device = devices.KNOWN[step.device.partition(":")[0]]
    time = f"products {row.get('floor_ms', 0):.0f} ms"
    if device.platform == "tpu":
      time = f"{1e9 * row['Mcycles'] / device.clock:,.0f} ms"
    lines.append(f"| {what} | {step.device} | {row['peak_GB']:.2f} | {time} |")
  before, _, rest = page.partition(BEGIN)
  return before + BEGIN + "\n".join(lines) + "\n" + END + rest.partition(END)[2]


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--only", action="append", choices=STEPS, help="a step; may be repeated")
  parser.add_argument("--top", type=int, default=0, help="prints the dearest operations")
  parser.add_argument("--text", type=Path, help="a folder for the compiled modules")
  parser.add_argument("--out", type=Path, help="a folder for results.json and README.md")
  options, rows = parser.parse_args(), {}
  packages = PACKAGES if options.out else ()  # both compilers, before anything is compiled
  versions = {name: importlib.metadata.version(name) for name in packages}
  for name in options.only or STEPS:
    rows[name] = measure(name, STEPS[name], options.text, options.top)
    print(name, json.dumps(rows[name], default=lambda x: round(x, 3)), flush=True)
  found = broken(rows)
  if options.out is not None:
    rows = write(options.out, rows, versions)
  print(tables(rows))
  for line in found:
    print(line, file=sys.stderr)
  return int(bool(found))


if __name__ == "__main__":
  sys.exit(main())
