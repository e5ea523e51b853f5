"""Folders that are replaced as a whole: there is the old one or the new one, and nothing is lost.

Such a folder lists its files with their hashes. While it holds exactly these files, unchanged, it
may be replaced; with anything else in it, it is left alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from typing_extensions import TypedDict

from jaxtune import schema
from jaxtune.errors import UserError

LIST = "jaxtune_files.json"


class Listed(TypedDict):
  """The list of a folder's files: {path in the folder: SHA-256}."""

  __pydantic_config__ = schema.STRICT
  files: dict[str, str]


@contextlib.contextmanager
def replacing(folder: Path) -> Iterator[Path]:
  """Yields an empty folder that takes the place of `folder` when the block ends without an error.

  Raises:
    UserError: before and after the block, where `folder` holds what was not written in this way.
  """
  folder = folder.resolve()
  new, old = (folder.with_name(f".{folder.name}.jaxtune-{state}") for state in ("new", "old"))
  if old.exists() and not folder.exists():  # a process was killed between two renames
    old.rename(folder)
  check_free(folder)
  shutil.rmtree(new, ignore_errors=True)
  new.mkdir(parents=True)
  try:
    yield new
    _write_list(new, hashes(new))
    check_free(folder)  # something may have been put there meanwhile
    shutil.rmtree(old, ignore_errors=True)
    _swap(new, folder, old)
  finally:
    for left in (new, old) if folder.exists() else (new,):
      shutil.rmtree(left, ignore_errors=True)


def check_free(folder: Path) -> None:
  """Raises UserError unless a folder is new, empty, or as `replacing` has left it."""
  expected = "expected a folder that is new, empty, or an export to which nothing was added"
  if not folder.exists():
    return
  if not folder.is_dir():
    raise UserError(f"{folder} exists and is a file; {expected}")
  listed = read_list(folder)
  for path in sorted(folder.rglob("*")):
    name = path.relative_to(folder).as_posix()
    inner = path.is_dir() and not path.is_symlink()
    if name == LIST or inner and any(own.startswith(f"{name}/") for own in listed):
      continue
    if inner or name not in listed:
      raise UserError(
        f"{folder} exists and is no earlier export, or has more in it ({name}), which would be "
        f"lost; {expected}"
      )
    if path.is_symlink() or digest(path) != listed[name]:
      raise UserError(f"{path} was changed since it was exported, which would be lost; {expected}")


def read_list(folder: Path) -> dict[str, str]:
  """Returns {path: SHA-256} of what `replacing` wrote in a folder; {} for another folder."""
  path = folder / LIST
  if not path.is_file():
    return {}
  found = schema.read_json(path)
  schema.check(str(path), found, Listed)
  return found["files"]


def add(path: Path) -> None:
  """Adds a file that was written later to the list of its folder, where there is one."""
  if listed := read_list(path.parent):
    _write_list(path.parent, listed | {path.name: digest(path)})


def hashes(folder: Path, without: tuple[str, ...] = ()) -> dict[str, str]:
  """Returns the SHA-256 of every file in a folder but its list, and those named `without`."""
  return {
    path.relative_to(folder).as_posix(): digest(path)
    for path in sorted(folder.rglob("*"))
    if path.is_file() and path.name not in (LIST, *without)
  }


def digest(path: Path) -> str:
  """Returns the SHA-256 of a file."""
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def _write_list(folder: Path, files: dict[str, str]) -> None:
  text = json.dumps({"files": files}, indent=2, sort_keys=True) + "\n"
  write_atomically(folder / LIST, text)


def _swap(new: Path, folder: Path, old: Path) -> None:
  """Puts a folder into the place of another, in one step where the system has one."""
  if not folder.exists() or not any(folder.iterdir()):
    new.rename(folder)
  elif not _exchange(new, folder):
    folder.rename(old)
    new.rename(folder)


def _exchange(one: Path, other: Path) -> bool:
  """Swaps two names of a Linux file system at once; False where that cannot be done."""
  call = getattr(ctypes.CDLL(None), "renameat2", None) if os.name == "posix" else None
  here, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
  return call is not None and call(here, os.fsencode(one), here, os.fsencode(other), swap) == 0


def write_atomically(path: Path, content: str | bytes) -> None:
  """Writes a file so that it is either the old one or the whole new one.

  Raises:
    UserError: when the disk is full or not writable; the old file is as it was.
  """
  new = path.with_name(f".{path.name}.new")
  with writing(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
      with new.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
      new.replace(path)
    except OSError:
      new.unlink(missing_ok=True)
      raise


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
  """Turns a full disk, a read-only folder and their like into a UserError that names the path."""
  try:
    yield
  except (OSError, ValueError) as error:
    code = re.search(r"os_error_code='(\d+)'", str(error))  # orbax's writer has no type for these
    if not code and not isinstance(error, OSError):
      raise
    reason = os.strerror(int(code[1])) if code else error.strerror or error
    raise UserError(
      f"cannot write {path}: {reason}. Make room or give another place, and start again: what was "
      "saved before is as it was"
    ) from error
