"""Demonstrations stand before the question as they stood in training, and fit or are left out."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from jaxtune.data import EncodeOptions, conversations
from jaxtune.data.encode import chat, text
from jaxtune.data.shots import shots
from jaxtune.data.templates import Example
from jaxtune.errors import UserError


def make(tokenizer, rows, **options):
  examples = [Example(p, [a], {}, f"f:{n}") for n, (p, a) in enumerate(rows, 1)]
  return text.encode(tokenizer, examples, EncodeOptions(**options))[0]


TRAIN = [(f"Q{n}\nA: ", f"a{n}") for n in range(12)]
TEST = [("Which?\nA: ", "this"), ("Who?\nA: ", "they all")]


@pytest.mark.parametrize("options", [{}, {"bos": True}, {"bos": True, "eos_behind": True}])
def test_the_text_is_what_one_would_write_by_hand(make_tokenizer, options):
  tokenizer = make_tokenizer(**options)
  train, test = make(tokenizer, TRAIN), make(tokenizer, TEST)
  few, report = shots(test, train, tokenizer, 3, positions=200, seed=4)
  chosen = [int(place.split(":")[1]) - 1 for place in report["demonstrations"]]
  assert len(set(chosen)) == 3 and report["used"] == {3: 2} and report["shots"] == 3
  before = "".join("".join(TRAIN[n]) + "\n\n" for n in chosen)
  by_hand = make(tokenizer, [(before + p, a) for p, a in TEST])
  assert few.prompts == by_hand.prompts
  for name, array in by_hand.arrays.items():
    np.testing.assert_array_equal(few.arrays[name], array)
    assert few.arrays[name].dtype == array.dtype
  assert few.references == test.references and few.where == test.where
  assert few.arrays["weights"].sum() == test.arrays["weights"].sum()
  again, _ = shots(test, train, tokenizer, 3, positions=200, seed=4)
  assert again.prompts == few.prompts
  assert shots(test, train, tokenizer, 3, positions=200, seed=5)[0].prompts != few.prompts


@pytest.mark.parametrize("options, begins", [({}, "<s>"), ({"bos": True}, ""), ({}, "")])
def test_conversations_begin_as_their_template_does(make_tokenizer, options, begins):
  tokenizer = make_tokenizer(**options)
  source = begins + "{% for m in messages %}[{{ m.content }}]{% if m.role == 'assistant' %}</s>"
  source += "{% endif %}{% endfor %}{% if add_generation_prompt %}[{% endif %}"

  def talk(*pairs):
    turns = [
      {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
      for q, a in pairs
    ]
    examples, _ = conversations.read(turns, [f"f:{n}" for n in range(len(turns))])
    return chat.encode(tokenizer, examples, EncodeOptions(chat_template=source))[0]

  few, _ = shots(talk(("q", "a")), talk(("one", "1"), ("two", "2")), tokenizer, 2, positions=200)
  text = tokenizer.decode(few.prompts[0])
  one, two = "[one][1]\n\n", "[two][2]\n\n"
  assert text in (f"{begins}{one}{two}[q][", f"{begins}{two}{one}[q][")
  whole = few.arrays["tokens"][0][few.arrays["mask"][0]]
  assert tokenizer.decode(whole) == text + "a]</s>"


def test_what_does_not_fit_is_left_out_from_the_far_end_and_counted(tokenizer):
  train, test = make(tokenizer, TRAIN[:10]), make(tokenizer, [("w\n", "yes"), ("w" * 20, "no")])
  one = len("Q1\nA: a1\n\n")
  whole, report = shots(test, train, tokenizer, 4, positions=6 + 4 * one)
  assert report["used"] == {2: 1, 4: 1}
  lengths = whole.arrays["mask"].sum(1).tolist()
  assert lengths == [6 + 4 * one, 23 + 2 * one] and whole.width == 6 + 4 * one
  last = tokenizer.decode(whole.prompts[1])
  places = [int(place.split(":")[1]) - 1 for place in report["demonstrations"]]
  assert last == "".join("".join(TRAIN[n]) + "\n\n" for n in places[2:]) + "w" * 20
  generating, report = shots(test, train, tokenizer, 4, positions=6 + 4 * one, new_tokens=14)
  assert report["used"] == {1: 1, 3: 1}
  assert all(len(ids) + 14 <= 6 + 4 * one for ids in generating.prompts)
  none, report = shots(test, train, tokenizer, 4, positions=8)
  assert report["used"] == {0: 2} and none.prompts == test.prompts


def test_classes_are_shown_equally_often(tokenizer):
  train, test = make(tokenizer, TRAIN), make(tokenizer, TEST)
  labels = np.array([0] * 9 + [1] * 2 + [2], np.int32)
  labelled = train._replace(arrays=train.arrays | {"labels": labels})
  for seed in range(5):
    _, report = shots(test, labelled, tokenizer, 6, positions=200, seed=seed)
    rows = [int(place.split(":")[1]) - 1 for place in report["demonstrations"]]
    assert Counter(labels[rows].tolist()) == {0: 3, 1: 2, 2: 1}
    words = train._replace(choices=[["0", "1"]] * 12, references=[[str(n % 2)] for n in range(12)])
    _, report = shots(test, words, tokenizer, 4, positions=200, seed=seed)
    rows = [int(place.split(":")[1]) - 1 for place in report["demonstrations"]]
    assert sorted(n % 2 for n in rows) == [0, 0, 1, 1]


def test_every_answer_to_choose_from_has_the_same_demonstrations(tokenizer):
  """Likelihood of label words: (N, C, T), the shown answer being the right one."""

  def choices(rows, labels, words=("yes", "no", "")):
    parts = [make(tokenizer, [(p, w) for w in words if w], max_length=40) for p in rows]
    pad = lambda x: np.pad(x, [(0, 1), (0, 40 - x.shape[1])])
    arrays = {name: np.stack([pad(p.arrays[name]) for p in parts]) for name in parts[0].arrays}
    prompts = [part.prompts[0] for part in parts]
    empty = [[w] for w in labels]
    where = [f"f:{n}" for n in range(1, len(rows) + 1)]
    arrays["labels"] = np.array(labels, np.int32)
    return parts[0]._replace(
      arrays=arrays, prompts=prompts, references=empty, rows=[{}] * len(rows), where=where
    )

  train = choices([f"Q{n}? " for n in range(6)], [0, 1] * 3)
  test = choices(["good? ", "fine? "], [1, 0])
  few, report = shots(test, train, tokenizer, 2, positions=100)
  before = "".join(
    f"Q{n}? {('yes', 'no')[n % 2]}\n\n"
    for n in (int(place.split(":")[1]) - 1 for place in report["demonstrations"])
  )
  text = lambda n, c: tokenizer.decode(few.arrays["tokens"][n, c][few.arrays["mask"][n, c]])
  assert text(0, 0) == before + "good? yes</s>" and text(1, 1) == before + "fine? no</s>"
  assert not few.arrays["mask"][:, 2].any() and not few.arrays["weights"][:, 2].any()
  np.testing.assert_array_equal(few.arrays["weights"].sum(-1), test.arrays["weights"].sum(-1))
  np.testing.assert_array_equal(few.arrays["labels"], test.arrays["labels"])


def test_what_cannot_be_shown(tokenizer):
  train, test = make(tokenizer, TRAIN), make(tokenizer, TEST)
  with pytest.raises(UserError, match="shots is 13, expected 1 to 12"):
    shots(test, train, tokenizer, 13, positions=100)
  plain = test._replace(prompts=[[], []])
  with pytest.raises(UserError, match="needs a decoder, and prompts"):
    shots(plain, train, tokenizer, 2, positions=100)
