"""Loads a data set: from files to checked, tokenised splits, before a run starts."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from typing import Any

from jaxtune import schema
from jaxtune.data import cells, ids, sources, task, templates
from jaxtune.data.batches import arrange, join, sample
from jaxtune.data.encode import text
from jaxtune.data.options import OF_MIXTURE, DataOptions, EncodeOptions
from jaxtune.data.pack import pack
from jaxtune.data.split import SPLITS, Split, measures
from jaxtune.data.task import Data
from jaxtune.data.tokenizer import Tokenizer
from jaxtune.errors import UserError, nearest

WINDOW = 512  # the most tokens of a window of general text, where max_length does not say it


def load(
  tokenizer: Tokenizer,
  objective: Any,
  options: DataOptions,
  decoder_start: tuple[int, ...] = (),
  vocabulary: int | None = None,
  positions: int | None = None,
) -> Data:
  """Reads, splits, checks and tokenises a data set.

  Args:
    tokenizer: a transformers tokenizer with an eos token.
    objective: a module whose `read` and `encode` are as `jaxtune.objectives` describes.
    decoder_start: the tokens that every output of an encoder-decoder begins with; () for a decoder.
    vocabulary: how many tokens the model has embeddings for; None to leave ids unchecked.
    positions: the longest sequence that the model has positions for; None for any.

  Raises:
    UserError: for any mistake in the options or the data, with file and line.
  """
  _check(options, objective, decoder_start)
  named = options.tasks if isinstance(options.tasks, Mapping) else {"": None}
  each = [options if o is None else _of_task(name, o, options) for name, o in named.items()]
  if options.resample and any(one.too_long == "chunk" for one in each):
    raise UserError("data.resample draws one text for each row: not with too_long='chunk'")
  found, overlap = task.separate([task.read(objective, one) for one in each], options.overlap)
  encoded = [task.encode(one, tokenizer, objective, decoder_start, vocabulary) for one in found]
  if isinstance(options.tasks, Mapping):
    dataset = _join(dict(zip(named, encoded, strict=True)))
  else:
    (dataset,) = encoded
    if options.tasks is not None:
      with_tasks = {name: _name_tasks(s, options.tasks) for name, s in dataset.splits.items()}
      dataset = dataset._replace(**with_tasks)
  report = dataset.report | {"overlap": overlap}
  if options.stream is None:
    train, packing = _arrange(dataset.train, options)
    dataset, report = dataset._replace(train=train), report | packing
  if options.general is not None:
    general, report["general"] = _read_general(tokenizer, positions, options)
    dataset = dataset._replace(general=general)
    if vocabulary is not None:
      ids.check_split(tokenizer, general, vocabulary)
  # A slow tokenizer has no single description to hash.
  backend = getattr(tokenizer, "backend_tokenizer", None)
  report["tokenizer"] = backend and hashlib.sha256(backend.to_str().encode()).hexdigest()
  return dataset._replace(report=report, stop_tokens=_stop_tokens(tokenizer, report))


def _check(o: DataOptions, objective: Any, decoder_start: tuple[int, ...]) -> None:
  """Raises UserError for options out of range, or that contradict others, objective or model."""
  schema.check_arguments(DataOptions, o._asdict(), "data.")
  if o.tasks == {}:
    raise UserError("data.tasks is empty: expected {name: options}")
  if isinstance(o.tasks, Mapping):
    _check_task(*o.tasks)
  writes_text, name = not hasattr(objective, "decode"), objective.__name__.rpartition(".")[2]
  if o.tasks is None and (o.mixture, o.temperature, o.cap) != ("proportional", 1.0, None):
    raise UserError("data.mixture, temperature and cap are shares of tasks: give data.tasks")
  if o.general is not None and (name != "sft" or decoder_start):
    raise UserError("data.general is for language models: objective 'sft' of a decoder")
  if not writes_text and decoder_start:
    raise UserError(
      f"objective {name!r}: not for encoder-decoders, which are trained by 'sft' on prompts"
    )
  if o.stream is not None:
    if o.overlap == "error" and any(
      isinstance(getattr(o, name), str | tuple | list) for name in SPLITS[1:]
    ):
      raise UserError(
        "data.overlap is 'error', and a stream cannot be compared before it is read: expected "
        "'drop', by which what validation or test have too is not trained on, or 'allow'"
      )
    used = [f"data.{key}" for key in ("tasks", "pack", "resample", "limit") if getattr(o, key)]
    used += ["data.buckets"] * (o.buckets > 1) + ["an encoder-decoder"] * bool(decoder_start)
    used += [f"objective {name!r}"] * (name != "sft")
    if used:
      raise UserError(
        f"data.stream is for plain training of decoders by 'sft', not with {' and '.join(used)}"
      )


def _join(tasks: dict[str, Data]) -> Data:
  """Joins the splits of a mixture's tasks."""
  first, *others = tasks
  labels = tasks[first].labels
  for name in others:
    if tasks[name].labels != labels:
      raise UserError(
        "the tasks of data.tasks have different labels, "
        f"{name!r} {', '.join(tasks[name].labels)}: set data.labels to all of them"
      )
  joined = dict.fromkeys(SPLITS)
  for split in SPLITS:
    parts = {name: one.splits[split] for name, one in tasks.items() if split in one.splits}
    if parts and len(parts) < len(tasks):
      lacking = ", ".join(name for name in tasks if name not in parts)
      raise UserError(f"data.tasks: {lacking} has no {split} split, and other tasks have one")
    if parts:
      joined[split] = join(parts)
  reports = {name: one.report for name, one in tasks.items()}
  return Data(**joined, report={"tasks": reports, "splits": _summed(reports)}, labels=labels)


