"""The `data` section of a config, and the part of it that encoders read."""

from __future__ import annotations

import typing
from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple

from annotated_types import Ge, Le

from jaxtune import schema
from jaxtune.data.mix import BATCHES, MIXTURES
from jaxtune.schema import LARGEST, Count, Fraction, Natural, NonNegative, Positive, Seed, Width

Policy = Literal["error", "skip"]
Tokens = Annotated[int, Ge(2), Le(LARGEST)]


class EncodeOptions(NamedTuple):
  """What encoders read: how examples become arrays.

  Attributes:
    max_length: the most tokens of a row; None: as many as the longest example has. Rows are padded
      to the longest example, rounded up to a multiple of 8, but never beyond max_length. For an
      encoder-decoder it holds for the inputs and for the outputs.
    too_long: what happens to an example of more tokens: "error", "skip", "truncate", or "chunk",
      which cuts plain text into windows. Each encoder says which of them it knows.
    no_target: "error" or "skip", for an example without any token to train on.
    special_tokens: "error", "strip" or "allow", for a text that holds the BOS or the EOS that is
      added to it anyway; see `specials`.
    malformed: "error" or "skip", for an example that contradicts itself.
    labels: names of all classes or tags in the order of their numbers; None: those that occur.
    stride: tokens that two windows of a long context share; None: a quarter of max_length.
    chat_template: of conversations; see `wording.template`.
    turns: of conversations, train on "all" of the assistant's turns or on the "last" alone.
    decoder_start: of an encoder-decoder, the tokens that every output begins with; else ().
  """

  max_length: int | None = None
  too_long: str = "error"
  no_target: str = "error"
  special_tokens: str = "error"
  malformed: str = "error"
  labels: Sequence[str] | None = None
  stride: int | None = None
  chat_template: str | None = None
  turns: str = "all"
  decoder_start: tuple[int, ...] = ()


class DataOptions(NamedTuple):
  """The `data` section of a config.

  Attributes:
    train: a file, several, or a hub name; see `sources.read`.
    validation: the same; or a part of train, as a fraction below 1 or a count of rows.
    test: as `validation`.
    general: plain text on other subjects (a column `text`), on which the loss before and after
      training shows what is forgotten; for language models.
    columns: names for the columns of CSV and TSV files without a header line.
    only: {column: a value, or several}: the rows to keep, of every file.
    tasks: of a mixture, the column that names each row's task; or {name: options}, where each
      task's options take the place of these here. Metrics are given for each task and their mean.
    template, answer, text, rename, choices: how rows become text; see `templates.choose`. Rows with
      a column `messages` or `conversations` are conversations without any of it. For the objectives
      classify, regression, tokens and qa, `rename` says where the columns are that their `read_row`
      in `data.encode` names. With several templates each makes an example of every training row,
      and only the first is used for evaluation.
    labels: names of all classes or tags, in the order of their numbers; None: those in train.
    chat_template, turns: of conversations; see `EncodeOptions`.
    max_length, too_long, no_target: see `EncodeOptions`.
    special_tokens: "error", "strip" or "allow", for a template that writes the BOS that the
      tokenizer adds anyway, and for an answer that holds EOS.
    stride: tokens that two windows of a long context share; see `encode.qa`.
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
  mixture: Literal[*MIXTURES] | dict[str, NonNegative] = "proportional"
  temperature: Positive = 1.0
  cap: Count | None = None
  mixture_batches: Literal[*BATCHES] = "mixed"
  resample: bool = False
  buckets: Width = 1
  pack: bool = False
  stream: Count | None = None
  seed: Seed = 0

  def encoding(self, decoder_start: tuple[int, ...] = ()) -> EncodeOptions:
    """Picks what encoders read."""
    shared = [name for name in EncodeOptions._fields if name in self._fields]
    given = {name: getattr(self, name) for name in shared}
    return EncodeOptions(**given, decoder_start=decoder_start)

  def wording(self) -> dict[str, typing.Any]:
    """Picks what `templates.choose` reads."""
    names = ("template", "answer", "text", "rename", "choices")
    return {name: getattr(self, name) for name in names}


# Options of a mixture as a whole, which a task cannot have for itself.
OF_MIXTURE = (
  "general", "tasks", "mixture", "temperature", "cap", "mixture_batches", "resample", "buckets",
  "pack", "stream", "seed",
)  # fmt: skip


def check_choices(options: DataOptions) -> None:
  """Raises UserError for an option that is none of its choices, and names the nearest."""
  for name, expected in typing.get_type_hints(DataOptions).items():
    if typing.get_origin(expected) is Literal:
      schema.check(f"data.{name}", getattr(options, name), expected)
