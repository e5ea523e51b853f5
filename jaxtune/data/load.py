"""From files to checked, tokenised splits: everything that is done before a run starts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Literal, NamedTuple

from annotated_types import Ge, Le

from jaxtune.data import (
  cells,
  chat,
  conversations,
  ids,
  mix,
  sources,
  specials,
  splits,
  task,
  templates,
)
from jaxtune.data.batches import arrange, join, sample
from jaxtune.data.pack import pack as pack_rows
from jaxtune.data.stream import Stream
from jaxtune.data.tokenize import NO_TARGET, TOO_LONG, Split, measures, tokenize
from jaxtune.errors import UserError, nearest
from jaxtune.schema import LARGEST, Count, Fraction, Natural, NonNegative, Positive, Seed, Width

# Options of a mixture as a whole, which a task cannot have for itself.
WHOLE = (
  "general", "tasks", "mixture", "temperature", "cap", "mixture_batches", "resample", "buckets",
  "pack", "stream", "seed",
)  # fmt: skip


class Data(NamedTuple):
  """The splits of one data set, and the record of how they came about.

  Attributes:
    report: counts and hashes by split, overlap, files, format and tokenizer.
    labels: names of the classes or tags, in the order of their numbers.
    general: plain text of other matters, to see what a model forgets.
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
  tokenizer,
  *,
  objective: str = "sft",
  start: tuple[int, ...] = (),
  vocabulary: int | None = None,
  train: str | Sequence[str] | None = None,
  validation: str | Sequence[str] | Fraction | Count | None = None,
  test: str | Sequence[str] | Fraction | Count | None = None,
  general: str | Sequence[str] | None = None,
  columns: Sequence[str] | None = None,
  only: dict | None = None,
  tasks: str | dict[str, dict] | None = None,
  template: str | Sequence[str] | None = None,
  answer: str | Sequence[str] | None = None,
  text: str | None = None,
  rename: dict[str, str | tuple[str, ...]] | None = None,
  choices: Sequence[str] | None = None,
  labels: Sequence[str] | None = None,
  chat_template: str | None = None,
  turns: Literal[*chat.TURNS] = "all",
  max_length: Annotated[int, Ge(2), Le(LARGEST)] | None = None,
  too_long: Literal[*TOO_LONG] = "error",
  stride: Natural | None = None,
  no_target: Literal[*NO_TARGET] = "error",
  special_tokens: Literal[*specials.POLICIES] = "error",
  malformed: Literal[*conversations.MALFORMED] = "error",
  overlap: Literal[*splits.OVERLAP] = "error",
  limit: Count | None = None,
  eval_limit: Count | None = None,
  mixture: Literal[*mix.MIXTURES] | dict[str, NonNegative] = "proportional",
  temperature: Positive = 1.0,
  cap: Count | None = None,
  mixture_batches: Literal[*mix.BATCHES] = "mixed",
  resample: bool = False,
  buckets: Width = 1,
  pack: bool = False,
  stream: Count | None = None,
  seed: Seed = 0,
) -> Data:
  """Reads, splits, checks and tokenises a data set.

  Args:
    tokenizer: a transformers tokenizer with an eos token.
    objective: what the examples are for; see `jaxtune.objectives`.
    start: of an encoder-decoder, the tokens that every output begins with; () of other models.
    vocabulary: tokens that the model has embeddings for, where ids are to be checked against it.
    train: a file, several, or a hub name; see `sources.read`.
    validation: the same; or a part of train, as a fraction below 1 or a count of rows.
    test: as `validation`.
    general: plain text of other matters (a column `text`), on which the loss before and after
      training shows what is forgotten; for language models.
    columns: names for the columns of CSV and TSV files without a header line.
    only: {column: a value, or several}: the rows to keep, of every file.
    tasks: of a mixture, the column that names each row's task; or {name: options}, where each
      task's options take the place of these here. Metrics are given for each task and their mean.
    template, answer, text, rename, choices: how rows become text; see `templates.choose`. Rows with
      a column `messages` or `conversations` are conversations without any of it. For the objectives
      classify, regression, tokens and qa, `rename` says where the columns of `labelled.read` are.
      Of several templates each makes an example of every training row, and the first is judged.
    labels: names of all classes or tags, in the order of their numbers; None: those in train.
    chat_template, turns: of conversations; see `chat.tokenize`.
    max_length, too_long, no_target: see `tokenize.tokenize`; of encoder-decoders for either side.
    special_tokens: "error", "strip" or "allow", for a template that writes the BOS that the
      tokenizer puts anyway, and for an answer that holds EOS.
    stride: tokens that two windows of a long context share; see `labelled.qa`.
    malformed: "error" or "skip", for a malformed conversation or labelled row.
    overlap: what to do with examples that two splits share: "error", "drop" (from the training
      side) or "allow".
    limit: at most so many rows of train, chosen by hash.
    eval_limit: at most so many rows of validation and of test, and windows of general; of every
      task of a file's mixture equally many.
    mixture, temperature, cap: each task's share of the batches; see `mix.shares`.
    mixture_batches: whether a batch is "mixed", or holds one "task" alone.
    resample: of several templates, draw one for each row and epoch instead of training on all.
    buckets: widths that batches may have, by the lengths of their examples; 1 for one width.
    pack: put several short examples into a row, which do not see each other.
    stream: rows to hold in memory at a time, for training data that is too large for it.
    seed: draws the splits and the limited rows, not the order of batches.

  Raises:
    UserError: whatever is wrong with the options or the data, with file and line.
  """
  given = dict(locals())
  for name in ("tokenizer", "objective", "start", "vocabulary"):  # of the model, not of the data
    del given[name]
  if stream is not None and tasks is not None:
    raise UserError("data.stream reads one task's rows in their order: not with data.tasks")
  if tasks is None and (mixture, temperature, cap) != ("proportional", 1.0, None):
    raise UserError("data.mixture, temperature and cap are shares of tasks: give data.tasks")
  read = lambda options: task.read(tokenizer, objective, start, vocabulary, options)
  if isinstance(tasks, Mapping):
    found, report, names = _read_tasks(read, given)
  else:
    found, report, names = read(given)
    if tasks is not None:
      found = {name: _named(split, tasks) for name, split in found.items()}
  if stream is None:
    found["train"], packed = _arranged(found["train"], given)
    report |= packed
  if general is not None:
    if objective != "sft" or start:
      raise UserError("data.general is for language models: objective 'sft' of a decoder")
    found["general"], report["general"] = _read_general(tokenizer, found["train"].width, given)
    if vocabulary is not None:
      ids.check_split(tokenizer, found["general"], vocabulary)
  report["tokenizer"] = _tokenizer_hash(tokenizer)
  return Data(
    found["train"], found.get("validation"), found.get("test"), report, tuple(names),
    found.get("general"), _stop_tokens(tokenizer, report),
  )  # fmt: skip


