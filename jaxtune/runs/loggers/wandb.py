"""Weights & Biases: a run for each trial, all of a sweep in one group.

WANDB_PROJECT, WANDB_ENTITY and WANDB_MODE have their usual meaning; the project is "jaxtune" by
default. With WANDB_MODE=offline all stays in the folder `wandb` of the sweep, for `wandb sync`.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from pathlib import Path

from jaxtune import config as configs
from jaxtune import libraries
from jaxtune.errors import UserError
from jaxtune.files import write_atomically
from jaxtune.runs.loggers import Log, Trial

wandb = libraries.Lazy("wandb")


def check() -> None:
  """Raises UserError where W&B would ask for a key while the trials train."""
  if wandb.setup().settings.mode == "online" and not wandb.login(prompt=False, verify=False):
    raise UserError("--wandb has no key: run `wandb login`, or set WANDB_MODE=offline")


def begin(trial: Trial) -> Log:
  """Begins the run of a trial, or goes on with it after the last step that the server has.

  A run that is offline is written again from its beginning, in place of what was there before.
  """
  folder, key = trial.folder / "wandb", _key(trial)
  finished = folder / f"{key}.finished"
  if finished.exists():
    return Log(lambda step, metrics: None, lambda final: None)
  for old in folder.glob(f"offline-run-*-{key}"):
    shutil.rmtree(old)
  run = wandb.init(
    id=key, name=trial.name, group=trial.folder.absolute().name, config=trial.config,
    project=os.environ.get("WANDB_PROJECT", "jaxtune"), dir=trial.folder, resume="allow",
    reinit="create_new",
    settings=wandb.Settings(console="off", silent=True, x_disable_stats=True, finish_timeout=60),
  )  # fmt: skip

  def write(step: int, metrics: dict[str, float]) -> None:
    if step >= run.step:
      run.log(metrics, step=step)

  def end(final: dict[str, float]) -> None:
    run.summary.update({f"final/{name}": value for name, value in final.items()})
    run.finish(exit_code=0 if final else 1)
    if final:
      write_atomically(finished, "")

  return Log(write, end)


def _key(trial: Trial) -> str:
  """Returns the id of a trial's run: the same as long as the sweep stays in its folder.

  What a run may change when it goes on, such as its mesh, changes no id.
  """
  path = Path(trial.folder, "wandb", "jaxtune")
  if not path.exists():
    write_atomically(path, secrets.token_hex(8))
  said = json.dumps([path.read_text(), trial.name, configs.unplaced(trial.config)], sort_keys=True)
  return hashlib.sha256(said.encode()).hexdigest()[:12]
