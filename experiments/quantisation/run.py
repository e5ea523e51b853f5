"""Compares a base in fp32, bf16, int8 and NF4, untuned and with LoRA; writes results and README.

  python experiments/quantisation/run.py [--model FOLDER ...] [--out FOLDER]
  python experiments/quantisation/run.py --tiny --out FOLDER   # whether it runs: one update

Each model (the bundled one, and any Llama's folder with a tokenizer) is loaded in every form; its
loss on the held-out answers of the bundled instructions is measured untuned, and after the same few
LoRA updates from the same seeds. Costs about five minutes of 2 cores.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import math
import statistics
import sys
import tempfile
from pathlib import Path

import jax

from jaxtune import config
from jaxtune.assets import INSTRUCTIONS, TINY
from jaxtune.models import quantize
from jaxtune.runs import baseline, group
from jaxtune.runs import trial as setups
from jaxtune.runs.folder import versions

HERE = Path(__file__).resolve().parent
SEEDS, STEPS = (0, 1), 1 if "--tiny" in sys.argv else 40
FORMS = {
  "fp32": ("float32", None),
  "bf16": ("bfloat16", None),
  "int8": ("float32", "int8"),
  "NF4": ("float32", "nf4"),
}
COLUMNS = ("model", "base", "seed", "untuned_loss", "tuned_loss", "frozen_MB", "bits_a_weight")
TEXT = """# A quantised base: what it costs in loss

Written by `python experiments/quantisation/run.py` on {date}: {device}, jax {jax}.

A base is loaded in fp32, in bf16, and with the layers' kernels in int8 or NF4 (double quantised;
embeddings, norms and head stay as they are). The loss is of the answers in the bundled
instructions' test split, in nats a token, untuned and after {steps} LoRA updates (rank 8 on every
linear layer, batch 8, learning rate {rate}, nothing tuned for any form), the mean of {seeds} seeds.
In brackets is the difference to fp32; after tuning, with the standard deviation over seeds of that
difference. MB are of the whole frozen base, embeddings and norms included.

{tables}

Published, for far larger models: LoRA on every layer over NF4 with double quantisation matches
16-bit fine-tuning (LLaMA of 7B to 65B; Dettmers et al. 2023), and LLM.int8(), whose products are in
8 bits too where ours are not, loses nothing up to 175B (Dettmers et al. 2022). Models as small as
these have less to spare: expect more loss here, not less.
"""
TABLE = """## {model}

| base | untuned loss | perplexity | after LoRA | frozen MB | bits a kernel's weight |
| --- | ---: | ---: | ---: | ---: | ---: |
"""


def settings(model: str, dtype: str, form: str | None) -> dict:
  return {
    "model": {"path": model, "dtype": dtype, "quantize": form, "remat": True},
    "data": {name: str(INSTRUCTIONS / f"{name}.jsonl") for name in ("train", "test")}
    | {"max_length": 320},
    "method": {"name": "lora", "rank": 8, "scale": 2.0, "targets": (".*_proj",)},
    "optim": {"learning_rate": 2e-3, "schedule": "linear", "warmup": 10},
    "train": {"steps": STEPS, "batch_size": 8, "eval_every": STEPS, "mesh": {"data": 1}},
  }


def measure(model: str, name: str, workdir: Path) -> list[dict]:
  """Trains on one form of a base with every seed."""
  dtype, form = FORMS[name]
  plain = settings(model, dtype, form)
  completed = config.complete(plain)
  setup = setups.prepare(completed)
  params = setup.pretrained.params
  frozen = round(sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(params)) / 1e6, 3)
  bits = quantize.bits(params) or {"float32": 32, "bfloat16": 16}[dtype]
  configs = [config.complete(config.override(plain, {"seed": seed})) for seed in SEEDS]
  trials = [setups.with_config(setup, seeded) for seeded in configs]
  (base,) = baseline.evaluate_bases(trials[:1])
  folders = [workdir / str(seed) for seed in SEEDS]
  results = group.train(trials, folders, [base] * len(SEEDS), workdir / "checkpoints")
  rows = []
  for seed, result in zip(SEEDS, results, strict=True):
    losses = (result["base"]["test_loss"], result["final"]["test_loss"])
    found = (Path(model).name, name, seed, *losses, frozen, bits)
    rows.append(dict(zip(COLUMNS, found, strict=True)))
  return rows


def table(model: str, rows: list[dict]) -> str:
  """Lays out one model's means, beside fp32."""
  of = lambda name: [row for row in rows if row["model"] == model and row["base"] == name]
  lines = []
  for name in FORMS:
    mine, plain = of(name), of("fp32")
    untuned, apart = mine[0]["untuned_loss"], mine[0]["untuned_loss"] - plain[0]["untuned_loss"]
    tuned = [row["tuned_loss"] for row in mine]
    gaps = [a - b["tuned_loss"] for a, b in zip(tuned, plain, strict=True)]
    spread = statistics.stdev(gaps)
    beside = ("", "") if name == "fp32" else (
      f" ({apart:+.4f})", f" ({statistics.mean(gaps):+.4f} ± {spread:.4f})"
    )  # fmt: skip
    lines.append(
      f"| {name} | {untuned:.4f}{beside[0]} | {math.exp(untuned):.2f} "
      f"| {statistics.mean(tuned):.4f}{beside[1]} | {mine[0]['frozen_MB']:.2f} "
      f"| {mine[0]['bits_a_weight']:.3f} |"
    )
  return TABLE.format(model=model) + "\n".join(lines)


def write(rows: list[dict], target: Path) -> None:
  with (target / "results.csv").open("w", newline="") as file:
    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
  tables = "\n\n".join(table(name, rows) for name in dict.fromkeys(row["model"] for row in rows))
  rate = settings("", "float32", None)["optim"]["learning_rate"]
  numbers = dict(steps=STEPS, seeds=len(SEEDS), rate=rate, date=datetime.date.today().isoformat())
  (target / "README.md").write_text(TEXT.format(tables=tables, **numbers, **versions()))


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--model", action="append", default=[], help="a further folder")
  parser.add_argument("--tiny", action="store_true", help="one update of each")
  parser.add_argument("--out", type=Path, default=HERE, help="where results go")
  options = parser.parse_args()
  models = [str(TINY), *options.model]
  rows = []
  with tempfile.TemporaryDirectory() as folder:
    for number, model in enumerate(models):
      for name in FORMS:
        rows += measure(model, name, Path(folder) / f"{number}-{name}")
        print(*rows[-1].values(), flush=True)
      write(rows, options.out)


if __name__ == "__main__":
  main()
