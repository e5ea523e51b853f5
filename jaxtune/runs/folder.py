"""A run's folder: config.json, metrics.jsonl, checkpoints/, result.json and tuned.safetensors."""

from __future__ import annotations

import contextlib
import json
import math
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from typing_extensions import TypedDict

from jaxtune import config as configs
from jaxtune import data, peft, schema, tree
from jaxtune.errors import UserError
from jaxtune.evaluation import compare
from jaxtune.files import write_atomically, writing
from jaxtune.models import quantize
from jaxtune.runs import results
from jaxtune.runs import trial as setup_

LIBRARIES = ("jaxtune", "jax", "jaxlib", "flax", "optax", "transformers", "datasets", "numpy")


class Logs:
  """The metrics.jsonl of each trial; on resume, lines after the restored step are dropped."""

  def __init__(self, folders: list[Path], step: int):
    self.paths = [folder / "metrics.jsonl" for folder in folders]
    for path in self.paths:
      with writing(path):
        lines = path.read_text(errors="replace").splitlines() if path.exists() else []
      kept = [line for line in lines if _step(line) <= step] if step else []
      write_atomically(path, "".join(line + "\n" for line in kept))

  def __enter__(self):
    self.files = [path.open("a") for path in self.paths]
    return self

  def __exit__(self, *error):
    for file in self.files:
      with contextlib.suppress(OSError):  # a full disk has been reported by `write`
        file.close()

  def write(self, rows: list[dict], active: Any = None) -> None:
    """Appends one row a trial, but for those that are not active."""
    for i, (file, row) in enumerate(zip(self.files, rows, strict=True)):
      if active is None or active[i]:
        with writing(self.paths[i]):
          file.write(json.dumps(row) + "\n")
          file.flush()


def _step(line: str) -> float:
  try:
    step = json.loads(line)["step"]
  except (ValueError, KeyError, TypeError, RecursionError):
    return math.inf  # a line cut off by a kill
  return step if isinstance(step, int) else math.inf


def versions() -> dict[str, str]:
  """Names the versions that a result depends on."""
  found = {"python": platform.python_version(), "device": jax.devices()[0].device_kind}
  for name in LIBRARIES:
    try:
      found[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
      found[name] = "source"
  return found


def begin(folders: list[Path], configs: list[dict]) -> None:
  """Writes each trial's configuration."""
  for folder, config in zip(folders, configs, strict=True):
    write_atomically(folder / "config.json", json.dumps(config, indent=2, default=str))


def finish(
  folder: Path, config: dict, setup, *, tuned, hyper, judged, untuned, evaluator,
  steps: dict, seconds: float, group: int,
) -> dict:  # fmt: skip
  """Writes a trial's weights, predictions and result; returns the result.

  Args:
    steps: its counts of updates: steps, stopped_at, best_step, diverged_at.
  """
  methods = setup_.make_methods(config, setup.pretrained.fresh)
  labels, stops = setup.dataset.labels, evaluator.stop_tokens
  write(folder, config, setup.fingerprint, tuned, hyper, labels, stops)
  if judged.predictions:
    split, decode = getattr(setup.dataset, judged.split), setup.pretrained.tokenizer.decode
    rows = [
      {"where": split.where[n], "prompt": decode(split.prompts[n]), "prediction": said,
       "references": true}
      for n, said, true in zip(
        judged.examples, judged.predictions, judged.references, strict=True
      )
    ]  # fmt: skip
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_atomically(folder / "predictions.jsonl", lines)
  result = {
    "method": config["method"]["name"],
    "trained_parameters": count_trained(methods, tuned, hyper),
    "base_parameters": tree.size(jax.eval_shape(quantize.dequantised, setup.pretrained.params)),
    "base": untuned.base.metrics,
    "final": judged.metrics,
    **compare.record(judged, untuned, evaluator, setup.dataset),
    **steps,
    "seconds": round(seconds, 2),
    "trials_in_program": group,
    "base_fingerprint": setup.fingerprint,
    "versions": versions(),
    "data": setup.dataset.report,
    **_mixture(setup.dataset.train, steps["stopped_at"], config["train"]["batch_size"]),
  }
  return results.write(folder, result)


def write(
  folder: Path, config: dict, fingerprint: str, tuned: Any, hyper: Any,
  labels: tuple[str, ...] = (), stop_tokens: tuple[int, ...] = (),
) -> None:  # fmt: skip
  """Writes all that `load` needs of a run beside its base: tuned.safetensors.

  Args:
    fingerprint: of the base's weights.
  """
  flat = {path: np.asarray(x) for path, x in tree.flatten(tuned | {"hyper": hyper}).items()}
  record = {
    "base": fingerprint, "config": config, "labels": labels, "stop_tokens": stop_tokens,
  }  # fmt: skip
  # One entry: safetensors writes several in any order, and equal runs are to be equal files.
  record = {"jaxtune": json.dumps(record, default=str)}
  write_atomically(folder / "tuned.safetensors", save(flat, record))


def count_trained(methods: tuple, tuned: Any, hyper: Any) -> int:
  """Counts trained numbers, without those that only pad a layer to the size of another."""
  padding = sum(int(m.unused(peft.own(m, tuned["peft"]), peft.own(m, hyper))) for m in methods)
  return tree.size(tuned) - padding


def _mixture(split: Any, steps: int, batch_size: int) -> dict:
  """Counts what was drawn of each task of a mixture; a packed row counts as one."""
  if getattr(split, "tasks", None) is None:
    return {}
  return {"mixture": data.mix.counts(split.order, steps, batch_size)}


class Record(TypedDict):
  """What tuned.safetensors says of the arrays in it.

  Attributes:
    base: fingerprint of the base's weights.
    config: completed.
  """

  __pydantic_config__ = schema.STRICT
  base: str
  config: dict[str, Any]
  labels: list[str]
  stop_tokens: list[schema.Natural]


def best_trial(folder: Path) -> Path:
  """Finds the trial of a sweep with the lowest validation loss (else test loss)."""
  found = {path.parent: results.read(path.parent) for path in folder.glob("trials/*/result.json")}
  if not found:
    raise UserError(f"{folder} holds no finished run: neither tuned.safetensors nor trials/")
  losses = {}
  for trial, result in found.items():
    final = result["final"]
    if not results.diverged(result):
      loss = final.get("validation_loss", final.get("test_loss"))
      losses[trial] = loss if isinstance(loss, float) else float("inf")
  if not losses:
    raise UserError(f"all trials of {folder} diverged: name one of {folder}/trials itself")
  return min(sorted(losses), key=losses.get)


def read(folder: Path) -> tuple[Path, Record, dict[str, np.ndarray]]:
  """Reads what `write` wrote in a run's folder, or in that of a sweep's best trial.

  Returns:
    (the file, its record, {path: array}).
  """
  if not (folder / "tuned.safetensors").exists():
    folder = best_trial(folder)
  path = folder / "tuned.safetensors"
  results.check_files(folder, results.read(folder), (path.name,))
  try:
    with safe_open(path, "numpy") as file:
      stated = file.metadata()["jaxtune"]
      flat = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
  except (OSError, SafetensorError, KeyError, TypeError, ValueError, AttributeError) as error:
    raise UserError(f"{path} is damaged or missing: {error}") from error
  record = schema.parse_json(stated, path)
  schema.check(f"{path}: record", record, Record)
  try:
    record["config"] = configs.complete(record["config"])
  except UserError as error:
    raise UserError(f"{path} was not written by this version of jaxtune: {error}") from error
  return path, record, flat
