"""What a trial scored on each judged example, kept so that trials can be compared pair by pair.

scores.safetensors holds the sums of each example, and every metric on resamples of the examples.
The resamples are the same in all trials with the same examples, so that the difference of two
trials' metrics on them shows how far it depends on which examples were judged.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from jaxtune import schema
from jaxtune.data import Split
from jaxtune.errors import UserError
from jaxtune.evaluation import compare, judge
from jaxtune.evaluation.options import EvaluateOptions
from jaxtune.files import write_atomically
from jaxtune.metrics.metric import Draws
from jaxtune.runs import results
from jaxtune.runs.trial import Trial

NAME = "scores.safetensors"


class Scores(NamedTuple):
  """The scores of a trial.

  Attributes:
    examples: a hash of the judged examples. Trials with the same one can be compared on them.
    rows: {"loss", "weight", "correct"}, each (X,): sums of each example.
    draws: {metric: its value on each resample of the examples}.
  """

  examples: str
  rows: dict[str, np.ndarray]
  draws: dict[str, Draws]


def write(folder: Path, trial: Trial, judged: judge.Judged) -> None:
  """Writes a trial's scores; nothing where no examples were judged or none are resampled."""
  options = EvaluateOptions(**trial.config["evaluate"])
  names = judge.metric_names(options, trial.objective)
  draws = compare.draws(judged, names, options.resamples)
  if not draws:
    return
  rows = {name: judged.rows[name] for name in ("loss", "weight", "correct")}
  examples = identity(getattr(trial.dataset, judged.split), judged.examples)
  flat = rows | {f"draws/{name}": np.asarray(x, np.float64) for name, x in draws.items()}
  flat = {name: np.asarray(x, order="C") for name, x in flat.items()}  # as in `folder.write`
  metadata = {"jaxtune": json.dumps({"examples": examples})}  # as in `folder.write`
  write_atomically(folder / NAME, save(flat, metadata))


def read(folder: Path, result: dict) -> Scores | None:
  """Reads a trial's scores; None where it has none, as those of older versions, or lost the file.

  Args:
    result: the trial's result.json.

  Raises:
    UserError: where the file is not the one that the result was written with.
  """
  path = folder / NAME
  if NAME not in result.get("files", {}) or not path.exists():
    return None
  results.check_files(folder, result, (NAME,))
  try:
    with safe_open(path, "numpy") as file:
      stated = schema.parse_json(file.metadata()["jaxtune"], path)
      flat = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
      examples = str(stated["examples"])
  except (OSError, SafetensorError, KeyError, TypeError, AttributeError) as error:
    raise UserError(f"{path} is damaged: {error}") from error
  draws = {name.removeprefix("draws/"): x for name, x in flat.items() if name.startswith("draws/")}
  return Scores(examples, {k: x for k, x in flat.items() if not k.startswith("draws/")}, draws)


def identity(split: Split, predicted: Sequence[int] = ()) -> str:
  """Returns a hash of the rows that a split's examples were made of, and of what is resampled.

  Args:
    predicted: the numbers of the examples that predictions were made for.
  """
  units = [x.tolist() for x in split.units(predicted).values() if len(np.unique(x)) < len(x)]
  whole = [split.examples, list(predicted), split.rows, *units]
  return hashlib.sha256(json.dumps(whole, sort_keys=True, default=str).encode()).hexdigest()