def _read_tasks(read: Callable, given: dict) -> tuple[dict[str, Split], dict, Sequence[str]]:
  """Reads every task of a mixture by itself, and joins their splits."""
  each, reports, names = {}, {}, ()
  for one, options in given["tasks"].items():
    own = [key for key in given if key not in WHOLE]
    if not isinstance(options, Mapping):
      raise UserError(
        f"data.tasks.{one} is {options!r}, expected options such as {{'train': FILE}}"
      )
    for key in options:
      if key not in own:
        where = "of the mixture as a whole, not of a task" if key in WHOLE else "no option of data"
        raise UserError(f"data.tasks.{one}.{key} is {where}. {nearest(key, own)}")
    each[one], reports[one], found = read(given | {"tasks": None} | options)
    if names and tuple(found) != tuple(names):
      raise UserError(
        f"the tasks of data.tasks have different labels, {one!r} {', '.join(found)}: set "
        "data.labels to all of them"
      )
    names = found
  joined = {}
  for name in ("train", "validation", "test"):
    have = {one: parts[name] for one, parts in each.items() if name in parts}
    if have and len(have) < len(each):
      lacking = ", ".join(one for one in each if one not in have)
      raise UserError(f"data.tasks: {lacking} has no {name} split, and other tasks have one")
    if have:
      joined[name] = join(have)
  if "train" not in joined:
    raise UserError("data.tasks is empty: expected {name: options}")
  return joined, {"tasks": reports, "splits": _summed(reports)}, names


