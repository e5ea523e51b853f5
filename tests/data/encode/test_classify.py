"""Texts and pairs of texts, against what transformers makes of them."""

from __future__ import annotations

import numpy as np
import pytest
from support import folders, reading

from jaxtune import data, objectives
from jaxtune.data import EncodeOptions
from jaxtune.data.encode import classify, regression
from jaxtune.data.tokenizer import ends_texts
from jaxtune.errors import UserError

ROWS = [
  {"a": "the cat sat on the mat", "b": "where is it ?", "y": "pos"},
  {"a": "now", "b": "the river is not far away now", "y": "neg"},
  {"a": "not far", "b": "far", "y": "pos"},
]


def read(rows=ROWS, objective="classify", **columns):
  return reading.read(objective, rows, **{"text": "a", "label": "y"} | columns)[0]


def unpadded(split, name):
  pairs = zip(split.arrays[name], split.arrays["mask"], strict=True)
  return [row[mask].tolist() for row, mask in pairs]


@pytest.mark.parametrize(("family", "expected"), [("llama", False), ("bert", True), ("t5", True)])
def test_an_unknown_word_at_the_end_is_no_end(family, expected):
  """Word tokenizers, to which any letter is one."""
  assert ends_texts(folders.tokenizer(family)) == expected


def test_texts_have_the_tokenizer_s_special_tokens(wordpiece, bytepieces):
  for tokenizer in (wordpiece, bytepieces):
    split, counts = classify.encode(tokenizer, read(), EncodeOptions())
    assert unpadded(split, "tokens") == tokenizer([row["a"] for row in ROWS]).input_ids
    assert split.arrays["labels"].tolist() == [1, 0, 1] and "types" not in split.arrays
    assert split.arrays["weights"].tolist() == [1, 1, 1] and split.width % 8 == 0
    assert counts["labels"] == ["neg", "pos"] and counts["classes"] == {"neg": 1, "pos": 2}
    assert split.references == [["pos"], ["neg"], ["pos"]] and counts["kept"] == 3
    assert {k: v.dtype for k, v in split.arrays.items()} == {
      "tokens": np.int32, "mask": bool, "weights": np.float32, "labels": np.int32,
    }  # fmt: skip


def test_pairs_and_their_token_types(wordpiece, bytepieces):
  truth = wordpiece([row["a"] for row in ROWS], [row["b"] for row in ROWS])
  split, _ = classify.encode(wordpiece, read(pair="b"), EncodeOptions())
  assert unpadded(split, "tokens") == truth.input_ids
  assert unpadded(split, "types") == truth.token_type_ids
  split, _ = classify.encode(bytepieces, read(pair="b"), EncodeOptions())
  assert "types" not in split.arrays
  truth = bytepieces([row["a"] for row in ROWS], [row["b"] for row in ROWS]).input_ids
  assert unpadded(split, "tokens") == truth


def test_a_decoder_s_texts_end_in_eos(decoder, make_tokenizer):
  split, _ = classify.encode(decoder, read(), EncodeOptions())
  assert unpadded(split, "tokens")[2] == [*decoder("not far").input_ids, 2]
  split, _ = classify.encode(decoder, read(pair="b"), EncodeOptions())
  assert decoder.decode(unpadded(split, "tokens")[2]) == "not far</s>far</s>"
  split, _ = classify.encode(make_tokenizer(bos=True), read(pair="b"), EncodeOptions())
  assert decoder.decode(unpadded(split, "tokens")[2]) == "<s>not far</s>far</s>"
  split, _ = classify.encode(make_tokenizer(bos=True, eos_behind=True), read(), EncodeOptions())
  assert decoder.decode(unpadded(split, "tokens")[2]) == "<s>not far</s>"
  with pytest.raises(UserError, match="no eos token"):
    classify.encode(make_tokenizer(eos=False), read(), EncodeOptions())


def test_too_long(wordpiece, decoder):
  with pytest.raises(
    UserError, match=r"f:1: \d+ tokens, more than max_length=8; so are 2 of 3 .*'s"
  ):
    classify.encode(wordpiece, read(pair="b"), EncodeOptions(max_length=8))
  split, counts = classify.encode(
    wordpiece, read(pair="b"), EncodeOptions(max_length=8, too_long="skip")
  )
  assert counts["skipped"] == {"too_long": 2} and split.where == ["f:3"]
  assert split.arrays["labels"].tolist() == [1]
  split, counts = classify.encode(
    wordpiece, read(pair="b"), EncodeOptions(max_length=8, too_long="truncate")
  )
  truth = wordpiece(
    [row["a"] for row in ROWS], [row["b"] for row in ROWS], truncation="longest_first", max_length=8
  )
  assert unpadded(split, "tokens") == truth.input_ids and counts["truncated"] == 2
  assert unpadded(split, "types") == truth.token_type_ids
  rows = [{"a": "abcdefgh", "b": "xyz", "y": 0}, {"a": "ab", "b": "uvwxyz", "y": 1}]
  for length, texts in {
    9: ["abcd</s>xyz</s>", "ab</s>uvwxy</s>"], 6: ["ab</s>xy</s>", "ab</s>uv</s>"],
  }.items():  # fmt: skip
    split, _ = classify.encode(
      decoder, read(rows, pair="b"), EncodeOptions(max_length=length, too_long="truncate")
    )
    assert [decoder.decode(row) for row in unpadded(split, "tokens")] == texts
  with pytest.raises(UserError, match="data.max_length is 2, expected more than the 3 special"):
    classify.encode(wordpiece, read(pair="b"), EncodeOptions(max_length=2, too_long="truncate"))


