"""Words and subwords, against transformers' word numbers and by hand."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from support.reading import read

from jaxtune.data import EncodeOptions
from jaxtune.data.encode import tokens
from jaxtune.errors import UserError

ROWS = [
  {"tokens": ["The", "cat", "in", "San", "Francisco", "."], "ner_tags": [0, 0, 0, 1, 2, 0]},
  {"tokens": ["now", "Zürich", "漢字", "?"], "ner_tags": [0, 1, 1, 0]},
]  # fmt: skip
NAMES = ("O", "B-place", "I-place")


def encode(tokenizer, rows=ROWS, **options):
  return tokens.encode(
    tokenizer, read("tokens", rows)[0], EncodeOptions(**{"labels": NAMES} | options)
  )


def unpadded(split):
  pairs = zip(split.arrays["tokens"], split.arrays["mask"], strict=True)
  return [row[mask].tolist() for row, mask in pairs]


def firsts(tokenizer, truth):
  """The word, from 1, that each token is the first of; a mere space in front is none."""
  pairs = zip(truth.word_ids(), truth.input_ids, strict=True)
  numbers = [word if tokenizer.decode([token]).strip() else None for word, token in pairs]
  return [w + 1 if w is not None and w not in numbers[:at] else 0 for at, w in enumerate(numbers)]


def check(split, tokenizer):
  for row, data in enumerate(ROWS):
    truth = tokenizer(data["tokens"], is_split_into_words=True)
    length = len(truth.input_ids)
    assert split.arrays["tokens"][row, :length].tolist() == truth.input_ids
    assert split.arrays["mask"][row].sum() == length
    words = firsts(tokenizer, truth)
    assert split.arrays["words"][row].tolist() == words + [0] * (split.width - length)
    assert ((split.arrays["words"] > 0) == split.arrays["weights"]).all()
    for place, word in enumerate(words):
      assert split.arrays["labels"][row, place] == (data["ner_tags"][word - 1] if word else 0)


def test_alignment_is_transformers_for_wordpieces(wordpiece):
  split, counts = encode(wordpiece)
  check(split, wordpiece)
  assert counts["words"] == 10 and counts["classes"] == {"O": 6, "B-place": 3, "I-place": 1}
  assert counts["cut_words"] == counts["silent_words"] == 0


def test_alignment_is_transformers_for_bytes_that_begin_with_a_space(bytepieces):
  split, _ = encode(bytepieces)
  if bytepieces.backend_tokenizer.pre_tokenizer.add_prefix_space:
    check(split, bytepieces)
  else:  # transformers would glue the words together
    texts = [" ".join(row["tokens"]) for row in ROWS]
    assert unpadded(split) == bytepieces(texts).input_ids


def test_every_word_has_one_first_subword(wordpiece, bytepieces, decoder):
  for tokenizer in (wordpiece, bytepieces, decoder):
    split, _ = encode(tokenizer)
    for row, data in enumerate(ROWS):
      words = split.arrays["words"][row]
      assert words[words > 0].tolist() == list(range(1, len(data["tokens"]) + 1))
      places = np.flatnonzero(words)
      pieces = np.split(split.arrays["tokens"][row][split.arrays["mask"][row]], places)[1:]
      said = tokenizer.decode(np.concatenate(pieces), skip_special_tokens=True)
      if tokenizer is decoder:
        assert said == " ".join(data["tokens"])
        first = [tokenizer.decode(piece[:1]) for piece in pieces]
        assert [one.strip() for one in first if one.isascii()] == [
          word[0] for word, one in zip(data["tokens"], first, strict=True) if one.isascii()
        ]


def test_predictions_go_back_to_words(wordpiece):
  split, counts = encode(wordpiece)
  assert tokens.word_tags(split, split.arrays["labels"], counts["labels"]) == split.references
  assert split.references[0] == ["O"] * 3 + ["B-place", "I-place", "O"]
  noise = np.where(split.arrays["weights"] > 0, split.arrays["labels"], 2)
  assert tokens.word_tags(split, noise, counts["labels"]) == split.references


def test_words_that_are_cut_off_stay_in_the_evaluation(wordpiece):
  with pytest.raises(UserError, match=r"f:1: \d+ tokens, more than max_length=6"):
    encode(wordpiece, max_length=6)
  split, counts = encode(wordpiece, max_length=6, too_long="truncate")
  texts = [" ".join(row["tokens"]) for row in ROWS]
  short = wordpiece(texts, truncation=True, max_length=6).input_ids
  assert unpadded(split) == short
  seen = int(split.arrays["weights"].sum())
  assert counts["words"] == 10 and counts["cut_words"] == 10 - seen > 0 and counts["truncated"] == 2
  tags = tokens.word_tags(split, split.arrays["labels"], NAMES)
  assert list(map(len, tags)) == list(map(len, split.references)) == [6, 4]
  assert tags[0][-2:] == ["O", "O"] and split.references[0][-2:] == ["I-place", "O"]
  _, counts = encode(wordpiece, max_length=6, too_long="skip")
  assert counts["skipped"] == {"too_long": 2}
  with pytest.raises(UserError, match="data.max_length is 2, expected more than the 2 special tok"):
    encode(wordpiece, max_length=2, too_long="truncate")


def test_words_without_a_token_are_counted(wordpiece):
  rows = [{"tokens": ["now", "\u0001", "", "cat"], "ner_tags": [0, 1, 1, 2]}]
  split, counts = encode(wordpiece, rows)
  assert counts["silent_words"] == 2 and counts["words"] == 4 and counts["cut_words"] == 0
  assert tokens.word_tags(split, split.arrays["labels"], NAMES) == [["O", "O", "O", "I-place"]]
  assert split.references == [["O", "B-place", "B-place", "I-place"]]
  rows.append({"tokens": ["\u0001"], "ner_tags": [0]})
  with pytest.raises(UserError, match="f:2: the tokenizer leaves no token of the text"):
    encode(wordpiece, rows)
  split, counts = encode(wordpiece, rows, malformed="skip")
  assert counts["skipped"] == {"no_token": 1} and split.where == ["f:1"]


def test_tags(wordpiece):
  rows = [{"tokens": ["now", "cat"], "ner_tags": ["O", "B-plaice"]}]
  with pytest.raises(UserError, match="f:1: the label 'B-plaice' is not in .* mean 'B-place'"):
    encode(wordpiece, rows)
  _, counts = encode(wordpiece, rows, labels=None)
  assert counts["labels"] == ["B-plaice", "O"]
  _, counts = encode(wordpiece, rows, malformed="skip")
  assert counts["kept"] == 0 and counts["skipped"] == {"label": 1}


def test_a_tokenizer_that_does_not_say_where_its_tokens_stand():
  with pytest.raises(UserError, match="tagging words needs a fast tokenizer"):
    encode(SimpleNamespace(is_fast=False))
