"""A run's folder: config.json, metrics.jsonl, checkpoints/, result.json and tuned.safetensors."""

from __future__ import annotations

import contextlib
import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from typing_extensions import TypedDict

from jaxtune import config as configs
from jaxtune import data, hosts, libraries, peft, schema, tree
from jaxtune.errors import UserError
from jaxtune.evaluation import judge
from jaxtune.files import write_atomically, writing
from jaxtune.models import quantize
from jaxtune.runs import results, scores, sources
from jaxtune.runs.trial import Trial

LIBRARIES = ("jaxtune", "jax", "jaxlib", "flax", "optax", "transformers", "datasets", "numpy")


class Logs:
  """The metrics.jsonl of each trial; on resume, lines after the restored step are dropped."""

  def __init__(self, folders: Sequence[Path], steps: Sequence[int]):
    self.paths = [folder / "metrics.jsonl" for folder in folders]
    for folder, path, step in zip(folders, self.paths, steps, strict=True):
      kept = [row for row in read_history(folder) if row["step"] <= step] if step else []
      write_atomically(path, "".join(json.dumps(row) + "\n" for row in kept))

  def write(self, rows: Mapping[int, dict]) -> None:
    """Appends a row to the file of each of these trials."""
    for trial, row in rows.items() if hosts.primary() else ():
      with writing(self.paths[trial]), self.paths[trial].open("a") as file:
        file.write(json.dumps(row) + "\n")


def read_history(folder: Path) -> list[dict]:
  """Reads a run's metrics.jsonl, without lines that a kill cut off; [] if there is none."""
  rows = _read_lines(folder / "metrics.jsonl")
  return [row for row in rows if isinstance(row.get("step"), int)]


def read_predictions(folder: Path) -> list[dict]:
  """Reads a run's predictions.jsonl; [] if there is none."""
  kept = {"where", "prompt", "prediction", "references"}
  return [row for row in _read_lines(folder / "predictions.jsonl") if kept <= row.keys()]


def _read_lines(path: Path) -> list[dict]:
  """Reads the objects of a file of JSON lines, without lines that are cut off or damaged."""
  with writing(path):
    lines = path.read_text(errors="replace").split("\n") if path.exists() else []
  rows = []
  for line in lines:
    with contextlib.suppress(ValueError, RecursionError):
      row = json.loads(line)
      if isinstance(row, dict):
        rows.append(row)
  return rows


def versions() -> dict[str, str]:
  """Returns {name: version} of what a result depends on, with the commit of jaxtune if known."""
  found = {"python": platform.python_version(), "device": jax.devices()[0].device_kind}
  found |= {"devices": str(jax.device_count()), "cores": str(os.cpu_count())}
  found |= {"machine": f"{platform.system()} {platform.machine()}"}
  found |= libraries.versions(*LIBRARIES)
  if commit := libraries.commit():
    found["commit"] = commit
  return found


def begin(folders: Sequence[Path], configs: Sequence[dict]) -> None:
  """Writes each trial's configuration, but where a result is there, which holds its hash."""
  for folder, config in zip(folders, configs, strict=True):
    if not (folder / "result.json").exists():
      write_atomically(folder / "config.json", json.dumps(config, indent=2, default=str))


def finish(
  folder: Path, trial: Trial, overlay: peft.Overlay, judged: judge.Judged, facts: dict
) -> dict:
  """Writes a trial's weights, predictions and result; returns the result.

  Args:
    overlay: the arrays that are kept, without the padding of their group.
    judged: what they score.
    facts: entries of the result that neither the trial nor its weights tell: metrics, counts of
      updates, versions.
  """
  dataset, params = trial.dataset, trial.pretrained.params
  write(folder, overlay, trial.fingerprint, trial.config, dataset.labels, dataset.stop_tokens)
  if judged.predictions:
    _write_predictions(folder, trial, judged)
  scores.write(folder, trial, judged)
  result = {
    "method": trial.config["method"]["name"],
    "trained_parameters": count_trained(trial.methods, overlay),
    "base_parameters": tree.size(jax.eval_shape(quantize.dequantised, params)),
    **facts,
    "base_fingerprint": trial.fingerprint,
    "base_config": trial.pretrained.model.config.digest,
    "sources": sources.digests(trial.config),
    "data": dataset.report,
  }
  if getattr(dataset.train, "tasks", None) is not None:  # a packed row counts as one
    draws = trial.draws(facts["stopped_at"])
    result["mixture"] = data.mix.counts(dataset.train.order, *draws)
  return results.write(folder, result)


def _write_predictions(folder: Path, trial: Trial, judged: judge.Judged) -> None:
  """Writes what a trial and its untuned base predicted beside the truth, a line an example."""
  split, decode = getattr(trial.dataset, judged.split), trial.pretrained.tokenizer.decode
  untuned = judged.untuned or [None] * len(judged.predictions)
  answers = zip(judged.examples, judged.predictions, judged.references, untuned, strict=True)
  lines = []
  for n, prediction, references, base in answers:
    row = {"where": split.where[n], "prompt": decode(split.prompts[n])}
    row |= {"prediction": prediction, "references": references}
    row |= {} if base is None else {"base": base}
    lines.append(json.dumps(row, ensure_ascii=False) + "\n")
  write_atomically(folder / "predictions.jsonl", "".join(lines))


class Record(TypedDict):
  """What tuned.safetensors says of the arrays in it.

  Attributes:
    base: fingerprint of the base's weights.
    config: the completed config.
    labels: names of the classes or tags.
    stop_tokens: ids that end a completion.
  """

  __pydantic_config__ = schema.STRICT
  base: str
  config: dict[str, Any]
  labels: list[str]
  stop_tokens: list[schema.Natural]


def write(
  folder: Path,
  overlay: peft.Overlay,
  base: str,
  config: dict,
  labels: Sequence[str],
  stop_tokens: Sequence[int],
) -> None:
  """Writes all that `read` needs of a run beside its base: tuned.safetensors; see `Record`."""
  record = Record(base=base, config=config, labels=[*labels], stop_tokens=[*stop_tokens])
  trees = overlay.tuned | {"hyper": overlay.hyper}
  # safetensors writes the memory behind an array as it lies there; a cropped array has gaps.
  flat = {path: np.asarray(x, order="C") for path, x in tree.flatten(trees).items()}
  # One entry: safetensors writes several in any order, and equal runs are to be equal files.
  metadata = {"jaxtune": json.dumps(record, default=str)}
  write_atomically(folder / "tuned.safetensors", save(flat, metadata))


def count_trained(methods: Sequence[peft.Method], overlay: peft.Overlay) -> int:
  """Counts trained numbers, without those that only pad a layer to the size of another."""
  return tree.size(overlay.tuned) - sum(int(m.count_unused(*overlay.arrays_of(m))) for m in methods)


def read(folder: Path) -> tuple[Path, Record, dict[str, np.ndarray]]:
  """Reads what `write` wrote in a run's folder, or in that of a sweep's best trial.

  Returns:
    (the file, its record, {path: array}).
  """
  folder = results.best_trial(folder)
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
