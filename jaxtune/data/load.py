"""From files to checked, tokenised splits: everything that is done before a run starts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxtune.data import cells, ids, mix, sources, task, templates
from jaxtune.data.batches import arrange, join, sample
from jaxtune.data.encode import text
from jaxtune.data.options import OF_MIXTURE, DataOptions, EncodeOptions, check_choices
from jaxtune.data.pack import pack
from jaxtune.data.split import Split, measures
from jaxtune.data.stream import Stream
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

  train: Split | Stream
  validation: Split | None
  test: Split | None
  report: dict
  labels: tuple[str, ...] = ()
  general: Split | None = None
  stop_tokens: tuple[int, ...] = ()


def load(
  tokenizer: Tokenizer,
  objective: Any,
  options: DataOptions,
  decoder_start: tuple[int, ...] = (),
  vocabulary: int | None = None,
) -> Data:
  """Reads, splits, checks and tokenises a data set.

  Args:
    tokenizer: a transformers tokenizer with an eos token.
    objective: a module whose `read` and `encode` are as `jaxtune.objectives` describes.
    decoder_start: of an encoder-decoder, the tokens that every output begins with; () of other
      models.
    vocabulary: tokens that the model has embeddings for, where ids are to be checked against it.

  Raises:
    UserError: whatever is wrong with the options or the data, with file and line.
  """
  _check(options, objective, decoder_start)
  read = lambda options: task.read(tokenizer, objective, options, decoder_start, vocabulary)
  if isinstance(options.tasks, Mapping):
    splits, report, labels = _read_tasks(read, options)
  else:
    splits, report, labels = read(options)
    if options.tasks is not None:
      splits = {name: _name_tasks(split, options.tasks) for name, split in splits.items()}
  if options.stream is None:
    splits["train"], packing = _arrange(splits["train"], options)
    report |= packing
  if options.general is not None:
    width = splits["train"].width
    splits["general"], report["general"] = _read_general(tokenizer, width, options)
    if vocabulary is not None:
      ids.check_split(tokenizer, splits["general"], vocabulary)
  report["tokenizer"] = _tokenizer_hash(tokenizer)
  return Data(
    splits["train"], splits.get("validation"), splits.get("test"), report, tuple(labels),
    splits.get("general"), _stop_tokens(tokenizer, report),
  )  # fmt: skip


def _check(o: DataOptions, objective: Any, decoder_start: tuple[int, ...]) -> None:
  """Raises UserError for options that contradict each other, the objective or the model."""
  check_choices(o)
  writes_text, name = not hasattr(objective, "decode"), objective.__name__.rpartition(".")[2]
  if o.stream is not None and o.tasks is not None:
    raise UserError("data.stream reads one task's rows in their order: not with data.tasks")
  if o.tasks is None and (o.mixture, o.temperature, o.cap) != ("proportional", 1.0, None):
    raise UserError("data.mixture, temperature and cap are shares of tasks: give data.tasks")
  if o.general is not None and (not writes_text or decoder_start):
    raise UserError("data.general is for language models: objective 'sft' of a decoder")
  if not writes_text and decoder_start:
    raise UserError(
      f"objective {name!r}: not for encoder-decoders, which are trained by 'sft' on prompts"
    )
  if o.stream is not None:
    used = [f"data.{key}" for key in ("pack", "resample", "limit") if getattr(o, key)]
    used += ["data.buckets"] * (o.buckets > 1) + ["an encoder-decoder"] * bool(decoder_start)
    used += [f"objective {name!r}"] * (not writes_text)
    if used:
      raise UserError(
        f"data.stream is for plain training of decoders by 'sft', not with {' and '.join(used)}"
      )


def _read_tasks(read: Callable[[DataOptions], task.Loaded], o: DataOptions) -> task.Loaded:
  """Reads every task of a mixture by itself, and joins their splits."""
  tasks = {name: read(_of_task(name, given, o)) for name, given in o.tasks.items()}
  if not tasks:
    raise UserError("data.tasks is empty: expected {name: options}")
  labels = [loaded.labels for loaded in tasks.values()]
  for name, loaded in tasks.items():
    if tuple(loaded.labels) != tuple(labels[0]):
      raise UserError(
        f"the tasks of data.tasks have different labels, {name!r} {', '.join(loaded.labels)}: set "
        "data.labels to all of them"
      )
  joined = {}
  for split in task.SPLITS:
    with_it = {name: one.splits[split] for name, one in tasks.items() if split in one.splits}
    if with_it and len(with_it) < len(tasks):
      lacking = ", ".join(name for name in tasks if name not in with_it)
      raise UserError(f"data.tasks: {lacking} has no {split} split, and other tasks have one")
    if with_it:
      joined[split] = join(with_it)
  reports = {name: loaded.report for name, loaded in tasks.items()}
  return task.Loaded(joined, {"tasks": reports, "splits": _summed(reports)}, labels[0])


def _of_task(name: str, given: Any, o: DataOptions) -> DataOptions:
  """Returns the options of one task of a mixture."""
  own = [key for key in o._fields if key not in OF_MIXTURE]
  if not isinstance(given, Mapping):
    raise UserError(f"data.tasks.{name} is {given!r}, expected options such as {{'train': FILE}}")
  for key in given:
    if key in OF_MIXTURE:
      raise UserError(f"data.tasks.{name}.{key} belongs to the mixture as a whole, not to a task")
    if key not in own:
      raise UserError(f"unknown config key data.tasks.{name}.{key}; {nearest(key, own)}")
  of_task = o._replace(tasks=None, **given)
  check_choices(of_task)
  return of_task


def _stop_tokens(tokenizer: Tokenizer, report: dict) -> tuple[int, ...]:
  """Lists what ends an answer, of every task of a mixture."""
  trained = [one["splits"].get("train", {}) for one in report.get("tasks", {"": report}).values()]
  ends = {stop for counts in trained for stop in counts.get("stop_tokens", ())}
  return tuple(dict.fromkeys((tokenizer.eos_token_id, *sorted(ends))))


def _summed(reports: dict[str, dict]) -> dict:
  """Adds the tasks' counts up, for the tables that show whole splits."""
  totals: dict[str, dict] = {}
  for report in reports.values():
    for name, counts in report["splits"].items():
      total = totals.setdefault(name, {"skipped": {}, "longest": 0})
      for key in ("read", "kept", "truncated", "tokens", "trained_tokens"):
        total[key] = total.get(key, 0) + counts[key]
      total["longest"] = max(total["longest"], counts["longest"])
      for reason, count in counts["skipped"].items():
        total["skipped"][reason] = total["skipped"].get(reason, 0) + count
  return totals


