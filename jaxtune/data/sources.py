"""Reads rows from files and from the Hugging Face hub, each with its place.

Text formats are parsed here, line by line, and not by `datasets`. Its readers of JSON and CSV turn
"2020-01-01" into a date and "NA" into nothing, give every row the columns of all rows, refuse a
column that is a string in one row and a list in the next, and do not say which line of a file is
malformed. Parquet files and data sets of the hub are read by `datasets`.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import re
import stat
import sys
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxtune import files, schema
from jaxtune.data import hub
from jaxtune.errors import UserError, nearest

csv.field_size_limit(sys.maxsize)  # of the whole process; the default refuses fields above 128 kB
_KINDS = {
  ".jsonl": "json", ".json": "json", ".ndjson": "json", ".csv": "csv", ".tsv": "tsv",
  ".parquet": "parquet",
}  # fmt: skip
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")


class Table(NamedTuple):
  """Rows in the order of their file.

  Attributes:
    where: the place of each row, "file:line", or "file:row N" for formats without lines (N from 1).
    hashes: {source: sha256 of the file, or of the rows of a hub name}.
  """

  rows: list[dict]
  where: list[str]
  hashes: dict[str, str]

  @property
  def columns(self) -> list[str]:
    """The columns of all rows, in the order in which they first come."""
    return list(dict.fromkeys(column for row in self.rows for column in row))


def read(
  source: str | Sequence[str], split: str = "train", columns: Sequence[str] | None = None
) -> Table:
  """Reads the rows of a file, of several files one after another, or of a hub data set.

  JSON lines (.jsonl, .json; a .json file may also be one array of objects), CSV (quoted as in
  RFC 4180), TSV (quotes are ordinary characters) and any of these as .gz; Parquet; and
  "owner/name" or "owner/name:configuration" on the hub if no such file exists. CSV and TSV values
  stay text, exactly as written. Code in a repository of the hub is never run.

  Args:
    split: the hub data set's split; files have none.
    columns: names for the columns of CSV and TSV files that have no header line.

  Raises:
    UserError: a missing, empty, damaged or malformed file, named with its line.
  """
  rows, where, hashes = [], [], {}
  for name in names(source, split):
    path = _find(name)
    pairs = list(_pairs(name, path, split, columns))
    where += [place for place, _ in pairs]
    rows += [row for _, row in pairs]
    if path:
      hashes[name] = files.digest(path)
    else:
      content = json.dumps([row for _, row in pairs], default=str, sort_keys=True)
      hashes[f"{name}[{split}]"] = hashlib.sha256(content.encode()).hexdigest()
  return Table(rows, where, hashes)


def read_lines(source: str) -> Table:
  """Reads a text file (.txt): each line that is not blank is a row {"prompt": line}.

  Raises:
    UserError: a missing, empty or damaged file.
  """
  path = _find(source, (".txt",))
  kept = [(f"{path}:{at}", line.rstrip("\r\n")) for at, line in _lines(path) if line.strip()]
  if not kept:
    raise UserError(f"{source} holds no lines: expected at least one")
  rows = [{"prompt": line} for _, line in kept]
  return Table(rows, [place for place, _ in kept], {source: files.digest(path)})


def stream(
  source: str | Sequence[str], split: str = "train", columns: Sequence[str] | None = None
) -> Iterator[tuple[str, dict]]:
  """Yields (place, row) one by one from the sources that `read` reads, and does not hold them.

  Only a .json file that is one array is read whole.
  """
  for name in names(source, split):
    yield from _pairs(name, _find(name), split, columns, streaming=True)


def has(row: dict, wanted: Mapping[str, set[str]]) -> bool:
  """Says whether each column of a row has one of the wanted values, compared as text."""
  return all(str(row.get(column)) in values for column, values in wanted.items())


def texts_of(values: Any) -> set[str]:
  """Returns one value, or each of several, as text."""
  return set(map(str, values if isinstance(values, (list, tuple)) else [values]))


def kind(source: str) -> str | None:
  """Returns a source's format, by its ending: json, csv, tsv, parquet, or None."""
  return _KINDS.get(Path(source.lower().removesuffix(".gz")).suffix)


def names(source: str | Sequence[str], split: str = "train") -> list[str]:
  """Lists the files or hub names of a split's data, of which there must be one at least."""
  listed = [source] if isinstance(source, (str, Path)) else list(source)
  if not listed:
    raise UserError(f"the {split} data names no file: give a path or a hub name")
  return list(map(str, listed))


def _find(source: str, kinds: Collection[str] = tuple(_KINDS)) -> Path | None:
  """Returns the path of a file that can be read; None if the source can only be a hub name.

  Args:
    kinds: the endings that the file may have, besides .gz.
  """
  path, ending = Path(source), Path(source.lower().removesuffix(".gz")).suffix
  try:
    path = path.expanduser()
    mode = path.stat().st_mode
  except (FileNotFoundError, NotADirectoryError) as error:
    if _HUB_NAME.fullmatch(source) and ending not in kinds and not path.parent.is_dir():
      return None
    raise UserError(_missing(path)) from error
  except (OSError, ValueError, RuntimeError) as error:  # links in a circle, a NUL, no such user
    reason = getattr(error, "strerror", None) or error
    raise UserError(f"{schema.shown(source)} cannot be read: {reason}") from error
  if stat.S_ISDIR(mode):
    files = sorted(p.name for p in path.iterdir() if kind(p.name))
    raise UserError(f"{path} is a folder: name a file in it ({', '.join(files[:8]) or 'none'})")
  if not stat.S_ISREG(mode):
    raise UserError(f"{path} is a pipe or a device: expected a file")
  if ending not in kinds:
    raise UserError(f"{path}: unknown file type, expected one of {', '.join(kinds)} (or .gz)")
  return path


