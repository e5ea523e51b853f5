"""TensorBoard: a folder of events for each trial, in the folder `tensorboard` of the sweep.

`tensorboard --logdir DIR/tensorboard` shows them. Each trial has one file, which is written anew
when a sweep is started again. It begins with the mark of a restart at step 0, so that a TensorBoard
that is running forgets what it had read.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from jaxtune import libraries
from jaxtune.runs.loggers import Log, Trial

events = libraries.Lazy("tensorboard.compat.proto.event_pb2")
hyper = libraries.Lazy("tensorboard.plugins.hparams.summary_v2")
records = libraries.Lazy("tensorboard.summary.writer.record_writer")
summaries = libraries.Lazy("tensorboard.compat.proto.summary_pb2")


def check() -> None:
  """Imports what is needed."""
  for module in (events, hyper, records, summaries):
    module.__doc__  # noqa: B018


def begin(trial: Trial) -> Log:
  """Begins the file of a trial."""
  folder = Path(trial.folder, "tensorboard", trial.name)
  folder.mkdir(parents=True, exist_ok=True)
  for old in folder.glob("events.out.tfevents.*"):
    old.unlink()
  file = records.RecordWriter((folder / f"events.out.tfevents.{time.time_ns()}").open("wb"))

  def add(**content: Any) -> None:
    file.write(events.Event(wall_time=time.time(), **content).SerializeToString())
    file.flush()

  def write(step: int, metrics: dict[str, float]) -> None:
    values = [summaries.Summary.Value(tag=k, simple_value=v) for k, v in metrics.items()]
    add(step=step, summary=summaries.Summary(value=values))

  def end(final: dict[str, float]) -> None:
    if final:
      write(trial.config["train"]["steps"], {f"final/{name}": x for name, x in final.items()})
    file.close()

  add(file_version="brain.Event:2")
  add(step=0, session_log=events.SessionLog(status=events.SessionLog.START))
  plain = {k: v if isinstance(v, int | float) else str(v) for k, v in trial.settings.items()}
  add(summary=hyper.hparams_pb(plain, trial_id=trial.name))
  return Log(write, end)
