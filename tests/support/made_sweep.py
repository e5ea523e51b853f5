"""The folder of a made sweep: every file that a report reads, without any training."""

from __future__ import annotations

import itertools
import json
import math
import random
from pathlib import Path

from jaxtune import config as configs
from jaxtune.assets import INSTRUCTIONS, TINY
from jaxtune.runs import results
from jaxtune.sweeps import analysed, grid, tuning

HOSTILE = '</script><img src=x onerror="document.title=1"> & "quoted"'
SEEDS = [0, 1, 2]


def config(*grids: dict, steps: int = 40) -> dict:
  """Returns the config of a sweep, as its config.json holds it."""
  return {
    "model": {"path": str(TINY)},
    "data": {"train": str(INSTRUCTIONS / "train.jsonl")},
    "method": {"name": "lora", "scale": 2.0},
    "train": {"steps": steps},
    "sweep": list(grids),
  }


def lora(ranks: list[int]) -> dict:
  return {"method": [{"name": "lora", "rank": r, "scale": 2.0} for r in ranks], "seed": SEEDS}


def prefix(lengths: list[int]) -> dict:
  methods = [{"name": "prefix", "length": n} for n in lengths]
  return {"method": methods, "optim.learning_rate": [0.3], "seed": SEEDS}


def loss(method: dict, seed: int) -> float:
  """Returns a made test loss, which falls with the size."""
  size = method.get("rank") or method["length"]
  drawn = random.Random(f"{method['name']} {size} {seed}").gauss(0, 0.03)
  return (1.2 if method["name"] == "lora" else 1.5) + 1 / (1 + size) + drawn


def write(folder: Path, given: dict, running: tuple[int, ...] = ()) -> list[dict]:
  """Writes a sweep's folder; returns the results of its trials.

  Where a learning rate is to be chosen, it is the highest one.

  Args:
    running: the numbers of trials that are not finished, and have logged half of their steps.
  """
  folder.mkdir(parents=True, exist_ok=True)
  (folder / "config.json").write_text(configs.to_json(given))
  settings, written = grid.expand(given["sweep"]), []
  axes = list(dict.fromkeys(axis for setting in settings for axis in setting))
  for i, setting in enumerate(settings):
    place = folder / "trials" / grid.name(tuning.named(setting), axes)
    if isinstance(rate := setting.get(tuning.PATH), dict):
      setting |= {tuning.PATH: max(rate["tune"])}
    steps = given["train"]["steps"]
    _write_history(place, setting, steps // 2 if i in running else steps)
    stated = configs.complete(configs.override(_without_sweep(given), setting))
    (place / "config.json").write_text(json.dumps(stated, default=str))
    if i not in running:
      written.append(_write_result(place, setting, steps) | {"settings": setting})
  return written


def _without_sweep(given: dict) -> dict:
  return {key: value for key, value in given.items() if key != "sweep"}


def _write_history(place: Path, setting: dict, steps: int) -> None:
  place.mkdir(parents=True)
  end, lines = loss(setting["method"], setting["seed"]), []
  for step in range(2, steps + 1, 2):
    value = end + 3 * math.exp(-step / 10) + 0.2 * (-1) ** (step // 2)
    lines.append({"step": step, "train_loss": value})
    if step % 10 == 0:
      lines.append({"step": step, "validation_loss": end + 3 * math.exp(-step / 10)})
  (place / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def _write_result(place: Path, setting: dict, steps: int) -> dict:
  method, seed = setting["method"], setting["seed"]
  value, size = loss(method, seed), method.get("rank") or method["length"]
  rows = [
    {
      "where": f"test.jsonl:{n}",
      "prompt": f"Question {n}: {HOSTILE}",
      "prediction": f"the small answer of {method['name']} {HOSTILE}",
      "references": [f"the answer {n} of {method['name']}"],
      "base": "nothing at all",
    }
    for n in range(3)
  ]
  (place / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  measured = lambda x: {"test_loss": x, "test_accuracy": 100 * math.exp(-x)}
  result = {
    "method": method["name"],
    "trained_parameters": 1000 * size,
    "base_parameters": 3_000_000,
    "final": measured(value),
    "base": measured(2.5),
    "intervals": {"test_loss": [value - 0.1, value + 0.1]},
    "differences": {"base": {"test_loss": [value - 2.5, value - 2.6, value - 2.4]}},
    "steps": steps,
    "stopped_at": steps,
    "best_step": steps,
    "diverged_at": None,
    "seconds": 10.0 + size,
    "flops": 10**12 + 10**10 * size * (1 + 3 * (method["name"] == "prefix")),
    "flops_per_update": 10**10,
    "memory": 40_000_000 + 12_000 * size,
    "tokens": 20_000,
    "versions": {"jax": "0.10", "device": "cpu", "commit": "0123abc"},
    "data": {"splits": {}},
    "confusion": {"labels": ["no", "<b>yes</b>"], "counts": [[7, 3], [size, 10]]},
    "base_fingerprint": "f" * 64,
  }
  return results.write(place, result) | {"trial": place.name}


def analyse(folder: Path, results: list[dict]) -> dict:
  """Writes a made analysis.json of trials: LoRAs of two modules in three layers, and prefixes."""
  entries, ranks = {}, {}
  for result in results:
    method, draw = result["settings"]["method"], random.Random(result["trial"]).random
    layers = lambda draw=draw: [draw() for _ in range(3)]
    matrix = lambda layers=layers: {
      "relative": layers(), "effective_rank": layers(), "spectral": layers(),
      "amplification": {"factor": layers(), "update": layers(), "random": layers()},
    }  # fmt: skip
    entry = {"weights": {}, "vectors": {}, "truncated": {}, "states": {"trunk": layers()}}
    entry |= {"attention": {}, "prompt": {}, "result": result["sha256"]}
    if rank := method.get("rank"):
      paths = (f"trunk/layers/attn/{name}/kernel" for name in ("q_proj", "v_proj"))
      entry["weights"] = {path: matrix() for path in paths}
      entry["truncated"] = {"rank": [0, 1, rank][: 2 + (rank > 1)], "loss": layers()}
      entry["truncated"]["loss"] = entry["truncated"]["loss"][: len(entry["truncated"]["rank"])]
      ranks.setdefault(rank, []).append(result["trial"])
    else:
      heads = [[draw() for _ in range(4)] for _ in range(3)]
      nearest = {"nearest": [["a", HOSTILE]] * 3, "cosine": [[0.5, 0.25]] * 3}
      entry["attention"] = {"trunk/attn": {"mass": heads, "uniform": [0.2] * 3, **nearest}}
    entries[result["trial"]] = entry
  pairs = []
  for (a, first), (b, second) in itertools.combinations_with_replacement(ranks.items(), 2):
    known = lambda i, j, a=a, b=b: 2**i <= a and 2**j <= b
    grid = [[(0.5 + i / 10) if known(i, j) else None for j in range(3)] for i in range(3)]
    side = {"similarity": grid, "random": [[0.125] * 3] * 3}
    both = {"inputs": side, "outputs": side, "dimensions": [1, 2, 4]}
    pairs.append({"a": first, "b": second, "seeds": "different"} | both)
  found = {"examples": 8, "split": "validation", "trials": entries, "similarity": pairs}
  analysed.write(folder, found)
  return found
