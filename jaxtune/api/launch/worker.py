"""A worker of a Ray cluster: it loads a sweep's models and data once, and trains its groups."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from jaxtune import libraries
from jaxtune.api import launch, stages, trials
from jaxtune.api.launch import parcels
from jaxtune.errors import UserError
from jaxtune.runs import locks


class Job(NamedTuple):
  """What a worker is to know of its sweep.

  Attributes:
    plan: what the sweep trains.
    workdir: its folder.
    holder: the content of the sweep's lock file; a worker that reads something else there does not
      share the folder.
    started: the folder in which the sweep was started, from which relative paths are meant.
  """

  plan: stages.Plan
  workdir: Path
  holder: str
  started: str


class News(NamedTuple):
  """What a worker has printed and written since it was asked before."""

  said: str
  files: parcels.Parcel | None


class Worker:
  """Trains one group at a time; an actor of Ray, in a process of its own."""

  def __init__(self, job: Job):
    libraries.quieten()
    with contextlib.suppress(OSError):  # another machine may not have the folder
      os.chdir(job.started)
    self.plan, self.said, self.told = job.plan, io.StringIO(), 0
    self.shared = locks.holder(job.workdir) == job.holder
    self.folder = job.workdir if self.shared else Path(tempfile.mkdtemp(prefix="jaxtune-"))
    self.known: parcels.Stamps = {}
    self.stages: dict[str, trials.Groups] = {}
    self.host, self.idle, self.files = socket.gethostname(), threading.Event(), threading.Lock()
    self.elsewhere = not job.holder.endswith(f" {self.host}")

  def load(self) -> tuple[str, bool]:
    """Loads and checks all trials; returns the name of this worker, and whether it shares."""
    with self._named():
      self.trials = launch.load(self.plan, self.folder)
    return f"{self.host}:{os.getpid()}", self.shared

  def train(self, stage: stages.Stage, number: int, files: parcels.Parcel) -> None:
    """Trains a group from its last checkpoint.

    Args:
      files: those of the group, for a worker that does not share the sweep's folder.
    """
    self.idle.clear()
    with self.files:  # else `news` would tell that those of the group before are gone
      if not self.shared:
        shutil.rmtree(self.folder)
        parcels.unpack(files, self.folder)
        _, self.known = parcels.pack(self.folder, self.folder.glob("*/*"), {})
    try:
      if stage.kind not in self.stages:
        self.stages[stage.kind] = launch.grouped(stage, self.trials, self.folder)
      said, errors = contextlib.redirect_stdout(self.said), contextlib.redirect_stderr(self.said)
      with self._named(), said, errors:
        trials.train(self.stages[stage.kind], [number])
    finally:
      self.idle.set()

  def news(self, seconds: float) -> News:
    """Waits so many seconds, or until the group is done, and says what is new."""
    self.idle.wait(seconds)
    files, text = None, self.said.getvalue()
    text = text[: text.rfind("\n") + 1]  # whole lines
    with self.files:
      if not self.shared:
        places = self.folder.glob("*/*")
        files, self.known = parcels.pack(self.folder, places, self.known)
    said, self.told = text[self.told :], len(text)
    return News(said, files)

  @contextlib.contextmanager
  def _named(self) -> Iterator[None]:
    """Adds to a user's mistake on which machine it is one, where that is not the driver's."""
    try:
      yield
    except UserError as error:
      if not self.elsewhere:
        raise
      raise UserError(f"{error} (on {self.host})") from error