def _pairs(
  name: str, path: Path | None, split: str, columns: Sequence[str] | None, streaming: bool = False
) -> Iterator[tuple[str, dict]]:
  """Yields (place, row) of one source: of the file at `path`, else of the hub's data set."""
  if path is None:
    place = f"{name}[{split}]"
    rows = _numbered(hub.open_split(name, split, streaming))
  else:
    place, format = path, kind(name)
    readers = {"json": _json, "parquet": _parquet}
    rows = readers[format](path) if format in readers else _csv(path, columns)
  empty = True
  for at, row in rows:
    if not isinstance(row, dict):
      raise UserError(f"{place}:{at}: expected an object, got {type(row).__name__}")
    empty = False
    yield f"{place}:{at}", row
  if empty:
    raise UserError(f"{name} holds no rows: expected at least one example")


def _numbered(rows: Iterable) -> Iterator[tuple[str, Any]]:
  """Numbers the rows of a format without lines: "row 1" and so on."""
  return ((f"row {number}", row) for number, row in enumerate(rows, 1))


def _missing(path: Path) -> str:
  """Words the error for a file that does not exist."""
  folder = path.parent
  if path.is_symlink():
    return f"{path} is a link to {path.readlink()}, which does not exist"
  if not folder.is_dir():
    return f"no file {path}: the folder {folder} does not exist (looked from {Path.cwd()})"
  names = [p.name for p in folder.iterdir() if kind(p.name)]
  hub = "" if kind(path.name) else " (a hub name has the form owner/name)"
  if not names:
    return f"no file {path}{hub}: there are no data files in {folder.resolve()}"
  return f"no file {path}{hub}. In {folder.resolve()}: {nearest(path.name, names)}"


def _lines(path: Path) -> Iterator[tuple[int, str]]:
  """Yields (number from 1, line) of a text file, also of a gzipped one."""
  number = 0
  try:
    with (gzip.open if path.suffix.lower() == ".gz" else open)(path, "rb") as file:
      for number, line in enumerate(file, 1):  # noqa: B007
        yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
  except UnicodeDecodeError as error:
    raise UserError(
      f"{path}:{number}: not UTF-8 text ({error.reason}); save it as UTF-8"
    ) from error
  except (EOFError, gzip.BadGzipFile, zlib.error) as error:
    raise UserError(
      f"{path}: damaged or cut-off gzip data after line {number} ({error}); fetch the file again"
    ) from error
  except OSError as error:
    raise UserError(f"{path} cannot be read: {error.strerror or error}") from error


def _json(path: Path) -> Iterator[tuple[int | str, Any]]:
  """Yields (line or row, value) of JSON lines, or of a file that is one array."""
  lines = _lines(path)
  first = True
  for number, line in lines:
    if not line.strip():
      continue
    if first and line.lstrip().startswith("["):
      whole = "\n" * (number - 1) + line + "".join(rest for _, rest in lines)
      yield from _numbered(schema.parse_json(whole, path))
    else:
      yield number, schema.parse_json(line, f"{path}:{number}")
    first = False


def _csv(path: Path, columns: Sequence[str] | None) -> Iterator[tuple[int, dict]]:
  """Yields (line, row); a quoted row may have several lines, of which the first counts."""
  tabs = kind(path.name) == "tsv"
  dialect = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if tabs else {}
  reader = csv.reader((line for _, line in _lines(path)), strict=True, **dialect)
  names = list(columns) if columns else None
  start = 1
  try:
    for fields in reader:
      if fields:
        if names is None:
          names = _header(path, start, fields)
        elif start == 1 and fields == names:
          raise UserError(f"{path}:1: has a header line: leave out `columns`, which is for none")
        elif len(fields) != len(names):
          raise UserError(
            f"{path}:{start}: {len(fields)} fields, expected {len(names)} ({', '.join(names)})"
          )
        else:
          yield start, dict(zip(names, fields, strict=True))
      start = reader.line_num + 1
  except csv.Error as error:
    raise UserError(f"{path}:{start}: malformed row, {error}") from error


def _header(path: Path, line: int, fields: list[str]) -> list[str]:
  """Returns the names of a header line, and checks that all differ."""
  names = [name.strip() for name in fields]
  if not names[0] and all(names[1:]):
    raise UserError(
      f"{path}:{line}: the first column has no name in the header {fields}: write the file without "
      "the numbers of its rows, in pandas with to_csv(..., index=False), or name the column"
    )
  if len(set(names)) < len(names) or not all(names):
    raise UserError(
      f"{path}:{line}: the header {fields} has an empty or repeated name; "
      "for a file without a header pass `columns`, e.g. ('sentence', 'label')"
    )
  return names


def _parquet(path: Path) -> Iterator[tuple[str, dict]]:
  import datasets

  try:
    yield from _numbered(hub.as_written(datasets.IterableDataset.from_parquet(str(path))))
  except Exception as error:  # pyarrow and datasets wrap each other's errors in many classes
    cause = str(error.__cause__ or error).splitlines()[0]
    raise UserError(f"{path}: not a readable Parquet file ({cause})") from error
