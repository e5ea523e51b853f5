"""What `data show` prints of every kind of task."""

from __future__ import annotations

import numpy as np
from support.reading import read

from jaxtune import objectives
from jaxtune.data import Data, EncodeOptions, views
from jaxtune.data.encode import choices, text
from jaxtune.data.show import show
from jaxtune.data.templates import Example


def data(**made):
  """Puts (split, counts) together as `load` does."""
  counts = {name: {"read": one[1]["kept"]} | one[1] for name, one in made.items()}
  splits = [made[name][0] if name in made else None for name in ("train", "validation", "test")]
  return Data(*splits, {"splits": counts})


def sft(tokenizer, *pairs, start=1):
  rows = [
    Example(prompt, [answer], {}, f"f:{at}") for at, (prompt, answer) in enumerate(pairs, start)
  ]
  return text.encode(tokenizer, rows, EncodeOptions())


def encode(tokenizer, objective, rows, **options):
  examples, _ = read(objective, rows)
  return objectives.module(objective).encode(tokenizer, examples, EncodeOptions(**options))


def test_trained_tokens_are_marked(tokenizer):
  one = data(train=sft(tokenizer, ("ask\n", "größe"), (None, "plain"), ("no", "never")))
  text = show(one, views.TEXT, tokenizer, count=2, colour=False)
  assert "-- train: f:1 --\nask\n[[größe</s>]]\n" in text
  assert "-- train: f:2 --\np[[lain</s>]]\n" in text and "f:3" not in text
  text = show(one, views.TEXT, tokenizer, count=1, colour=True)
  assert "ask\n\033[1;32mgröße</s>\033[0m\n" in text
  assert "[[" in show(one, views.TEXT, tokenizer)  # what pytest captures is no terminal


def test_what_would_steer_a_terminal_is_written_out(tokenizer):
  text = show(
    data(train=sft(tokenizer, ("a\033[31m\r", "b\u202e\x00"))), views.TEXT, tokenizer, colour=False
  )
  assert "a\\x1b[31m\\r[[b\\u202e\\x00</s>]]" in text and "\033" not in text


def test_counts_lengths_and_doubles(tokenizer):
  train = sft(tokenizer, ("Ask\n", "yes"), ("ask ", "YES"), ("other\n", "no"), ("a" * 40, "b"))
  test = sft(tokenizer, ("ask\n", "Yes"), ("else\n", "no"))
  text = show(data(train=train, test=test), views.TEXT, tokenizer, count=0, colour=False)
  assert text.startswith("split") and "\ntrain" in text
  assert "== train ==\n4 examples; tokens of each: 8 to 42, median 9, 95 % up to 42\n" in text
  lines = [line.split() for line in text.split("== test ==")[0].splitlines() if " to " in line][1:]
  assert [line[-1] for line in lines] == ["3", "0", "0", "0", "0", "0", "1"]
  assert [line[3].count("#") for line in lines if "#" in line[3]] == [40, 14]
  assert "duplicates: 1 (" in text.split("== test ==")[0]
  assert "duplicates: 0 (" in text.split("== test ==")[1]
  assert "overlap: 2 of train are in test too" in text


def test_packed_examples_are_told_apart(tokenizer):
  split, counts = sft(tokenizer, ("a", "b"))
  ids = tokenizer("abab").input_ids
  arrays = {
    "tokens": np.array([ids]), "mask": np.ones((1, 4), bool), "weights": np.ones((1, 4)),
    "segments": np.array([[1, 1, 2, 2]]),
  }  # fmt: skip
  text = show(
    data(train=(split._replace(arrays=arrays), counts)), views.TEXT, tokenizer, colour=False
  )
  assert "2 examples; tokens of each: 2 to 2" in text and "duplicates: 1 (" in text


def test_an_encoder_decoder_s_input_stands_in_front(tokenizer):
  split, counts = sft(tokenizer, ("", "ja"))
  inputs = np.array([tokenizer("yes").input_ids])
  arrays = split.arrays | {"inputs": inputs, "inputs_mask": np.ones_like(inputs, bool)}
  text = show(
    data(train=(split._replace(arrays=arrays), counts)), views.TEXT, tokenizer, colour=False
  )
  assert "yes\nj[[a</s>]]" in text and "tokens of each: 6 to 6" in text


def test_classes(tokenizer):
  rows = [
    {"text": "good", "label": "pos"},
    {"text": "Good ", "label": "neg"},
    {"text": "b", "label": "pos"},
  ]
  text = show(
    data(train=encode(tokenizer, "classify", rows)), views.CLASSES, tokenizer, colour=False
  )
  assert "examples by label:\n  pos  2 (66.7 %)\n  neg  1 (33.3 %)" in text
  assert "good</s>\nlabel: [[pos]]" in text
  assert "duplicates: 1 (" not in text  # the special token keeps "good" and "Good " apart


def test_texts_with_two_labels(tokenizer):
  rows = [{"text": "good", "label": "pos"}, {"text": "Good", "label": "neg"}]
  text = show(
    data(train=encode(tokenizer, "classify", rows)), views.CLASSES, tokenizer, colour=False
  )
  assert "duplicates: 1 (" in text and "texts with more than one label: 1" in text


