"""Runs over a tiny model that might have been trained: with random arrays."""

from __future__ import annotations

import re
from pathlib import Path

import jax
import numpy as np

from jaxtune import peft
from jaxtune.runs.finished import Run
from jaxtune.runs.trial import make_methods
from support import made_trials, tiny

TOKENS = np.array([[3, 14, 15, 9, 26], [5, 3, 5, 8, 9], [7, 9, 3, 2, 3]], np.int32)
LORA = {"name": "lora", "rank": 3, "targets": ["q_proj", "down_proj"], "alpha": 5.0}


def make(pretrained, section: dict, seed: int = 0, name: str = "run", **sections) -> Run:
  """Makes a run that might have been trained, with other sections of its config: random arrays."""
  full = made_trials.complete(section, **sections)
  methods = make_methods(full, pretrained.fresh)
  sites = tiny.find_sites(pretrained.model)
  key = jax.random.key(seed)
  adapted = peft.init(key, methods, sites, pretrained.params)
  tuned = {"params": {}, "peft": {}} | tiny.perturb(adapted.tuned, seed + 1, 0.1)
  adapted = adapted._replace(tuned=tuned)
  return Run(Path(f"{name}{seed}"), full, pretrained, adapted, (), (0,))


def logits(run: Run, tokens=TOKENS):
  return np.asarray(tiny.forward(run.pretrained, run.adapted, tokens))


def card_lines(folder: Path, base) -> str:
  """The PyTorch of an export's card, in which a user has written where the base and it lie."""
  lines = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S).group(1)
  for name, place in {"BASE": base.folder, "FOLDER": folder}.items():
    lines = re.sub(f'^{name} = ".*"', f'{name} = "{place}"', lines, flags=re.M)
  return lines