def _stop_tokens(tokenizer, report: dict) -> tuple[int, ...]:
  """Lists what ends an answer, of every task of a mixture."""
  trained = [one["splits"].get("train", {}) for one in report.get("tasks", {"": report}).values()]
  ends = {stop for counts in trained for stop in counts.get("stop_tokens", ())}
  return tuple(dict.fromkeys((tokenizer.eos_token_id, *sorted(ends))))


def _summed(reports: dict[str, dict]) -> dict:
  """Adds the tasks' counts up, for the tables that show whole splits."""
  found: dict[str, dict] = {}
  for report in reports.values():
    for name, counts in report["splits"].items():
      total = found.setdefault(name, {"skipped": {}, "longest": 0})
      for key in ("read", "kept", "truncated", "tokens", "trained_tokens"):
        total[key] = total.get(key, 0) + counts[key]
      total["longest"] = max(total["longest"], counts["longest"])
      for reason, count in counts["skipped"].items():
        total["skipped"][reason] = total["skipped"].get(reason, 0) + count
  return found


def _named(split: Split, column: str) -> Split:
  """Reads each example's task from its row."""
  tasks = []
  for row, where in zip(split.rows, split.where, strict=True):
    try:
      tasks.append(str(cells.check_class(column, row)))
    except UserError as error:
      raise UserError(f"{where}: data.tasks: {error}") from error
  examples = split.arrays.get("example", range(len(tasks)))  # a question may have several windows
  return split._replace(tasks=[tasks[at] for at in examples])


def _arranged(split: Split, o: dict) -> tuple[Split, dict]:
  """Packs the training split, or lays out in which order it is drawn."""
  report, variants = {}, None
  if o["resample"]:
    variants = templates.variants(split.rows)
  if o["pack"]:
    if o["resample"] or o["buckets"] > 1:
      raise UserError("data.pack fills rows once and for all: not with data.resample or buckets")
    split, report["packing"] = pack_rows(split, o["max_length"])
  if split.tasks is None and variants is None and o["buckets"] == 1:
    return split, report
  order = {name: o[name] for name in ("mixture", "temperature", "cap", "mixture_batches")}
  return arrange(split, buckets=o["buckets"], variants=variants, **order), report


def _read_general(tokenizer, width: int, o: dict) -> tuple[Split, dict]:
  """Reads plain text, in windows as long as the training examples."""
  table = sources.read(o["general"], "general")
  names = list(dict.fromkeys(column for row in table.rows for column in row))
  form = templates.choose(names, where=str(o["general"]), text="text")
  examples = templates.render(form, table.rows, table.where)
  length = o["max_length"] or width
  more = {"too_long": "chunk", "special_tokens": o["special_tokens"]}
  split, counts = tokenize(tokenizer, examples, max_length=length, **more)
  if o["eval_limit"] is not None:  # of windows: a book is one document
    split = sample(split, o["eval_limit"])
  return split, counts | {"kept": split.examples, "files": table.hashes} | measures(split)


def check_order(split: Split, steps: int, batch_size: int) -> None:
  """Raises UserError where a task of a mixture would get no example in a run."""
  if getattr(split, "order", ()):
    mix.check(split.order, steps, batch_size)


def _tokenizer_hash(tokenizer) -> str | None:
  """Hashes a fast tokenizer whole; None for the slow ones, which have no single description."""
  backend = getattr(tokenizer, "backend_tokenizer", None)
  return backend and hashlib.sha256(backend.to_str().encode()).hexdigest()
