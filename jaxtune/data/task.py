"""One task's files to tokenised splits: read, divided, checked against each other, encoded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain, compress
from typing import Any, NamedTuple

from jaxtune.data import divide, ids, sources, stream
from jaxtune.data.options import DataOptions, EncodeOptions
from jaxtune.data.reading import Reading
from jaxtune.data.split import SPLITS, Split
from jaxtune.data.templates import Example
from jaxtune.data.tokenizer import Tokenizer
from jaxtune.errors import UserError, nearest


class Data(NamedTuple):
  """The splits of one data set, and the record of how they came about.

  Attributes:
    report: counts and hashes by split, overlap, files, format and tokenizer.
    labels: names of the classes or tags, in the order of their numbers.
    general: plain text on other subjects, on which the loss shows what a model forgets.
    stop_tokens: ids that end an answer: the tokenizer's eos, and those that the chat templates of
      the training data end a turn with.
  """

  train: Split | stream.Stream
  validation: Split | None
  test: Split | None
  report: dict
  labels: tuple[str, ...] = ()
  general: Split | None = None
  stop_tokens: tuple[int, ...] = ()

  @property
  def splits(self) -> dict[str, Any]:
    """Those of train, validation and test that there are, by name."""
    return {name: getattr(self, name) for name in SPLITS if getattr(self, name) is not None}


def read(
  tokenizer: Tokenizer,
  objective: Any,
  options: DataOptions,
  decoder_start: tuple[int, ...],
  vocabulary: int | None,
) -> Data:
  """Reads the splits of one task; the arguments are those of `load.load`."""
  if options.train is None:
    raise UserError("data.train is missing: expected a file, several, or a hub name")

  def encode(examples: list[Example], encoding: EncodeOptions) -> tuple[Split, dict]:
    split, counts = objective.encode(tokenizer, examples, encoding)
    if vocabulary is not None and counts["kept"]:
      ids.check_split(tokenizer, split, vocabulary)
    return split, counts

  splits, counts = dict.fromkeys(SPLITS), {}
  encoding = options.encoding(decoder_start)
  if options.stream is not None:
    splits["train"] = stream.load(tokenizer, options, partial(encode, encoding=encoding))
  readings, files = _read_files(objective.read, options)
  file_rows = {name: len(reading.groups) for name, reading in readings.items()}
  readings = _divide(readings, options)
  examples = {name: list(chain.from_iterable(r.groups)) for name, r in readings.items()}
  remaining, overlap = divide.separate(examples, options.overlap)
  for name, reading in readings.items():  # train first: its labels are the others' too
    splits[name], encoded = encode(remaining[name], encoding)
    encoding = encoding._replace(labels=encoded.get("labels", encoding.labels))
    counts[name] = _with_lost(name, encoded, reading, examples[name], remaining[name])
  report = {
    "splits": {name: counts[name] for name in SPLITS if name in counts},
    "overlap": overlap,
    "files": files,
    "file_rows": file_rows,
    "format": {name: reading.form for name, reading in readings.items()},
  }
  return Data(**splits, report=report, labels=tuple(counts.get("train", {}).get("labels", ())))


def _read_files(
  read: Callable[[sources.Table, str, DataOptions], Reading], options: DataOptions
) -> tuple[dict[str, Reading], dict[str, str]]:
  """Reads the splits that have files of their own, and hashes the files."""
  streamed = options.stream is not None
  readings, hashes = {}, stream.stamps(options.train) if streamed else {}
  for name in SPLITS[streamed:]:
    source = getattr(options, name)
    if source is None or isinstance(source, (int, float)):
      continue
    table = sources.read(source, name, options.columns)
    readings[name] = read(_keep_only(table, options.only or {}, name), name, options)
    hashes |= table.hashes
  if options.columns and not any(sources.kind(path) in ("csv", "tsv") for path in hashes):
    raise UserError("data.columns names the columns of CSV or TSV files, and there are none")
  return readings, hashes


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
    keeps = [str(row.get(column)) in values for row in table.rows]
    rows, where = (list(compress(items, keeps)) for items in (table.rows, table.where))
    table = table._replace(rows=rows, where=where)
  return table


def _divide(readings: dict[str, Reading], options: DataOptions) -> dict[str, Reading]:
  """Draws the splits that have no file of their own out of train, and limits all of them."""
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
  for name, reading in readings.items():
    # A test of a mixture holds its rare tasks; what is trained on keeps the shares of the file.
    train = name == "train"
    most, tasks = (options.limit, None) if train else (options.eval_limit, options.tasks)
    readings[name] = reading.keep(divide.limited(reading.heads, most, options.seed, tasks))
  return readings


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
