"""The `data` section of a config, and the options of it that encoders read."""

from __future__ import annotations

import typing
from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple

from annotated_types import Ge, Le

from jaxtune.schema import LARGEST, Count, Fraction, Natural, NonNegative, Positive, Width

Policy = Literal["error", "skip"]
Tokens = Annotated[int, Ge(2), Le(LARGEST)]


class EncodeOptions(NamedTuple):
  """The options by which encoders make arrays of examples.

  Attributes:
    max_length: the most tokens of a row; None for as many as the longest example has. Rows are
      padded to the longest example, rounded up to a multiple of 8, but never beyond max_length. For
      an encoder-decoder it holds for the inputs and for the outputs.
    too_long: what happens to an example of more tokens: "error", "skip", "truncate", or "chunk",
      which cuts plain text into windows. Each encoder says which of them it knows.
    no_target: what happens to an example without any token to train on: "error" or "skip"; or
      "keep", where nothing is trained.
    special_tokens: what happens to a text that holds the BOS or the EOS that is added to it anyway:
      "error", "strip" or "allow"; see `specials`.
    malformed: what happens to an example that contradicts itself: "error" or "skip".
    labels: the names of all classes or tags in the order of their numbers; None for those that
      occur.
    numbered_labels: whether rows may give a class by its number in `labels` where no name is a
      number: not if these are sorted names of another split, whose order no file states.
    stride: how many tokens two windows of a long context share; None for a quarter of max_length.
    chat_template: the template of conversations; see `wording.template`. Where one writes today's
      date by `strftime_now`, it gets July 26, 2024 on every day.
    turns: of conversations, train on "all" of the assistant's turns or only on the "last".
    decoder_start: the tokens that every output of an encoder-decoder begins with; () for a decoder.
  """

  max_length: int | None = None
  too_long: str = "error"
  no_target: str = "error"
  special_tokens: str = "error"
  malformed: str = "error"
  labels: Sequence[str] | None = None
  numbered_labels: bool = True
  stride: int | None = None
  chat_template: str | None = None
  turns: str = "all"
  decoder_start: tuple[int, ...] = ()


class DataOptions(NamedTuple):
  """The `data` section of a config.

  Attributes:
    train: a file, several, or a hub name; see `sources.read`.
    validation: the same; or a part of train, as a fraction below 1 or a count of rows. Of answers
      that people judged, all that have one prompt are in one split.
    test: as `validation`.
    general: plain text on other subjects (a column `text`), whose loss before and after training
      shows how much the model forgets; for language models. It is cut into windows of max_length
      tokens; without max_length, of 512, or of half the model's positions if these are fewer.
    columns: names for the columns of CSV and TSV files without a header line.
    only: {column: a value, or several}, the rows of every file that are kept.
    tasks: of a mixture, the column that names each row's task; or {name: options}, where the
      options of a task replace those here. Metrics are given for each task, and as their mean.
    template, answer, text, rename, choices: how rows become text; see `templates.choose`. Rows with
      a column `messages` or `conversations` are conversations and need none of these. For the
      objectives classify, regression, tokens and qa, `rename` says where the columns are that their
      `read_row` in `data.encode` names. With several templates, each makes an example of every
      training row, and only the first is used for evaluation.
    labels: names of all classes or tags, in the order of their numbers; None for those in train.
    numbered_labels: whether rows may give a class by its number in `labels`. `evaluate` sets it to
      False for the sorted names of a run that was given none, whose order no file states.
    chat_template, turns: of conversations; see `EncodeOptions`.
    max_length, too_long, no_target: see `EncodeOptions`.
    special_tokens: what happens if a template writes the BOS that the tokenizer adds anyway, or if
      an answer holds EOS: "error", "strip" or "allow".
    stride: how many tokens two windows of a long context share; see `encode.qa`.
    malformed: what happens to a malformed conversation, labelled row or pair of answers: "error" or
      "skip".
    overlap: what happens to examples that two splits share, of one task or of two, or prompts of
      judged answers: "error", "drop" (from train, with all wordings of their rows) or "allow". A
      stream with a validation or test split is for "drop" or "allow".
    limit: the most rows of train, chosen by hash.
    eval_limit: the most rows of validation and of test, and the most windows of general. Of the
      tasks that a column names, equally many are kept.
    mixture, temperature, cap: each task's share of the batches; see `mix.shares`.
    mixture_batches: "mixed" if a batch holds all tasks, "task" if it holds one.
    resample: of several templates, draw one for each row and epoch, and do not train on all; not
      for documents in chunks or contexts in windows.
    buckets: the most widths that batches have, by the lengths of their examples; 1 for one width.
    pack: whether to put several short examples into a row, in which they do not see each other.
    stream: for training data that is too large for the memory, the rows of a block; two blocks are
      held at a time.
  """

  train: str | Sequence[str] | None = None
  validation: str | Sequence[str] | Fraction | Count | None = None
  test: str | Sequence[str] | Fraction | Count | None = None
  general: str | Sequence[str] | None = None
  columns: Sequence[str] | None = None
  only: dict | None = None
  tasks: str | dict[str, dict] | None = None
  template: str | Sequence[str] | None = None
  answer: str | Sequence[str] | None = None
  text: str | None = None
  rename: dict[str, str | Sequence[str | Sequence[str]]] | None = None
  choices: Sequence[str] | None = None
  labels: Sequence[str] | None = None
  numbered_labels: bool = True
  chat_template: str | None = None
  turns: Literal["all", "last"] = "all"
  max_length: Tokens | None = None
  too_long: Literal["error", "skip", "truncate", "chunk"] = "error"
  stride: Natural | None = None
  no_target: Policy = "error"
  special_tokens: Literal["error", "strip", "allow"] = "error"
  malformed: Policy = "error"
  overlap: Literal["error", "drop", "allow"] = "error"
  limit: Count | None = None
  eval_limit: Count | None = None
  mixture: Literal["proportional", "capped", "equal"] | dict[str, NonNegative] = "proportional"
  temperature: Positive = 1.0
  cap: Count | None = None
  mixture_batches: Literal["mixed", "task"] = "mixed"
  resample: bool = False
  buckets: Width = 1
  pack: bool = False
  stream: Count | None = None

  def encoding(self, decoder_start: tuple[int, ...] = ()) -> EncodeOptions:
    """Returns the options that encoders read."""
    shared = [name for name in EncodeOptions._fields if name in self._fields]
    given = {name: getattr(self, name) for name in shared}
    return EncodeOptions(**given, decoder_start=decoder_start)

  def wording(self) -> dict[str, typing.Any]:
    """Returns the options that `templates.choose` reads."""
    names = ("template", "answer", "text", "rename", "choices")
    return {name: getattr(self, name) for name in names}


# Options of a mixture as a whole, which a task cannot have for itself.
OF_MIXTURE = (
  "general", "tasks", "mixture", "temperature", "cap", "mixture_batches", "overlap", "resample",
  "buckets", "pack", "stream",
)  # fmt: skip
