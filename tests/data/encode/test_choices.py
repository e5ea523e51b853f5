"""Label words: every prompt with each of its answers, trained on the answer alone."""

from __future__ import annotations

import numpy as np
import pytest

from jaxtune.data import EncodeOptions, join
from jaxtune.data.encode import choices
from jaxtune.data.templates import Example
from jaxtune.errors import UserError

PAIR = ["bad", "great"]


def example(prompt, answer, choices=PAIR, line=1):
  return Example(prompt, [answer], {}, f"f:{line}", choices)


def texts(tokenizer, split, row, where="mask"):
  tokens, here = split.arrays["tokens"][row], split.arrays[where][row] > 0
  return [tokenizer.decode(one[mask]) for one, mask in zip(tokens, here, strict=True)]


def test_each_choice_follows_the_prompt(decoder):
  split, counts = choices.encode(
    decoder, [example("It is ", "great"), example("So ", "bad")], EncodeOptions()
  )
  assert split.arrays["tokens"].shape == (2, 2, 16)
  assert texts(decoder, split, 0) == ["It is bad", "It is great"]
  assert texts(decoder, split, 0, "weights") == PAIR
  assert split.arrays["labels"].tolist() == [1, 0] and split.references == [["great"], ["bad"]]
  assert counts["classes"] == {"great": 1, "bad": 1} and split.choices == [PAIR, PAIR]
  assert decoder.decode(split.prompts[0]) == "It is "
  assert {k: v.dtype for k, v in split.arrays.items()} == {
    "tokens": np.int32, "mask": bool, "weights": np.float32, "labels": np.int32,
  }  # fmt: skip


def test_fewer_choices_are_filled_up_without_weight(decoder):
  three = ["yes", "no", "so"]
  split, _ = choices.encode(
    decoder, [example("a ", "so", three), example("b ", "bad")], EncodeOptions()
  )
  assert texts(decoder, split, 1) == ["b bad", "b great", "b bad"]
  assert split.arrays["weights"][1].sum(-1).tolist() == [3, 5, 0]
  assert split.arrays["mask"].any(-1).all()


def test_special_tokens_stand_in_front_only(make_tokenizer):
  tokenizer = make_tokenizer(bos=True, eos_behind=True)
  split, _ = choices.encode(tokenizer, [example("a ", "bad")], EncodeOptions())
  assert texts(tokenizer, split, 0) == ["<s>a bad", "<s>a great"]


def test_too_long(make_tokenizer):
  tokenizer = make_tokenizer(bos=True)
  rows = [example("a ", "bad"), example("0123456789", "bad", line=2)]
  with pytest.raises(UserError, match="f:2: 16 tokens, more than max_length=10; so are 1 of 2"):
    choices.encode(tokenizer, rows, EncodeOptions(max_length=10))
  split, counts = choices.encode(tokenizer, rows, EncodeOptions(max_length=10, too_long="skip"))
  assert split.where == ["f:1"] and counts["skipped"] == {"too_long": 1}
  split, counts = choices.encode(tokenizer, rows, EncodeOptions(max_length=10, too_long="truncate"))
  assert texts(tokenizer, split, 1) == ["<s>6789bad", "<s>6789great"] and counts["truncated"] == 1
  split, counts = choices.encode(tokenizer, rows, EncodeOptions(max_length=5, too_long="truncate"))
  assert counts["skipped"] == {"too_long": 2} and counts["truncated"] == 0
  bare, options = make_tokenizer(), EncodeOptions(max_length=6, too_long="truncate")
  split, _ = choices.encode(bare, rows, options)
  assert texts(bare, split, 1) == ["9bad", "9great"]
  split, counts = choices.encode(bare, rows, options._replace(max_length=5))
  assert counts["skipped"] == {"too_long": 2}, "an answer follows one token of the prompt at least"


@pytest.mark.parametrize(
  ("row", "message"),
  [
    (example("a", "grate"), "the answer 'grate' is none of the choices; did you mean 'great'"),
    (example("a", "", ["", "b"]), r"one of the choices \['', 'b'\] is empty"),
    (example("a", "b", ["b"]), "1 answer choices, expected two or more"),
    (example("a", "b", ["b", "b"]), "the choice 'b' comes twice"),
    (example(None, "bad"), "plain text has no prompt"),
    (example(" ", "bad"), "the prompt is empty, expected a text to choose an answer to"),
  ],
)
def test_refusals(decoder, row, message):
  with pytest.raises(UserError, match="f:1: " + message):
    choices.encode(decoder, [row], EncodeOptions())
  split, counts = choices.encode(
    decoder, [row, example("a", "bad")], EncodeOptions(malformed="skip")
  )
  assert split.examples == 1 and counts["skipped"] == {"label": 1}


def test_answers_of_one_token_share_a_row(decoder):
  rows = [example("It is ", "b", ["a", "b", "c"]), example("So ", "x", ["x", "y"])]
  split, _ = choices.encode(decoder, rows, EncodeOptions())
  shapes = {name: x.shape for name, x in split.arrays.items()}
  row = {name: (2, 1, 8) for name in ("tokens", "mask", "weights")}
  assert shapes == row | {"labels": (2,), "answers": (2, 3, 1)}
  assert texts(decoder, split, 0) == ["It is b"] and texts(decoder, split, 1, "weights") == ["x"]
  assert split.arrays["answers"][1, 2, 0] == 0
  apart = split._replace(arrays=choices.unfold(split.arrays))
  assert texts(decoder, apart, 0) == ["It is a", "It is b", "It is c"]
  assert texts(decoder, apart, 1) == ["So x", "So y", "So x"]
  assert texts(decoder, apart, 1, "weights") == ["x", "y", ""]
  other, _ = choices.encode(decoder, [example("It is ", "great")], EncodeOptions())
  both = join({"short": split, "long": other})
  assert both.arrays["weights"].sum(-1).tolist() == [[1, 1, 1], [1, 1, 0], [3, 5, 0]]
  assert join({"a": split, "b": split._replace(arrays=split.arrays | {
    "answers": split.arrays["answers"][:, :2]})}).arrays["answers"][2:, 2].sum() == 0  # fmt: skip
