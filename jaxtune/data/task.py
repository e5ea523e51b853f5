"""One task's files to tokenised splits: read, divided, checked against each other, encoded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from jaxtune.data import divide, ids, sources, stream
from jaxtune.data.options import DataOptions, EncodeOptions
from jaxtune.data.reading import Reading
from jaxtune.data.split import Split
from jaxtune.data.templates import Example
from jaxtune.data.tokenizer import Tokenizer
from jaxtune.errors import UserError, nearest

SPLITS = ("train", "validation", "test")


class Loaded(NamedTuple):
  """The splits of a task, the record of how they came about, and the names of its labels."""

  splits: dict[str, Split | stream.Stream]
  report: dict
  labels: Sequence[str]


def read(
  tokenizer: Tokenizer,
  objective: Any,
  options: DataOptions,
  decoder_start: tuple[int, ...],
  vocabulary: int | None,
) -> Loaded:
  """Reads the splits of one task; the arguments are those of `load.load`."""
  if options.train is None:
    raise UserError("data.train is missing: expected a file, several, or a hub name")
  if isinstance(options.train, (int, float)):
    raise UserError(f"data.train is {options.train}, expected a file or a hub name")
  encode = partial(_encode, tokenizer, objective.encode, vocabulary)
  splits, counts, encoding = {}, {}, options.encoding(decoder_start)
  if options.stream is not None:
    splits["train"] = stream.load(tokenizer, options, partial(encode, options=encoding))
  readings, files = _read_files(objective.read, options)
  file_rows = {name: len(reading.groups) for name, reading in readings.items()}
  readings = _limit(_draw(readings, options), options)
  examples = {
    name: [example for group in reading.groups for example in group]
    for name, reading in readings.items()
  }
  remaining, overlap = divide.separate(examples, options.overlap)
  for name, reading in readings.items():  # train first: its labels are the others' too
    splits[name], counts[name] = encode(remaining[name], encoding)
    encoding = encoding._replace(labels=counts[name].get("labels", encoding.labels))
    counts[name] = _with_lost(name, counts[name], reading, examples[name], remaining[name])
  report = {
    "splits": {name: counts[name] for name in SPLITS if name in counts},
    "overlap": overlap,
    "files": files,
    "file_rows": file_rows,
    "format": {name: reading.form for name, reading in readings.items()},
  }
  has_labels = any("labels" in one for one in counts.values())
  return Loaded(splits, report, encoding.labels if has_labels else ())


def _read_files(
  read: Callable[[sources.Table, str, DataOptions], Reading], options: DataOptions
) -> tuple[dict[str, Reading], dict[str, str]]:
  """Reads the splits that have files of their own, and hashes the files."""
  streamed = options.stream is not None
  readings, files = {}, stream.stamps(options.train) if streamed else {}
  read_whole = {}
  for name in SPLITS[streamed:]:
    source = getattr(options, name)
    if source is None or isinstance(source, (int, float)):
      continue
    table = sources.read(source, name, options.columns)
    table = _keep_only(table, options.only or {}, name)
    readings[name] = read(table, name, options)
    read_whole |= table.hashes
  csv = any(sources.kind(path) in ("csv", "tsv") for path in read_whole)
  if options.columns and not csv:
    raise UserError("data.columns names the columns of CSV or TSV files, and there are none")
  return readings, files | read_whole


def _keep_only(table: sources.Table, wanted: dict, name: str) -> sources.Table:
  """Keeps the rows whose columns have the wanted values, compared as text."""
  for column, values in wanted.items():
    values = set(map(str, values if isinstance(values, (list, tuple)) else [values]))
    there = {str(row[column]) for row in table.rows if column in row}
    if missing := sorted(values - there):
      raise UserError(
        f"data.only: no row of {name} has {missing[0]!r} as its {column}; "
        f"{nearest(missing[0], sorted(there)[:20])}"
      )
    kept = [i for i, row in enumerate(table.rows) if str(row.get(column)) in values]
    pick = lambda items, kept=kept: [items[i] for i in kept]
    table = table._replace(rows=pick(table.rows), where=pick(table.where))
  return table


def _draw(readings: dict[str, Reading], options: DataOptions) -> dict[str, Reading]:
  """Draws the splits that have no file of their own out of train."""
  readings = dict(readings)
  # Test before validation: what is held out longest depends on the fewest other settings.
  for name in ("test", "validation"):
    size = getattr(options, name)
    if isinstance(size, (int, float)):
      if "train" not in readings:
        raise UserError(
          f"data.{name} is {size}, expected a file: nothing can be drawn from a stream"
        )
      train = readings["train"]
      rest, drawn = divide.draw(train.heads, size, name, options.seed)
      readings["train"], held = train.keep(rest), train.keep(drawn)
      readings[name] = held._replace(groups=[group[:1] for group in held.groups])
  return readings


def _limit(readings: dict[str, Reading], options: DataOptions) -> dict[str, Reading]:
  """Applies data.limit and data.eval_limit."""
  limited = {}
  for name, reading in readings.items():
    # A test of a mixture holds its rare tasks; what is trained on keeps the shares of the file.
    train = name == "train"
    most, tasks = (options.limit, None) if train else (options.eval_limit, options.tasks)
    limited[name] = reading.keep(divide.limited(reading.heads, most, options.seed, tasks))
  return limited


def _encode(
  tokenizer: Tokenizer,
  encode: Callable[[Tokenizer, list[Example], EncodeOptions], tuple[Split, dict]],
  vocabulary: int | None,
  examples: list[Example],
  options: EncodeOptions,
) -> tuple[Split, dict]:
  """Encodes examples, and checks that the model has an embedding for each of their tokens."""
  split, counts = encode(tokenizer, examples, options)
  if vocabulary is not None and counts["kept"]:
    ids.check_split(tokenizer, split, vocabulary)
  return split, counts


def _with_lost(
  name: str, counts: dict, reading: Reading, before: Sequence[Example], after: Sequence[Example]
) -> dict:
  """Adds to the counts of a split what was left out of it before it was encoded."""
  skipped = reading.skipped | counts["skipped"]
  if not counts["kept"]:
    raise UserError(
      f"the {name} split is empty: of {len(after)} examples all were skipped ({skipped}): raise "
      "data.max_length, or look at the answers"
    )
  if shared := len(before) - len(after):
    skipped["overlap"] = shared
  return {"read": len(before) + sum(reading.skipped.values())} | counts | {"skipped": skipped}