def test_numbers(tokenizer):
  rows = [{"text": "a", "label": 1.5}, {"text": "b", "label": 4}]
  text = show(
    data(train=encode(tokenizer, "regression", rows)), views.NUMBERS, tokenizer, colour=False
  )
  assert "labels: 1.5 to 4, mean 2.75" in text and "a</s>\nlabel: [[1.5]]" in text


def test_tagged_words(tokenizer):
  rows = [{"tokens": ["in", "San", "Francisco"], "ner_tags": ["O", "B-place", "I-place"]}]
  split = encode(tokenizer, "tokens", rows, max_length=6, too_long="truncate")
  text = show(data(train=split), views.WORDS, tokenizer, colour=False)
  assert "[[in San/B-place]] Francisco/I-place" in text
  assert "words by tag:\n  O        1 (33.3 %)" in text


def test_answers(tokenizer):
  rows = [
    {"question": "who", "context": "a cat", "answers": [{"text": "cat", "answer_start": 2}]},
    {"question": "where", "context": "a cat", "answers": []},
  ]
  text = show(data(train=encode(tokenizer, "qa", rows)), views.ANSWERS, tokenizer, colour=False)
  assert "who\na [[cat]]\nanswers: 'cat'" in text and "where\na cat\nanswers: none" in text
  assert "without an answer: 1 of 2" in text


def test_choices(tokenizer):
  rows = [Example("It is ", ["good"], {}, "f:1", ["bad", "good"])]
  text = show(
    data(train=choices.encode(tokenizer, rows, EncodeOptions())),
    views.CHOICES,
    tokenizer,
    colour=False,
  )
  assert "  It is [[bad]]\n* It is [[good]]" in text


def test_choices_are_counted_where_all_rows_have_the_same(tokenizer):
  def run(*rows):
    examples = [Example("It is ", [some[0]], {}, "f:1", some) for some in rows]
    one = choices.encode(tokenizer, examples, EncodeOptions())
    return show(data(train=one), views.CHOICES, tokenizer, colour=False), one[1]

  text, counts = run(["a\r", "bb"], ["bb", "a\r"])
  assert "examples by label:\n  a\\r  1 (50.0 %)\n  bb   1 (50.0 %)" in text and "\r" not in text
  assert counts["classes"] == {"a\r": 1, "bb": 1}
  text, counts = run(["a", "b"], ["c", "d"])
  assert "by label" not in text and "classes" not in counts


def test_thumbs(tokenizer):
  rows = [
    {"prompt": "ask\n", "completion": answer, "label": label}
    for answer, label in (("yes", True), ("no", False), ("Yes", False))
  ]
  text = show(data(train=encode(tokenizer, "kto", rows)), views.THUMBS, tokenizer, colour=False)
  assert "duplicates: 1 (" in text
  assert "texts with more than one label: 1\nthumbs up: 1 of 3" in text
  assert "ask\n[[no</s>]]\nlabel: down" in text


def test_prompts_of_encoder_decoders_stand_in_front_of_judged_answers(tokenizer):
  rows = [
    {"prompt": f"{prompt}\n", "completion": answer, "label": label}
    for prompt, answer, label in (("a", "yes", True), ("b", "yes", False), ("a", "yes", True))
  ]
  train = encode(tokenizer, "kto", rows, decoder_start=(0,))
  text = show(data(train=train), views.THUMBS, tokenizer, colour=False)
  assert "duplicates: 1 (" in text and "more than one label" not in text
  assert "a\n\n" in text and "b\n\n" in text
  rows = [{"prompt": "ask\n", "chosen": "yes", "rejected": "no"}]
  train = encode(tokenizer, "dpo", rows, decoder_start=(0,))
  assert "ask" in show(data(train=train), views.PAIRS, tokenizer, colour=False)


def test_pairs(tokenizer):
  pair = lambda prompt, chosen, rejected: {
    "prompt": prompt, "chosen": chosen, "rejected": rejected
  }  # fmt: skip
  rows = [
    pair("ask\n", "yes", "no"), pair("ask\n", "Yes", "no"), pair("ask\n", "no", "yes"),
    pair("ask\n", "well", "no"), pair("other\n", "aaa", "b"), pair("long\n", "aaaa1", "aaaa2"),
  ]  # fmt: skip
  tie = [{"prompt": "tie\n", "completions": ["a", "bc"], "ratings": [3, 3]}]
  options = {"max_length": 9, "too_long": "truncate"}
  train, test = (encode(tokenizer, "dpo", made, **options) for made in (rows, tie))
  text = show(data(train=train, test=test), views.PAIRS, tokenizer, count=6, colour=False)
  train, test = text.split("== test ==")
  assert "duplicates: 2 (" in train and "ties: 0\n" in train
  assert "pairs that are given the other way round too: 1\n" in train
  assert "pairs whose answers have the same tokens: 1\n" in train
  assert "is the longer one in 80.0 % of 5 pairs (95 % interval 37.6 to 96.4)" in train
  assert "3 cut" in train.splitlines()[1]
  assert "ties: 1\n" in test and "longer one" not in test.split("--")[0]
  assert "* ask\n[[yes</s>]]\n  ask\n[[no</s>]]" in test
  assert "  tie\n[[a</s>]]\n  tie\n[[bc</s>]]" in test