def test_labels_outside_the_set(wordpiece):
  with pytest.raises(
    UserError, match="f:2: the label 'neg' is not in the set; did you mean 'nega'"
  ):
    classify.encode(wordpiece, read(), EncodeOptions(labels=("nega", "pos")))
  split, counts = classify.encode(
    wordpiece, read(), EncodeOptions(labels=("nega", "pos"), malformed="skip")
  )
  assert counts["skipped"] == {"label": 1} and split.where == ["f:1", "f:3"]
  assert counts["classes"] == {"nega": 0, "pos": 2}
  with pytest.raises(UserError, match="only one label, 'pos'"):
    classify.encode(wordpiece, read(ROWS[:1]), EncodeOptions())
  split, _ = classify.encode(wordpiece, read(ROWS[:1]), EncodeOptions(labels=("neg", "pos")))
  assert split.arrays["labels"].tolist() == [1]


@pytest.mark.parametrize(("objective", "column", "first", "second"), [
  ("classify", "label", "pos", 1), ("regression", "label", 5, "5.00"),
  ("tokens", "ner_tags", ["O", "B-x"], [0, 1]),
])  # fmt: skip
def test_a_label_is_the_same_however_it_is_written(
  wordpiece, write, objective, column, first, second
):
  words = {"tokens": ["the", "cat"]} if objective == "tokens" else {"text": "the cat"}
  names = {"classify": ("neg", "pos"), "tokens": ("O", "B-x")}.get(objective)
  files = {
    name: write(f"{name}.jsonl", [words | {column: label}])
    for name, label in (("train", first), ("test", second))
  }
  options = data.DataOptions(**files, labels=names)
  with pytest.raises(UserError, match="1 examples of train are in test too"):
    data.load(wordpiece, objectives.module(objective), options)


def test_the_order_of_the_alphabet_numbers_no_label(wordpiece, write):
  texts = ["the cat", "the river"]
  rows = [{"text": text, "label": name} for text, name in zip(texts, ("b", "a"), strict=True)]
  files = {"train": write("rows.jsonl", rows)}
  files["test"] = write("test.jsonl", [{"text": "cat", "label": 0}])
  load = lambda **more: data.load(
    wordpiece, objectives.module("classify"), data.DataOptions(**files, **more)
  )
  with pytest.raises(UserError, match="test.jsonl:1: the label 0 is a number, .* set data.labels"):
    load()
  assert load(labels=("b", "a")).test.references == [["b"]]


def test_a_tokenizer_without_eos_ends_nothing(wordpiece, write):
  path = write("rows.jsonl", ROWS)
  options = data.DataOptions(train=path, rename={"text": "a", "label": "y"})
  assert wordpiece.eos_token_id is None
  assert data.load(wordpiece, objectives.module("classify"), options).stop_tokens == ()


def test_texts_without_a_token(wordpiece):
  rows = [*ROWS, {"a": "\u0001", "y": "pos"}]
  with pytest.raises(UserError, match="f:4: the tokenizer leaves no token of the text"):
    classify.encode(wordpiece, read(rows), EncodeOptions())
  split, counts = classify.encode(wordpiece, read(rows), EncodeOptions(malformed="skip"))
  assert counts["skipped"] == {"no_token": 1} and split.examples == 3


def test_numbers(wordpiece):
  rows = [{"a": "the cat", "y": "2.5"}, {"a": "the river", "y": 4}]
  split, counts = regression.encode(wordpiece, read(rows, "regression"), EncodeOptions())
  assert split.arrays["labels"].tolist() == [2.5, 4] and split.arrays["labels"].dtype == np.float32
  assert counts["range"] == [2.5, 4.0] and split.references == [["2.5"], ["4"]]
  split, _ = regression.encode(wordpiece, read(rows[:1], "regression"), EncodeOptions())
  assert split.examples == 1
  split, counts = regression.encode(wordpiece, [], EncodeOptions())
  assert counts["kept"] == 0 and counts["range"] is None
