"""Words with a tag each (named entities, parts of speech), aligned with the tokens of their text.

The words are joined by spaces and tokenised as any text is; characters say which token is whose. So
the tokens are such as the model was pretrained on, also where the tokenizer is byte-level and would
glue words together that are given to it one by one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxtune.data import cells, labels, padding
from jaxtune.data.options import EncodeOptions
from jaxtune.data.split import Split, counts
from jaxtune.data.templates import Example
from jaxtune.data.tokenizer import Tokenizer
from jaxtune.errors import UserError

OUTSIDE = "O"


class _Item(NamedTuple):
  example: Example
  tags: list[int]
  ids: list[int]
  words: list[int]  # for each token of `ids` the word that it is the first of, from 1; 0 for none
  cut_words: int


def read_row(
  row: dict, words: str = "tokens", tags: str = "ner_tags"
) -> tuple[dict, str, list[str]]:
  """Reads two lists of one length: the words, and the name or number of each one's tag."""
  for name in (words, tags):
    if not isinstance(cells.check_column(name, row), (list, tuple)):
      raise UserError(f"column {name!r} holds {type(row[name]).__name__}, expected a list")
  if not row[words]:
    raise UserError(f"column {words!r} has no words")
  if len(row[words]) != len(row[tags]):
    raise UserError(
      f"{len(row[words])} words in {words!r} and {len(row[tags])} tags in {tags!r}: expected one "
      "tag a word"
    )
  for number, (word, tag) in enumerate(zip(row[words], row[tags], strict=True), 1):
    if not isinstance(word, str):
      raise UserError(f"word {number} is {word!r}, expected text")
    if isinstance(tag, bool) or not isinstance(tag, (str, int)):
      raise UserError(f"tag {number} is {tag!r}, expected a label's name or number")
  fields = {"words": list(row[words]), "tags": list(row[tags])}
  return fields, " ".join(row[words]), [" ".join(map(str, row[tags]))]


def encode(
  tokenizer: Tokenizer, examples: Sequence[Example], options: EncodeOptions
) -> tuple[Split, dict]:
  """Encodes tagged words: labels (N, T) int32, where weights (N, T) are 1: at first subwords.

  `words` (N, T) int32 numbers, from 1, the word that a token is the first of, 0 for none: for
  `word_tags`.

  Args:
    options: too_long can be "skip" or "truncate", which cuts words off the end; malformed is for a
      tag that is not in the set or words without any token.

  Returns:
    The split, whose references are the tags of all words, also of those cut off; and counts with
    "labels" (names in order), "classes" (words by tag), "words", "cut_words" and "silent_words" (of
    which the tokenizer leaves no token).

  Raises:
    UserError: with file and line; a tokenizer that cannot say where its tokens stand.
  """
  if not tokenizer.is_fast:
    raise UserError(
      "tagging words needs a fast tokenizer: this one does not say where tokens stand"
    )
  names = labels.names((tag for one in examples for tag in one.row["tags"]), options.labels)
  numbers = lambda example: [labels.index(tag, names) for tag in example.row["tags"]]
  pairs, unknown = labels.checked(examples, numbers, options.malformed)
  tagged = [example for example, _ in pairs]
  ids, words = _tokenise(tokenizer, tagged, None)
  seen = list(map(_count, words))
  where = [example.where for example in tagged]
  long = padding.find_too_long([len(row) for row in ids], where, options)
  cut = options.too_long == "truncate"
  if long and cut:
    shortened = _tokenise(tokenizer, [tagged[at] for at in long], options.max_length)
    for at, short_ids, short_words in zip(long, *shortened, strict=True):
      ids[at], words[at] = short_ids, short_words
  silent = [at for at, count in enumerate(seen) if not count]
  if silent and options.malformed == "error":
    raise UserError(f"{where[silent[0]]}: the tokenizer leaves no token of the words")
  out = {*silent} | (set() if cut else {*long})
  items = [
    _Item(*pairs[at], ids[at], words[at], seen[at] - _count(words[at]))
    for at in range(len(pairs)) if at not in out
  ]  # fmt: skip
  skipped = {"label": unknown, "too_long": len(long) * (not cut), "no_token": len(silent)}
  split = _to_split(tokenizer, items, names, options.max_length)
  return split, counts(split, skipped, len(long) * cut, **_count_words(items, names))


def _count_words(items: Sequence[_Item], names: list[str]) -> dict:
  tags = Counter(tag for item in items for tag in item.tags)
  cut = sum(item.cut_words for item in items)
  return {
    "labels": names,
    "classes": {name: tags[at] for at, name in enumerate(names)},
    "words": tags.total(),
    "cut_words": cut,
    "silent_words": tags.total() - cut - sum(_count(item.words) for item in items),
  }


def word_tags(split: Split, labels_NT: np.ndarray, names: Sequence[str]) -> list[list[str]]:
  """Gives every word the tag of its first subword, and "O" where that was cut off.

  Returns:
    As many tags for each example as its references have.
  """
  tags = [[OUTSIDE] * len(true) for true in split.references]
  words_NT = split.arrays["words"]
  for row, token in zip(*np.nonzero(words_NT), strict=True):
    tags[row][words_NT[row, token] - 1] = names[labels_NT[row, token]]
  return tags


def _tokenise(
  tokenizer: Tokenizer, examples: Sequence[Example], max_length: int | None
) -> tuple[list[list[int]], list[list[int]]]:
  """Tokenises texts, cut at max_length; returns ids, and `_words` of them."""
  if not examples:
    return [], []
  if max_length is not None and max_length <= tokenizer.num_special_tokens_to_add():
    raise UserError(
      f"data.max_length is {max_length}, expected more than the special tokens of a row"
    )
  texts = [" ".join(one.row["words"]) for one in examples]
  cut = {} if max_length is None else {"truncation": True, "max_length": max_length}
  out = tokenizer(texts, return_offsets_mapping=True, verbose=False, **cut)
  pairs = zip(examples, out["offset_mapping"], strict=True)
  return list(out["input_ids"]), [_words(one.row["words"], spans) for one, spans in pairs]


def _words(words: Sequence[str], spans: Sequence[tuple[int, int]]) -> list[int]:
  """Numbers, from 1, the word that each token is the first of; 0 for none.

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


def _count(words: Sequence[int]) -> int:
  return sum(word > 0 for word in words)


def _to_split(
  tokenizer: Tokenizer, items: Sequence[_Item], names: Sequence[str], max_length: int | None
) -> Split:
  arrays = padding.pad_tokens(tokenizer, [item.ids for item in items], max_length)
  words_NT = padding.pad([item.words for item in items], arrays["tokens"].shape[1])
  labels_NT = np.zeros_like(words_NT)
  for row, item in enumerate(items):
    first_T = words_NT[row] > 0
    labels_NT[row, first_T] = np.array(item.tags)[words_NT[row, first_T] - 1]
  weights_NT = (words_NT > 0).astype(np.float32)
  return Split(
    arrays | {"weights": weights_NT, "labels": labels_NT, "words": words_NT},
    prompts=[[] for _ in items],
    references=[[names[tag] for tag in item.tags] for item in items],
    rows=[item.example.row for item in items],
    where=[item.example.where for item in items],
  )
