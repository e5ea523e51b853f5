"""Shows a config's data as the model sees it."""

from __future__ import annotations

from typing import Any

from jaxtune import config as configs
from jaxtune import schema
from jaxtune.data import show as shows
from jaxtune.models import hf
from jaxtune.runs import trial
from jaxtune.sweeps import tuning


def show(config: Any, count: int = 3) -> str:
  """Shows a config's data as the model sees it: examples, what is trained, lengths, doubles.

  Args:
    count: examples of each split.
  """
  schema.check("count", count, schema.Natural)
  full = configs.complete(tuning.stated(configs.to_dict(config)))
  tokenizer, *_ = hf.language(**full["model"])
  view = trial.objective_of(full).VIEW
  return shows.show(trial.load_data(full), view, tokenizer, count)