def _name_tasks(split: Split, column: str) -> Split:
  """Reads each example's task from its row."""
  tasks = []
  for row, where in zip(split.rows, split.where, strict=True):
    try:
      tasks.append(str(cells.check_class(column, row)))
    except UserError as error:
      raise UserError(f"{where}: data.tasks: {error}") from error
  examples = split.arrays.get("example", range(len(tasks)))  # a question may have several windows
  return split._replace(tasks=[tasks[at] for at in examples])


def _arrange(split: Split, o: DataOptions) -> tuple[Split, dict]:
  """Packs the training split, or lays out in which order it is drawn."""
  report, variants = {}, templates.variants(split.rows) if o.resample else None
  if o.pack:
    if o.resample or o.buckets > 1:
      raise UserError("data.pack fills rows once and for all: not with data.resample or buckets")
    split, report["packing"] = pack(split, o.max_length)
  if split.tasks is None and variants is None and o.buckets == 1:
    return split, report
  order = {key: getattr(o, key) for key in ("mixture", "temperature", "cap", "mixture_batches")}
  return arrange(split, buckets=o.buckets, variants=variants, **order), report


def _read_general(tokenizer: Tokenizer, width: int, o: DataOptions) -> tuple[Split, dict]:
  """Reads plain text, in windows as long as the training examples."""
  table = sources.read(o.general, "general")
  form = templates.choose(table.columns, where=str(o.general), text="text")
  examples = templates.render(form, table.rows, table.where)
  split, counts = text.encode(
    tokenizer,
    examples,
    EncodeOptions(o.max_length or width, too_long="chunk", special_tokens=o.special_tokens),
  )
  if o.eval_limit is not None:  # of windows: a book is one document
    split = sample(split, o.eval_limit)
  return split, counts | {"kept": split.examples, "files": table.hashes} | measures(split)


def check_order(split: Split, steps: int, batch_size: int) -> None:
  """Raises UserError where a task of a mixture would get no example in a run."""
  if getattr(split, "order", ()):
    mix.check(split.order, steps, batch_size)


def _tokenizer_hash(tokenizer: Tokenizer) -> str | None:
  """Hashes a fast tokenizer whole; None for the slow ones, which have no single description."""
  backend = getattr(tokenizer, "backend_tokenizer", None)
  return backend and hashlib.sha256(backend.to_str().encode()).hexdigest()
