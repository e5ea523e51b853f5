"""Writes files and folders as a whole: at any time either the old one is there, or the new one.

A folder that `replacing` wrote has a list of its files with their hashes. It may be replaced only
while it holds exactly these files, unchanged, so that nothing that somebody added is lost.
"""

from __future__ import annotations

import contextlib
import ctypes
import glob
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Generator, Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from typing_extensions import TypedDict

from jaxtune import hosts, schema
from jaxtune.errors import UserError

try:
  import fcntl
except ImportError:  # Windows
  fcntl = None

LIST = "jaxtune_files.json"


def expanded(name: str | Path) -> Path:
  """Returns a path with its "~" replaced; that of a user whom there is not stays as it is."""
  return Path(os.path.expanduser(name))


class Listed(TypedDict):
  """The list of a folder's files: {path in the folder: SHA-256}."""

  __pydantic_config__ = schema.STRICT
  files: dict[str, str]


@contextlib.contextmanager
def replacing(folder: Path) -> Generator[Path]:
  """Yields an empty folder that replaces `folder` when the block ends without an error.

  Raises:
    UserError: before or after the block, if `folder` holds anything that `replacing` did not write;
      where another process is writing there.
  """
  folder = folder.resolve()
  new, old = (folder.with_name(f".{folder.name}.jaxtune-{state}") for state in ("new", "old"))
  if old.exists() and not folder.exists():  # a process was killed between the renames of `_swap`
    old.rename(folder)
  check_free(folder)
  with _alone(new, folder):
    try:
      yield new
      _write_list(new, hashes(new))
      check_free(folder)  # something may have been put there meanwhile
      shutil.rmtree(old, ignore_errors=True)
      _swap(new, folder, old)
    finally:
      for temporary in (new, old) if folder.exists() else (new,):
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def _alone(new: Path, folder: Path) -> Generator[None]:
  """Makes an empty folder and locks it, by the kernel: the lock ends with its process."""
  new.mkdir(parents=True, exist_ok=True)
  with contextlib.ExitStack() as stack:
    if fcntl is not None:
      place = os.open(new, os.O_RDONLY)
      stack.callback(os.close, place)
      try:
        fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except OSError as error:  # any other one is that of a file system without locks
        if isinstance(error, BlockingIOError):
          raise UserError(f"another process is writing {folder}: wait for its end") from error
    for path in new.iterdir():  # of a process that was killed
      shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    yield


def check_free(folder: Path) -> None:
  """Raises UserError unless a folder is new, empty, or as `replacing` wrote it."""
  expected = "expected a folder that is new, empty, or an export to which nothing was added"
  if not folder.exists():
    return
  if not folder.is_dir():
    raise UserError(f"{folder} exists and is a file; {expected}")
  listed = read_list(folder)
  for path in sorted(folder.rglob("*")):
    name = path.relative_to(folder).as_posix()
    is_folder = path.is_dir() and not path.is_symlink()
    if name == LIST or is_folder and any(file.startswith(f"{name}/") for file in listed):
      continue
    if is_folder or name not in listed:
      raise UserError(
        f"{folder} exists and holds {name}, which no export wrote and which would be lost; "
        f"{expected}"
      )
    if path.is_symlink() or digest(path) != listed[name]:
      raise UserError(f"{path} was changed since it was exported, which would be lost; {expected}")


def read_list(folder: Path) -> dict[str, str]:
  """Returns {path: SHA-256} of the files that `replacing` wrote; {} for any other folder."""
  path = folder / LIST
  if not path.is_file():
    return {}
  content = schema.read_json(path)
  schema.check(str(path), content, Listed)
  return content["files"]


def add(path: Path) -> None:
  """Adds a file that was written later to the list of its folder, if the folder has one."""
  if listed := read_list(path.parent):
    _write_list(path.parent, listed | {path.name: digest(path)})


def hashes(folder: Path, without: tuple[str, ...] = ()) -> dict[str, str]:
  """Returns {path: SHA-256} of a folder's files, except its list and the names in `without`."""
  return {
    path.relative_to(folder).as_posix(): digest(path)
    for path in sorted(folder.rglob("*"))
    if path.is_file() and path.name not in (LIST, *without)
  }


