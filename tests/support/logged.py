"""Readers of what trials logged for TensorBoard and, offline, for Weights & Biases."""

from __future__ import annotations

import importlib.util
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxtune import libraries

accumulator = libraries.Lazy("tensorboard.backend.event_processing.event_accumulator")
hyper = libraries.Lazy("tensorboard.plugins.hparams.plugin_data_pb2")
internal = libraries.Lazy("wandb.proto.wandb_internal_pb2")
NAMES = ("tensorboard", "wandb")
ABSENT = [name for name in NAMES if importlib.util.find_spec(name) is None]
MISSING = f"no {' and no '.join(ABSENT)}: loggers are NOT tested; pip install '.[test]' brings them"
Logged = tuple[dict[int, dict[str, float]], dict[str, Any]]


def read(name: str, folder: Path, trial: str) -> Logged:
  """Returns {step: metrics} of a trial, and {key: value} of what was varied, or configured.

  Raises:
    AssertionError: where a step, or the trial, is there twice.
  """
  return {"tensorboard": _tensorboard, "wandb": _wandb}[name](folder, trial)


def _tensorboard(folder: Path, trial: str) -> Logged:
  place = folder / "tensorboard" / trial
  assert len(list(place.iterdir())) == 1
  events = accumulator.EventAccumulator(str(place)).Reload()
  rows: dict[int, dict[str, float]] = {}
  for tag in events.Tags()["scalars"]:
    for one in events.Scalars(tag):
      assert tag not in rows.setdefault(one.step, {}), "a step is there twice"
      rows[one.step][tag] = one.value
  ((_, content),) = events.PluginTagToContent("hparams").items()
  varied = hyper.HParamsPluginData.FromString(content).session_start_info.hparams
  return rows, {key: getattr(value, value.WhichOneof("kind")) for key, value in varied.items()}


def _wandb(folder: Path, trial: str) -> Logged:
  rows: dict[int, dict[str, float]] = {}
  config: dict[str, Any] = {}
  final: dict[str, float] = {}
  for path in folder.glob("wandb/offline-run-*/*.wandb"):
    records = list(_records(path))
    if not any(record.run.display_name == trial for record in records):
      continue
    assert not config, "the trial is there twice"
    for record in records:
      config |= {one.key: json.loads(one.value_json) for one in record.run.config.update}
      found = {one.nested_key[0]: json.loads(one.value_json) for one in record.history.item}
      if found:
        assert found["_step"] not in rows, "a step is there twice"
        rows[found["_step"]] = found
      last = [one for one in record.summary.update if one.key.startswith("final/")]
      final |= {one.key: json.loads(one.value_json) for one in last}
    rows[max(rows)] |= final
  return rows, config


def _records(path: Path) -> Iterator[Any]:
  """Reads a file of W&B: records in blocks of 32 kB, as those of LevelDB's log."""
  data, at, parts = path.read_bytes(), 7, b""
  while at + 7 <= len(data):
    if (left := 32768 - at % 32768) < 7:
      at += left
      continue
    _, length, kind = struct.unpack("<IHB", data[at : at + 7])
    parts += data[at + 7 : at + 7 + length]
    at += 7 + length
    if kind in (1, 4):  # whole, or the last part
      yield internal.Record.FromString(parts)
      parts = b""
