"""A run's folder belongs to runs and to one process at a time; that is seen before work starts."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Literal

from jaxtune import config, schema
from jaxtune.errors import UserError

try:
  import fcntl
except ImportError:  # Windows
  fcntl = None

NAME = ".lock"
# What is written into the folder of a run, and of a sweep; the config.json is the first.
RUN = ("metrics.jsonl", "predictions.jsonl", "result.json", "tuned.safetensors", "checkpoints")
SWEEP = ("results.csv", "report.md", "report.html", "groups", "plots", "trials")


def check_writable(folder: str | Path) -> None:
  """Raises UserError for a folder that cannot be made or written in; writes nothing."""
  folder = Path(folder)
  for place in (folder, *folder.absolute().parents):
    try:
      os.lstat(place)
      break
    except (FileNotFoundError, NotADirectoryError):
      continue
    except (OSError, ValueError) as error:
      reason = getattr(error, "strerror", None) or error
      raise UserError(f"{folder} cannot be written: {reason}") from error
  if not place.is_dir():
    raise UserError(f"{folder} cannot be written: {place} is no folder")
  if not os.access(place, os.W_OK | os.X_OK):
    raise UserError(f"{folder} cannot be written: permission denied for {place}")


def check_place(folder: Path, kind: Literal["run", "sweep"] = "run") -> None:
  """Raises UserError for a folder in which a run, or a sweep, would write over anything else.

  Its own folder has a config.json of jaxtune's sections.
  """
  there = next((name for name in ("config.json", *RUN, *SWEEP) if (folder / name).exists()), None)
  own = there is None
  if there == "config.json":
    found = schema.read_json(folder / there)
    own = isinstance(found, dict) and "model" in found and found.keys() <= config.KEYS
  if not own:
    raise UserError(
      f"{folder} is no {kind}'s folder, and its {there} would be lost; expected a folder that is "
      f"new, empty or a {kind}'s"
    )
  other, names = ("sweep", SWEEP) if kind == "run" else ("run", RUN)
  if any((folder / name).exists() for name in names):
    raise UserError(f"{folder} holds a {other}: give another folder for a {kind}")


@contextlib.contextmanager
def held(folder: str | Path, kind: Literal["run", "sweep"] = "run") -> Iterator[None]:
  """Holds the folder of a run or a sweep, made if need be, for this process alone.

  The lock is the kernel's (flock), on a file in the folder: it ends with its process, however that
  ends. On a file system without such locks a warning is printed and nothing is held. What was made
  for the lock is removed behind it.

  Raises:
    UserError: where another process holds the folder, which is named, it cannot be written, or
      it holds something else; see `check_place`.
  """
  folder = Path(folder)
  check_writable(folder)
  made = [path for path in (folder, *folder.parents) if not path.exists()]
  try:
    with _locked(folder):
      check_place(folder, kind)
      yield
  finally:
    with contextlib.suppress(OSError):  # it holds something by now
      for path in made:
        path.rmdir()


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
  path = folder / NAME
  with contextlib.ExitStack() as stack:
    while True:
      try:
        folder.mkdir(parents=True, exist_ok=True)
        file = stack.enter_context(path.open("a+"))
      except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}") from error
      _lock(file, folder)
      if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
        break  # else the process that held the lock has just removed its file
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()
    stack.callback(path.unlink, missing_ok=True)
    yield


def _lock(file: IO[str], folder: Path) -> None:
  try:
    if fcntl is None:
      raise OSError("no fcntl")
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError as error:
    file.seek(0)
    holder = file.read() or "another process"
    raise UserError(
      f"{folder} is in use by {holder}: wait for its end, or give another folder"
    ) from error
  except OSError:
    print(
      f"warning: the file system of {folder} has no locks: see to it that no other process writes "
      "there",
      file=sys.stderr,
    )