def _of_task(name: str, given: dict, o: DataOptions) -> DataOptions:
  """Returns the options of one task of a mixture."""
  known = [key for key in o._fields if key not in OF_MIXTURE]
  for key in given:
    if key in OF_MIXTURE:
      raise UserError(f"data.tasks.{name}.{key} belongs to the mixture as a whole, not to a task")
    if key not in known:
      raise UserError(f"unknown config key data.tasks.{name}.{key}; {nearest(key, known)}")
  schema.check_arguments(DataOptions, given, f"data.tasks.{name}.")
  return o._replace(tasks=None, **given)


def _stop_tokens(tokenizer: Tokenizer, report: dict) -> tuple[int, ...]:
  """Lists the ids that end an answer: eos first, then those of the chat templates of all tasks."""
  trained = [one["splits"].get("train", {}) for one in report.get("tasks", {"": report}).values()]
  ends = {stop for counts in trained for stop in counts.get("stop_tokens", ())}
  eos = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]  # BERT's has none
  return tuple(dict.fromkeys((*eos, *sorted(ends))))


def _summed(reports: dict[str, dict]) -> dict:
  """Returns the counts of whole splits, the sums of those of the tasks."""
  totals = {}
  for name in SPLITS:
    counts = [one["splits"][name] for one in reports.values() if name in one["splits"]]
    if counts:
      keys = ("read", "kept", "truncated", "tokens", "trained_tokens")
      by_name = ("skipped", "special_tokens")
      totals[name] = {key: sum(one[key] for one in counts) for key in keys} | {
        "longest": max(one["longest"] for one in counts),
        **{key: dict(sum((Counter(one.get(key)) for one in counts), Counter())) for key in by_name},
      }
  return totals


def _name_tasks(split: Split, column: str) -> Split:
  """Returns a split with each example's task, which a column names."""
  tasks = []
  for row, where in zip(split.rows, split.where, strict=True):
    try:
      tasks.append(str(cells.check_class(column, row)))
      _check_task(tasks[-1])
    except UserError as error:
      raise UserError(f"{where}: data.tasks: {error}") from error
  examples = split.arrays.get("example", range(len(tasks)))  # a question may have several windows
  return split._replace(tasks=[tasks[at] for at in examples])


def _check_task(*names: str) -> None:
  if "mean" in names:
    raise UserError("a task is called 'mean', expected another name: it names the mean over tasks")


def _arrange(split: Split, o: DataOptions) -> tuple[Split, dict]:
  """Packs the training split if it is to be, and arranges the order in which it is drawn.

  Returns:
    The split, and {"packing": the report of `pack`} if it is packed, else {}.
  """
  if o.resample and len(split.rows) != split.examples:
    raise UserError(
      "data.resample draws one text for each row: not with contexts that are cut into windows"
    )
  report, variants = {}, templates.variants(split.rows) if o.resample else None
  if o.pack:
    if o.resample or o.buckets > 1:
      raise UserError("data.pack fills rows once and for all: not with data.resample or buckets")
    split, report["packing"] = pack(split, o.max_length)
  if split.tasks is None and variants is None and o.buckets == 1:
    return split, report
  order = {key: getattr(o, key) for key in ("mixture", "temperature", "cap", "mixture_batches")}
  return arrange(split, buckets=o.buckets, variants=variants, **order), report


def _read_general(
  tokenizer: Tokenizer, positions: int | None, o: DataOptions
) -> tuple[Split, dict]:
  """Reads the general text, in windows that the training data do not change: the split, its report.

  Half of the positions are left for the virtual tokens of methods.
  """
  window = o.max_length or min(WINDOW, (positions or 2 * WINDOW) // 2)
  table = sources.read(o.general, "general")
  form = templates.choose(table.columns, where=str(o.general), text="text")
  examples = templates.render(form, table.rows, table.where)
  shared = {"no_target": o.no_target, "special_tokens": o.special_tokens}
  split, counts = text.encode(
    tokenizer, examples, EncodeOptions(window, too_long="chunk", **shared)
  )
  if o.eval_limit is not None:  # it counts windows, as one document may be a whole book
    split = sample(split, o.eval_limit)
  return split, counts | {"kept": split.examples, "files": table.hashes} | measures(split)
