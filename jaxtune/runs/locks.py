"""Checks and locks the folder of a run or a sweep, so that one process at a time writes there."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Literal

import jax

from jaxtune import config, hosts, schema
from jaxtune.errors import UserError
from jaxtune.files import writing
from jaxtune.training import checkpoint

try:
  import fcntl
except ImportError:  # Windows
  fcntl = None

NAME = ".lock"
GLANCE = 1.0  # seconds that a lock is waited for: `in_use` takes one for an instant
# Files and folders that a run, or a sweep, writes into its folder, after its config.json.
RUN = (
  "metrics.jsonl", "predictions.jsonl", "result.json", "scores.safetensors", "tuned.safetensors",
  "checkpoints",
)  # fmt: skip
SWEEP = (
  "notes.json", "results.csv", "results.parquet", "report.md", "report.html", "table.tex", "tuning",
  "tuning.json", "groups", "plots", "slurm", "slurm.sh", "trials",
)  # fmt: skip


def check_writable(folder: str | Path) -> None:
  """Raises UserError for a folder that cannot be made or written in; writes nothing."""
  folder = Path(folder)
  for existing in (folder, *folder.absolute().parents):
    try:
      os.lstat(existing)
      break
    except (FileNotFoundError, NotADirectoryError):
      continue
    except (OSError, ValueError) as error:
      reason = getattr(error, "strerror", None) or error
      raise UserError(f"{folder} cannot be written: {reason}") from error
  if not existing.is_dir():
    raise UserError(f"{folder} cannot be written: {existing} is not a folder")
  if not os.access(existing, os.W_OK | os.X_OK):
    raise UserError(f"{folder} cannot be written: permission denied for {existing}; give another")


def check_contents(folder: Path, kind: Literal["run", "sweep"] = "run") -> None:
  """Raises UserError for a folder with files of something else, which would be overwritten.

  The folder of a run or a sweep is known by a config.json with jaxtune's sections. A run that was
  killed before it wrote that has a folder for checkpoints, without any.
  """
  names = [name for name in ("config.json", *RUN, *SWEEP) if (folder / name).exists()]
  if "checkpoints" in names and not checkpoint.exists(folder / "checkpoints"):
    names.remove("checkpoints")
  is_known = not names
  if names[:1] == ["config.json"]:
    fix = "put it back, or give another folder"
    content = schema.read_json(folder / names[0], fix=fix)
    of_ours = isinstance(content, dict) and content.keys() <= config.KEYS
    is_known = of_ours and bool({"model", "sweep"} & content.keys())  # the model may be an axis
  if not is_known:
    raise UserError(
      f"{folder} is not the folder of a {kind}, and its {names[0]} would be lost; expected a "
      f"folder that is new, empty or of a {kind}"
    )
  other, others = ("sweep", SWEEP) if kind == "run" else ("run", RUN)
  if not set(others).isdisjoint(names):
    raise UserError(f"{folder} holds a {other}: give another folder for a {kind}")


@contextlib.contextmanager
def held(folder: str | Path, kind: Literal["run", "sweep"] = "run") -> Iterator[None]:
  """Locks the folder of a run or a sweep for this process; makes the folder if there is none.

  The lock is the kernel's (flock), on a file in the folder: it ends with its process, however that
  ends. On a file system without such locks a warning is printed and nothing is locked. The file,
  and folders that were made and stay empty, are removed at the end.

  Of several processes that train a run, the first one locks the folder for all.

  Raises:
    UserError: where another process, which is named, has locked the folder, where it cannot be
      written, or where it holds files of something else; see `check_contents`. Where the processes
      of a run do not see the same folder.
  """
  folder = Path(folder)
  with _alone(folder, kind) if hosts.primary() else contextlib.nullcontext():
    hosts.wait("lock")
    if not hosts.primary() and not (folder / NAME).exists():
      raise UserError(
        f"{folder} is another folder for process {jax.process_index()} than for process 0; "
        "expected one that all processes share"
      )
    yield


@contextlib.contextmanager
def of_group(folder: Path, patience: float = 60) -> Iterator[None]:
  """Locks a group of a sweep, by the folder of its first trial, while it is trained.

  Waits some seconds for a process that holds it: that of a sweep that was killed, and which Ray has
  not ended yet.

  Raises:
    UserError: where another process, which is named, still holds it.
  """
  if not hosts.primary():
    yield
    return
  until = time.monotonic() + patience
  while in_use(folder) and time.monotonic() < until:
    time.sleep(0.5)
  with _locked(folder):
    yield


def holder(folder: Path) -> str | None:
  """Returns the name of the process that has locked a folder, or None."""
  with contextlib.suppress(OSError):
    return (folder / NAME).read_text()
  return None


def works(sweep: Path) -> bool:
  """Says whether a process trains in the folder of a sweep or a run, or only groups of a sweep."""
  return in_use(sweep) or any(in_use(path.parent) for path in sweep.glob(f"*/*/{NAME}"))


def in_use(folder: Path) -> bool:
  """Says whether a process, maybe this one, has locked a folder; writes nothing."""
  if fcntl is None:
    return (folder / NAME).exists()
  try:
    with (folder / NAME).open() as file:
      fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
  except BlockingIOError:
    return True
  except OSError:  # no such file, or no such locks
    return False
  return False


@contextlib.contextmanager
def _alone(folder: Path, kind: Literal["run", "sweep"]) -> Iterator[None]:
  """Locks a folder, and removes at its end what stayed empty."""
  check_writable(folder)
  made = [path for path in (folder, *folder.parents) if not path.exists()]
  try:
    with _locked(folder):
      check_contents(folder, kind)
      yield
  finally:
    with contextlib.suppress(OSError):  # it holds files by now
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
      with contextlib.suppress(FileNotFoundError):
        if os.path.samestat(os.fstat(file.fileno()), path.stat()):
          break  # else the process that held the lock has just removed its file
    stack.callback(path.unlink, missing_ok=True)
    with writing(path):
      file.truncate(0)
      os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}".encode())
    yield


def _lock(file: IO[str], folder: Path) -> None:
  try:
    if fcntl is None:
      raise OSError("no fcntl")
    until = time.monotonic() + GLANCE
    while True:
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
      except BlockingIOError:
        if time.monotonic() > until:
          raise
        time.sleep(0.01)
  except BlockingIOError as error:
    file.seek(0)
    holder = file.read() or "another process"
    raise UserError(
      f"{folder} is in use by {holder}: wait for its end, or give another folder"
    ) from error
  except OSError:
    print(
      f"warning: the file system of {folder} has no locks: make sure that no other process writes "
      "there",
      file=sys.stderr,
    )
