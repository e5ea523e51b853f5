"""Whole small sweeps over a model and data in files, and how two of their folders differ."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from support import folders, tiny

NO_RAY = "ray is not installed: sweeps on a Ray cluster were not tested"
_spec = importlib.util.spec_from_file_location(
  "faulty", tiny.ROOT / "experiments" / "reliability" / "faulty.py"
)
_faulty = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_faulty)


def config(place: Path, *grids: dict, steps: int = 4) -> dict:
  """Makes a sweep over a tiny model and a few words, which it writes."""
  rows = lambda a, n: [
    {"prompt": f"a{i % 10} b{i // 10} :", "completion": f"c{i % 10}"} for i in range(a, a + n)
  ]
  splits = (("train", 0, 12), ("validation", 12, 4), ("test", 16, 4))
  data = {name: folders.write(place, f"{name}.jsonl", rows(a, n)) for name, a, n in splits}
  sections = {"train": {"eval_every": 2, "checkpoint_every": 1, "log_every": 1, "batch_size": 2}}
  sections |= {"evaluate": {"max_new_tokens": 2}}
  made = folders.config(folders.base(place, "llama"), data, steps=steps, **sections)
  return made | {"sweep": grids}


def differences(folder: Path, other: Path) -> str:
  """Names the files in which two sweeps differ, but for seconds; "" if there are none."""
  return _faulty.differences(_faulty.contents(folder), _faulty.contents(other))
