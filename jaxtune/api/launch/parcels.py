"""A group's files as bytes, for a worker that does not share the sweep's folder.

Whenever one side is killed, the other holds what a killed process leaves: whole checkpoints,
results only with all their files, and logs that go at least as far as the checkpoint.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from jaxtune.files import remove, write_atomically, writing

Stamps = Mapping[str, tuple[int, int]]  # {path in the sweep's folder: its time and size}


class Parcel(NamedTuple):
  """What has changed in the folders of a group.

  Attributes:
    checkpoints: {path of a checkpoint: {path in it: content}}.
    files: {path of a trial's file: content}.
    gone: paths of both that are there no longer.
  """

  checkpoints: dict[str, dict[str, bytes]]
  files: dict[str, bytes]
  gone: list[str]


def pack(sweep: Path, places: Iterable[Path], known: Stamps) -> tuple[Parcel, Stamps]:
  """Returns what has changed since the stamps that are known, and the stamps of now.

  Args:
    sweep: the sweep's folder.
    places: folders in it, those of trials, and of checkpoints in "groups".
  """
  checkpoints, files, stamps = {}, {}, {}
  for path in _contents(list(places)):
    name = str(path.relative_to(sweep))
    with contextlib.suppress(FileNotFoundError):  # it has been removed meanwhile
      stat = path.stat()
      stamp = stat.st_mtime_ns, stat.st_size
      changed = known.get(name) != stamp
      if changed and path.is_dir():
        inner = [inner for inner in path.rglob("*") if inner.is_file()]
        checkpoints[name] = {str(one.relative_to(path)): one.read_bytes() for one in inner}
        path.stat()  # whole, as it is removed by being renamed
      elif changed:
        files[name] = path.read_bytes()
      stamps[name] = stamp
  checkpoints = {name: inner for name, inner in checkpoints.items() if name in stamps}
  return Parcel(checkpoints, files, sorted(known.keys() - stamps.keys())), stamps


def _contents(places: list[Path]) -> Iterator[Path]:
  """Yields the newest checkpoint of each group, then the trials' files, results before others."""
  for place in places:
    if place.parent.name == "groups":
      steps = [path for path in _listed(place) if path.name.isdecimal()]
      yield from sorted(steps, key=lambda path: int(path.name))[-1:]
  trials = [place for place in places if place.parent.name != "groups"]
  files = [path for place in trials for path in _listed(place) if not path.name.startswith(".")]
  yield from sorted(files, key=lambda path: path.name != "result.json")


def _listed(folder: Path) -> list[Path]:
  """Lists a folder; [] if there is none, or none any more."""
  with contextlib.suppress(FileNotFoundError):
    return list(folder.iterdir())
  return []


def unpack(parcel: Parcel, sweep: Path) -> None:
  """Writes what has changed into a sweep's folder."""
  for name, inner in parcel.checkpoints.items():
    if not (sweep / name).exists():
      _write_folder(sweep / name, inner)
  for name in sorted(parcel.files, key=lambda name: name.endswith("/result.json")):
    write_atomically(sweep / name, parcel.files[name])
  for path in map(sweep.joinpath, parcel.gone):
    if path.parents[1].name != "groups":
      remove(path)
    elif [*_contents([path.parent])] in ([], [path]):  # the group is done
      remove(path.parent)
    else:
      shutil.rmtree(path, ignore_errors=True)


def _write_folder(path: Path, contents: dict[str, bytes]) -> None:
  new = path.parent.with_name(f".{path.parent.name}.new")
  with writing(path):
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    for name, content in contents.items():
      (new / name).parent.mkdir(parents=True, exist_ok=True)
      (new / name).write_bytes(content)
    path.parent.mkdir(exist_ok=True)
    new.rename(path)
