"""Passes what trials log on to other tools, a file for each.

A file has `check()`, which raises UserError where it cannot work, and `begin(Trial) -> Log`. What
is passed on is read from the folder of the trial, so that no logger changes a result, and a trial
that was logged in part before is logged again from its beginning, without a step that comes twice.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from jaxtune.errors import UserError

OPTIONS: dict[str, dict[str, Any]] = {
  "--tensorboard": dict(action="store_true", help="logs every trial to DIR/tensorboard"),
  "--wandb": dict(action="store_true", help="logs every trial to Weights & Biases"),
}


class Trial(NamedTuple):
  """What a logger is told of a trial.

  Attributes:
    folder: of the sweep or the run.
    name: of the trial, or of the run's folder.
    config: its completed config.
    settings: {key of the config: value} of what is varied.
  """

  folder: Path
  name: str
  config: dict[str, Any]
  settings: dict[str, Any]


class Log(NamedTuple):
  """Where a trial is logged.

  Attributes:
    write: (step, {metric: value}) -> None; steps rise.
    end: (final metrics) -> None; {} for a trial that is not finished, and will go on.
  """

  write: Callable[[int, dict[str, float]], None]
  end: Callable[[dict[str, float]], None]


def chosen(options: Mapping[str, Any]) -> list[str]:
  """Returns the names of the loggers that a command line asks for."""
  return [name for name in (key.removeprefix("--") for key in OPTIONS) if options[name]]


def find(name: str) -> ModuleType:
  """Returns the file of a logger, checked.

  Raises:
    UserError: where its package is missing, or it cannot work for another reason.
  """
  if importlib.util.find_spec(name) is None:
    raise UserError(f"--{name} needs a package that is missing: pip install 'jaxtune[{name}]'")
  logger = importlib.import_module(f"jaxtune.runs.loggers.{name}")
  logger.check()
  return logger
