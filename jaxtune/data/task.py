"""The files of one task to tokenised splits: reads, divides, compares and encodes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain, compress
from typing import Any, NamedTuple

from jaxtune.data import divide, ids, labels, sources, stream
from jaxtune.data.options import DataOptions, EncodeOptions
from jaxtune.data.reading import Reading
from jaxtune.data.split import SPLITS, Split
from jaxtune.data.templates import Example
from jaxtune.data.tokenizer import Tokenizer
from jaxtune.errors import UserError, nearest

SPLIT_SEED = 0  # every run draws the same splits and limited rows, whatever its own seed
# What helps where most examples of a split were skipped for this reason.
FIXES = {
  "too_long": "raise data.max_length",
  "label": "the training data have none of its labels: set data.labels to all there are",
}


class Data(NamedTuple):
  """The splits of a data set, or of one task of it, and how they were made.

  Attributes:
    report: counts and hashes by split, overlap, files, format and tokenizer.
    labels: the names of the classes or tags, in the order of their numbers.
    general: plain text on other subjects, whose loss shows how much a model forgets.
    stop_tokens: the ids that end an answer: the tokenizer's eos, and those with which the chat
      templates of the training data end a turn.
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
    """The splits that there are of train, validation and test, by name."""
    return {name: getattr(self, name) for name in SPLITS if getattr(self, name) is not None}


class Task(NamedTuple):
  """The examples of one task, read and divided, and not yet tokenised.

  Attributes:
    readings: what was read, by split.
    examples: those of `readings`, without those that another split has too.
    report: hashes of files, their rows and their formats.
  """

  options: DataOptions
  readings: dict[str, Reading]
  examples: dict[str, list[Example]]
  report: dict


def read(objective: Any, options: DataOptions) -> Task:
  """Reads the files of one task, draws the splits that have none, and limits them."""
  if options.train is None:
    raise UserError("data.train is missing: expected a file, several, or a hub name")
  readings, files = _read_files(objective.read, options)
  report = {
    "files": files,
    "file_rows": {name: len(reading.groups) for name, reading in readings.items()},
    "format": {name: reading.form for name, reading in readings.items()},
  }
  readings = _divide(readings, options)
  names = options.labels if objective.HEAD in ("classify", "tokens") else None
  named = lambda reading: labels.with_names(_examples(reading), names)
  return Task(options, readings, {name: named(r) for name, r in readings.items()}, report)


def _examples(reading: Reading) -> list[Example]:
  return list(chain.from_iterable(reading.groups))


def separate(tasks: Sequence[Task], overlap: str) -> tuple[list[Task], dict]:
  """Refuses, drops or allows examples that two splits share, be it in two tasks.

  Returns:
    The tasks, and the counts of `divide.separate`.
  """
  together = {
    name: list(chain.from_iterable(task.examples.get(name, ()) for task in tasks))
    for name in SPLITS
    if any(name in task.examples for task in tasks)
  }
  kept, report = divide.separate(together, overlap)
  known = {name: set(map(id, examples)) for name, examples in kept.items()}
  remaining = lambda task: {
    name: [example for example in examples if id(example) in known[name]]
    for name, examples in task.examples.items()
  }
  return [task._replace(examples=remaining(task)) for task in tasks], report


def encode(
  task: Task,
  tokenizer: Tokenizer,
  objective: Any,
  decoder_start: tuple[int, ...],
  vocabulary: int | None,
) -> Data:
  """Tokenises the splits of a task; the arguments are those of `load.load`."""
  options, counts, splits = task.options, {}, dict.fromkeys(SPLITS)
  encoding = options.encoding(decoder_start)

  def checked(examples: list[Example], encoding: EncodeOptions) -> tuple[Split, dict]:
    split, counts = objective.encode(tokenizer, examples, encoding)
    if vocabulary is not None and counts["kept"]:
      ids.check_split(tokenizer, split, vocabulary)
    return split, counts

  if options.stream is not None:
    held = list(chain.from_iterable(task.examples.values()))
    splits["train"] = stream.load(tokenizer, options, partial(checked, encoding=encoding), held)
  for name, reading in task.readings.items():  # train first: its labels are the others' too
    before, remaining = _examples(reading), task.examples[name]
    if before and not remaining:
      raise UserError(f"the {name} split is empty: other splits have all of its {len(before)} rows")
    splits[name], encoded = checked(remaining, encoding)
    names = encoded.get("labels", encoding.labels)
    stated = options.labels is not None and options.numbered_labels
    encoding = encoding._replace(labels=names, numbered_labels=stated)
    counts[name] = _with_lost(name, encoded, reading, before, remaining)
  report = {"splits": {name: counts[name] for name in SPLITS if name in counts}} | task.report
  return Data(**splits, report=report, labels=tuple(counts.get("train", {}).get("labels", ())))


def _read_files(
  read: Callable[[sources.Table, str, DataOptions], Reading], options: DataOptions
) -> tuple[dict[str, Reading], dict[str, str]]:
  """Reads the splits that have files of their own, and hashes the files."""
  streamed = options.stream is not None
  readings, hashes = {}, stream.hash_ends(options.train) if streamed else {}
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
    values, present = sources.texts_of(values), {str(r[column]) for r in table.rows if column in r}
    if missing := sorted(values - present):
      raise UserError(
        f"data.only: no row of {name} has {missing[0]!r} as its {column}; "
        f"{nearest(missing[0], sorted(present)[:20])}"
      )
    keeps = [sources.has(row, {column: values}) for row in table.rows]
    rows, where = (list(compress(items, keeps)) for items in (table.rows, table.where))
    table = table._replace(rows=rows, where=where)
  return table


def _divide(readings: dict[str, Reading], options: DataOptions) -> dict[str, Reading]:
  """Draws the splits that have no file of their own from train, and limits all splits."""
  readings = dict(readings)
  # Test is drawn before validation, so that it does not depend on the size of validation.
  for name in ("test", "validation"):
    size = getattr(options, name)
    if isinstance(size, (int, float)):
      if "train" not in readings:
        raise UserError(
          f"data.{name} is {size}, expected a file: nothing can be drawn from a stream"
        )
      train = readings["train"]
      remaining, drawn = divide.draw(train.heads, size, name, SPLIT_SEED)
      readings["train"] = train.keep(remaining)
      # What the file's reader skipped is counted in train, once.
      readings[name] = train.keep(drawn).by_first_template()._replace(skipped={})
  for name, reading in readings.items():
    if name == "train":  # it keeps the shares that the tasks have in the file
      kept = divide.limited(reading.heads, options.limit, SPLIT_SEED)
    else:  # it holds the rare tasks too
      kept = divide.limited(reading.heads, options.eval_limit, SPLIT_SEED, options.tasks)
    readings[name] = reading.keep(kept)
  if "train" in readings:
    readings["train"] = readings["train"].without_ties()
  return readings


def _with_lost(
  name: str, counts: dict, reading: Reading, before: Sequence[Example], after: Sequence[Example]
) -> dict:
  """Returns the counts of an encoded split with the rows that were left out before.

  Args:
    before, after: its examples with, and without, those that another split has too.
  """
  skipped = reading.skipped | counts["skipped"]
  if shared := len(before) - len(after):
    skipped["overlap"] = shared
  read = len(before) + sum(reading.skipped.values())
  if not counts["kept"]:
    reason = max(skipped, key=lambda reason: skipped[reason], default=None)
    raise UserError(
      f"the {name} split is empty: of {read} examples all were skipped ({skipped}): "
      + FIXES.get(reason, "look at the answers in its file")
    )
  return {"read": read} | counts | {"skipped": skipped}
