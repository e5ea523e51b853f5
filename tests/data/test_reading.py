"""What a row of a labelled task may lack or contradict, and what the message says."""

from __future__ import annotations

import pytest
from support.reading import read

from jaxtune.data import confined, divide, labels, sources
from jaxtune.errors import UserError

QA = {
  "question": "who ?",
  "context": "the cat sat",
  "answers": {"text": ["cat"], "answer_start": [4]},
}


def test_rows_become_examples_that_splits_can_compare():
  row = {"s1": "a cat", "s2": "b", "y": 1.0}
  (one,), skipped = read("classify", [row], ["f:1"], text="s1", pair="s2", label="y")
  assert (one.prompt, one.answers, one.where, skipped) == ("a cat\nb", ["1"], "f:1", {})
  assert one.row == row | {"text": "a cat", "pair": "b", "label": 1.0}
  (one,), _ = read("regression", [row], ["f:1"], text="{{ s1 }} and {{ s2 | upper }}", label="y")
  assert one.row["text"] == "a cat and B" and one.row["pair"] is None and one.row["label"] == 1.0
  row = {"tokens": ["a", "b"], "ner_tags": ["O", "B-x"]}
  (one,), _ = read("tokens", [row], ["f:1"])
  assert (one.prompt, one.answers) == ("a b", ["O B-x"])
  (one,), _ = read("qa", [QA], ["f:1"])
  assert (one.prompt, one.answers, one.row["spans"]) == ("who ?\nthe cat sat", ["cat"], [(4, 7)])
  parts, shared = divide.separate({"train": [one], "test": [one]}, "allow")
  assert shared["train/test"]["shared"] == 1
  for objective, row in {"tokens": {"tokens": ["a"], "ner_tags": [1]}, "qa": QA}.items():
    (one,), _ = read(objective, [row], ["f:1"])
    assert one.source is row and set(row) < set(one.row)


@pytest.mark.parametrize(
  "answers",
  [
    {"text": ["cat", "the cat"], "answer_start": [4, 0]},
    [{"text": "cat", "answer_start": 4}, {"text": "the cat", "answer_start": 0}],
  ],
)
def test_answers_are_read_as_squad_writes_them(answers):
  (one,), _ = read("qa", [QA | {"answers": answers}], ["f:1"])
  assert one.row["spans"] == [(4, 7), (0, 7)] and one.answers == ["cat", "the cat"]


@pytest.mark.parametrize("answers", [[], {}, {"text": [], "answer_start": []}])
def test_a_question_may_have_no_answer(answers):
  (one,), _ = read("qa", [QA | {"answers": answers}], ["f:1"])
  assert one.row["spans"] == [] and one.answers == [""]


@pytest.mark.parametrize(
  ("objective", "row", "message"),
  [
    ("classify", {"txt": "a", "label": 1}, "column 'text' is missing; there are txt, label"),
    ("classify", {"text": None, "label": 1}, "column 'text' holds null"),
    ("classify", {"text": " \n", "label": 1}, "the text of 'text' is empty"),
    ("classify", {"text": ["a"], "label": 1}, r"'text' holds \['a'\] \(list\), expected text"),
    ("classify", {"text": float("nan"), "label": 1}, r"'text' holds nan \(float\), expected text"),
    ("classify", {"text": b"a", "label": 1}, r"'text' holds b'a' \(bytes\), expected text"),
    ("classify", {"text": "a", "label": 1.5}, "'label' holds 1.5, expected a label's name"),
    ("classify", {"text": "a", "label": float("nan")}, "'label' holds nan, expected a label"),
    ("regression", {"text": "a", "label": 10**400}, "column 'label' holds 1.*, expected a number"),
    ("classify", {"text": "a"}, "column 'label' is missing"),
    ("classify", {"text": "a", "label": None}, "column 'label' holds null"),
    ("classify", {"text": "a", "label": ""}, "column 'label' holds '', expected a label's name"),
    ("classify", {"text": "a", "label": [1]}, r"column 'label' holds \[1\], expected a label"),
    ("regression", {"text": "a", "label": "high"}, "'label' holds 'high', expected a number"),
    ("regression", {"text": "a", "label": "nan"}, "column 'label' holds 'nan', expected a number"),
    ("regression", {"text": "a", "label": True}, "column 'label' holds True, expected a number"),
    ("tokens", {"tokens": "a b", "ner_tags": ["O", "O"]}, "column 'tokens' is 'a b' .str., expec"),
    ("tokens", {"tokens": [], "ner_tags": []}, "column 'tokens' has no words"),
    ("tokens", {"tokens": ["a", "b"], "ner_tags": ["O"]}, "2 words in 'tokens' and 1 tags in"),
    ("tokens", {"tokens": ["a", 2], "ner_tags": ["O", "O"]}, r"'tokens'\[1\] is 2 .* text"),
    ("tokens", {"tokens": ["a"], "ner_tags": [None]}, r"'ner_tags'\[0\] is None .* text or int"),
    ("qa", {"question": "a", "context": "b"}, "column 'answers' is missing"),
    ("qa", QA | {"context": ""}, "the text of 'context' is empty"),
    ("qa", QA | {"answers": None}, "column 'answers' holds null, expected a value"),
    ("qa", QA | {"answers": "cat"}, "column 'answers' holds 'cat', expected {'text'"),
    ("qa", QA | {"answers": {"text": ["cat"]}}, "column 'answers' holds .* of one length"),
    ("qa", QA | {"answers": {"text": ["cat"], "answer_start": [1, 2]}}, "of one length"),
    ("qa", QA | {"answers": {"text": [""], "answer_start": [1]}}, "the answer '' is empty"),
    ("qa", QA | {"answers": {"text": ["cat"], "answer_start": ["4"]}}, "starts at '4', expected a"),
    (
      "qa", QA | {"answers": {"text": ["cat"], "answer_start": [9]}},
      "the answer 'cat' at 9 is beyond the context of 11 characters; it stands at 4$",
    ),
    ("qa", QA | {"answers": {"text": ["cat"], "answer_start": [-7]}}, "at -7 is beyond"),
    (
      "qa", QA | {"answers": {"text": ["dog"], "answer_start": [4]}},
      "the context has 'cat' at 4, not the answer 'dog'; it is nowhere in the context$",
    ),
  ],
)  # fmt: skip
def test_malformed_rows(objective, row, message):
  with pytest.raises(UserError, match="f.jsonl:3: .*" + message):
    read(objective, [row], ["f.jsonl:3"])
  examples, skipped = read(objective, [row], ["f.jsonl:3"], malformed="skip")
  assert examples == [] and skipped == {"malformed": 1}


