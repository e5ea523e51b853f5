"""Words with a tag each (named entities, parts of speech), aligned with the tokens of their text.

The words are joined by spaces and tokenised like any text; the characters of a token say which word
it belongs to. So the tokens are those that the model was pretrained on, also for a byte-level
tokenizer, which would glue words together if it got them one by one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial

import numpy as np

from jaxtune import schema
from jaxtune.data import cells, labels, padding
from jaxtune.data.encode.shared import Row, fit, to_split
from jaxtune.data.options import EncodeOptions
from jaxtune.data.split import Split, counts
from jaxtune.data.templates import Example
from jaxtune.data.tokenizer import Tokenizer
from jaxtune.errors import UserError

OUTSIDE = "O"


def read_row(
  row: dict, words: str = "tokens", tags: str = "ner_tags"
) -> tuple[dict, str, list[str]]:
  """Reads two lists of one length: the words, and the name or number of each one's tag."""
  for name, expected in ((words, tuple[str, ...]), (tags, tuple[str | int, ...])):
    schema.check(f"column {name!r}", cells.check_column(name, row), expected)
  if not row[words]:
    raise UserError(f"column {words!r} has no words")
  if len(row[words]) != len(row[tags]):
    raise UserError(
      f"{len(row[words])} words in {words!r} and {len(row[tags])} tags in {tags!r}: expected one "
      "tag a word"
    )
  fields = {"words": list(row[words]), "tags": list(row[tags])}
  return fields, " ".join(row[words]), [" ".join(map(labels.written, row[tags]))]


def encode(
  tokenizer: Tokenizer, examples: Sequence[Example], options: EncodeOptions
) -> tuple[Split, dict]:
  """Encodes tagged words: labels (X, T) int32, which count where weights (X, T) are 1.

  Weights are 1 at the first subword of each word. `words` (X, T) int32 is the number of that word,
  from 1, and 0 at all other tokens; `word_tags` reads it.

  Args:
    options: too_long can be "skip" or "truncate", which cuts words off the end; malformed is for a
      tag that is not in the set or words without any token.

  Returns:
    The split, whose references are the tags of all words, also of those cut off; and counts with
    "labels" (names in order), "classes" (words by tag), "words", "cut_words" and "silent_words"
    (those of which the tokenizer leaves no token).

  Raises:
    UserError: with file and line; or for a tokenizer that cannot say where its tokens stand.
  """
  if not tokenizer.is_fast:
    raise UserError(
      "tagging words needs a fast tokenizer: this one does not say where tokens stand"
    )
  names = labels.names((tag for example in examples for tag in example.row["tags"]), options.labels)
  index = lambda tag: labels.index(tag, names, options.numbered_labels)
  numbers = lambda example: [*map(index, example.row["tags"])]
  pairs, unknown = labels.checked(examples, numbers, options.malformed)
  special = tokenizer.num_special_tokens_to_add()
  tagged = [example for example, _ in pairs]
  rows, unfit, truncated = fit(tagged, partial(_tokenise, tokenizer), special, options)
  kept = [pairs[at] for at in rows]
  arrays = padding.pad_tokens(tokenizer, [row.ids for row in rows.values()], options.max_length)
  words_XT = padding.pad([row.marks for row in rows.values()], arrays["tokens"].shape[1])
  labels_XT = np.zeros_like(words_XT)
  for labels_T, words_T, (_, tags) in zip(labels_XT, words_XT, kept, strict=True):
    labels_T[words_T > 0] = np.array(tags)[words_T[words_T > 0] - 1]
  weights_XT = (words_XT > 0).astype(np.float32)
  split = to_split(
    arrays | {"weights": weights_XT, "labels": labels_XT, "words": words_XT},
    [example for example, _ in kept],
    references=[[names[tag] for tag in tags] for _, tags in kept],
  )
  classes = Counter(tag for references in split.references for tag in references)
  seen = sum(row.seen for row in rows.values())
  return split, counts(
    split, {"label": unknown} | unfit, truncated,
    labels=names,
    classes={name: classes[name] for name in names},
    words=classes.total(),
    cut_words=seen - int(weights_XT.sum()),
    silent_words=classes.total() - seen,
  )  # fmt: skip


def word_tags(split: Split, labels_XT: np.ndarray, names: Sequence[str]) -> list[list[str]]:
  """Returns for every word the tag of its first subword, and "O" if that was cut off.

  Returns:
    As many tags for each example as its references have.
  """
  tags = [[OUTSIDE] * len(true) for true in split.references]
  words_XT = split.arrays["words"]
  for row, token in zip(*np.nonzero(words_XT), strict=True):
    tags[row][words_XT[row, token] - 1] = names[labels_XT[row, token]]
  return tags


def _tokenise(
  tokenizer: Tokenizer, examples: Sequence[Example], max_length: int | None
) -> list[Row]:
  """Tokenises texts, cut at max_length; the marks of the rows are `_words`."""
  texts = [" ".join(example.row["words"]) for example in examples]
  cut = {} if max_length is None else {"truncation": True, "max_length": max_length}
  out = tokenizer(texts, return_offsets_mapping=True, verbose=False, **cut)
  rows = []
  for example, ids, spans in zip(examples, out["input_ids"], out["offset_mapping"], strict=True):
    words = _words(example.row["words"], spans)
    rows.append(Row(ids, int(np.count_nonzero(words)), words))
  return rows


def _words(words: Sequence[str], spans: Sequence[tuple[int, int]]) -> list[int]:
  """Returns for each token the number, from 1, of the word that it is the first of; 0 for none.

  A token belongs to the first word that it has characters of.
  """
  starts = np.cumsum([0, *(len(word) + 1 for word in words[:-1])])
  ends = starts + [len(word) for word in words]
  firsts, last = [], 0
  for start, end in spans:
    word = int(np.searchsorted(ends, start, side="right"))
    here = word < len(words) and max(start, starts[word]) < min(end, ends[word])
    firsts.append(word + 1 if here and word >= last else 0)
    last = max(last, firsts[-1])
  return firsts