def digest(path: Path) -> str:
  """Returns the SHA-256 of a file.

  Raises:
    UserError: if it cannot be read.
  """
  try:
    with path.open("rb") as file:
      return hashlib.file_digest(file, "sha256").hexdigest()
  except OSError as error:
    raise UserError(f"{path} cannot be read: {error.strerror}") from error


def _write_list(folder: Path, files: dict[str, str]) -> None:
  text = json.dumps({"files": files}, indent=2, sort_keys=True) + "\n"
  write_atomically(folder / LIST, text)


def _swap(new: Path, folder: Path, old: Path) -> None:
  """Replaces `folder` by `new`: in one step where the system can, else moving it to `old` first."""
  if not folder.exists() or not any(folder.iterdir()):
    new.rename(folder)
  elif not _exchange(new, folder):
    folder.rename(old)
    new.rename(folder)


def _exchange(first: Path, second: Path) -> bool:
  """Exchanges two folders in one step; returns False where the system cannot do that."""
  call = getattr(ctypes.CDLL(None), "renameat2", None) if os.name == "posix" else None
  here, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
  return call is not None and call(here, os.fsencode(first), here, os.fsencode(second), swap) == 0


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
  """Writes arrays as a safetensors file for PyTorch, which all may read that may read new files."""
  path.touch()
  mode = path.stat().st_mode
  save_file(dict(tensors), path, {"format": "pt"})
  path.chmod(mode)  # save_file lets only the owner read it


def write_atomically(path: Path, content: str | bytes) -> None:
  """Writes a file so that at any time it is either the old one or the whole new one.

  Of several processes that train a run, only the first one writes. Processes that write the same
  file do not disturb each other: the last one's stays.

  Raises:
    UserError: if the disk is full or not writable; the old file is then unchanged.
  """
  if not hosts.primary():
    return
  with writing(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    new = _temporary(path)
    try:
      with new.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
      new.replace(path)
    finally:
      new.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
  """Returns a new name beside a file, and removes what processes that were killed left of it."""
  mine = f".{path.name}.{socket.gethostname()}"
  for left in path.parent.glob(f"{glob.escape(mine)}.*.new"):
    with contextlib.suppress(FileNotFoundError):  # another process removes it too
      # A process of another container has a number that is not known here.
      if time.time() - left.stat().st_mtime > 3600 and not _runs(left.name.split(".")[-3]):
        left.unlink()
  return path.with_name(f"{mine}.{os.getpid()}.{secrets.token_hex(4)}.new")


def _runs(process: str) -> bool:
  """Says whether a process of this machine runs; True also where the system does not tell."""
  if os.name != "posix" or not process.isdecimal():
    return True
  try:
    os.kill(int(process), 0)
  except PermissionError:  # it is another user's
    return True
  except (ProcessLookupError, OverflowError):
    return False
  return True


def remove(path: Path) -> None:
  """Removes a file, or a folder so that at any time it is whole or not there under its name."""
  if path.is_dir():
    hidden = path.with_name(f".{path.name}.old")
    shutil.rmtree(hidden, ignore_errors=True)
    path = path.rename(hidden)
    shutil.rmtree(path, ignore_errors=True)
  else:
    path.unlink(missing_ok=True)


def move(path: Path, to: Path) -> None:
  """Gives a file or folder another name; does nothing where another process has just done it."""
  with contextlib.suppress(OSError):
    path.rename(to)


@contextlib.contextmanager
def writing(path: Path) -> Generator[None]:
  """Turns an error of the file system, such as a full disk, into a UserError with the path."""
  try:
    yield
  except (OSError, ValueError) as error:
    code = re.search(r"os_error_code='(\d+)'", str(error))  # orbax raises these as ValueError
    if not code and not isinstance(error, OSError):
      raise
    reason = os.strerror(int(code[1])) if code else getattr(error, "strerror", None) or error
    raise UserError(
      f"cannot write {path}: {reason}; make room or name another folder, and start again: what was "
      "saved before is unchanged"
    ) from error