def test_options_that_a_task_does_not_read():
  with pytest.raises(UserError, match="data.rename has 'pair', which is not read; valid choices"):
    read("qa", [], [], pair="b")
  with pytest.raises(UserError, match="data.rename has 'tag'.* did you mean 'tags'"):
    read("tokens", [], [], tag="b")
  for objective, name in (("classify", "text"), ("regression", "label"), ("qa", "context")):
    with pytest.raises(UserError, match=rf"rename of '{name}' is \['a', 'b'\], expected one c"):
      read(objective, [QA], **{name: ["a", "b"]})


def test_names_and_numbers_of_labels():
  assert labels.names(["b", "a", "b"], None) == ["a", "b"]
  assert labels.names(["10", "9", 1.0], None) == ["1", "9", "10"]
  assert labels.names([], ["z", "a"]) == ["z", "a"]
  assert labels.index("pos", ["neg", "pos"]) == labels.index(1, ["neg", "pos"]) == 1
  assert labels.index("1", ["neg", "pos"]) == 1 and labels.index(5.0, ["1", "5"]) == 1
  for wrong in (2, -1, "2"):
    with pytest.raises(UserError, match="is not in the set; valid choices: neg, pos"):
      labels.index(wrong, ["neg", "pos"])
  with pytest.raises(UserError, match="the label 'pso' is not in the set; did you mean 'pos'"):
    labels.index("pso", ["neg", "pos"])
  with pytest.raises(UserError, match="the label 0 is not in the set"):
    labels.index(0, ["1", "2"])  # a name that is a number is meant by it
  with pytest.raises(UserError, match="the label 1 is a number, expected one of the names"):
    labels.index(1, ["neg", "pos"], numbered=False)
  with pytest.raises(UserError, match="only one label, 'a', expected two or more: set data.labels"):
    labels.names(["a", "a"], None)
  with pytest.raises(UserError, match="data.labels names 'a' twice"):
    labels.names([], ["a", "b", "a"])


def test_mixed_encodings_are_refused_with_their_line(write):
  lines = '{"text": "né", "label": 1}\n'.encode() + '{"text": "né", "label": 0}\n'.encode("latin-1")
  with pytest.raises(UserError, match=r"mixed.jsonl:2: not UTF-8 text"):
    sources.read(write("mixed.jsonl", lines))
  with pytest.raises(UserError, match=r"mixed.csv:3: not UTF-8 text"):
    sources.read(write("mixed.csv", "text,label\nné,1\n".encode() + "né,0\n".encode("latin-1")))


def test_texts_by_templates_that_loop(monkeypatch):
  rows = [{"words": ["a", "b"], "label": "x"}, {"label": "y"}, {"words": ["c"], "label": "y"}]
  where = ["f:1", "f:2", "f:3"]
  source = "{% for word in words %}{{ word | upper }}{% endfor %}"
  examples, skipped = read("classify", rows, where, malformed="skip", text=source)
  assert [one.row["text"] for one in examples] == ["AB", "C"] and skipped == {"malformed": 1}
  with pytest.raises(UserError, match="f:2: column 'words' is missing"):
    read("classify", rows, where, text=source)
  monkeypatch.setattr(confined, "OUTPUT", -1000)
  with pytest.raises(
    UserError, match="f:1: the template wrote more than"
  ):  # though others would not
    read("classify", rows, where, malformed="skip", text=source)
