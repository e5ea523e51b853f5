"""Pairs of answers: from ratings and rankings, apart by prompt, by templates, and as two texts."""

from __future__ import annotations

import collections

import numpy as np
import pytest
from support.reading import read

from jaxtune import data, objectives
from jaxtune.data import DataOptions, EncodeOptions
from jaxtune.errors import UserError


def load(tokenizer, objective="dpo", **options):
  return data.load(tokenizer, objectives.module(objective), DataOptions(**options))


def rated(prompt, scores, column="ratings", **more):
  answers = [f"answer {n} to {prompt}" for n in range(len(scores))]
  return {"prompt": prompt, "completions": answers, column: scores} | more


@pytest.mark.parametrize("column, scores", [("ratings", [2, 5.5, 2, 1]), ("ranking", [2, 1, 2, 5])])
def test_every_two_answers_that_differ_are_a_pair(column, scores):
  better = (lambda a, b: a - b) if column == "ratings" else (lambda a, b: b - a)
  examples, skipped = read("reward", [rated("q\n", scores, column)])
  found = {
    tuple(int(answer.split()[1]) for answer in one.choices): one.difference for one in examples
  }
  assert len(found) == len(examples) == 6 and not skipped
  for (chosen, rejected), difference in found.items():
    assert difference == better(scores[chosen], scores[rejected]) >= 0
  assert found[0, 2] == 0
  assert {one.prompt for one in examples} == {"q\n"}


def test_conversations_are_rated_too():
  turn = lambda role, content: {"role": role, "content": content}
  row = {
    "prompt": [turn("user", "hi")],
    "completions": [[turn("assistant", text)] for text in ("good", "bad")],
    "ranking": [2, 1],
  }
  (pair,), _ = read("dpo", [row])
  assert pair.choices == ("bad", "good") and pair.conversation and pair.key == "user: hi"
  assert pair.row["rejected"]["messages"] == [turn("user", "hi"), turn("assistant", "good")]


def test_a_text_as_prompt_beside_conversations_is_there_twice_or_their_first_turn():
  turns = lambda *texts: [
    {"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)
  ]
  whole = {"prompt": "hi", "chosen": turns("hi", "good"), "rejected": turns("hi", "bad")}
  alone = whole | {"chosen": turns("hi", "good")[1:], "rejected": turns("hi", "bad")[1:]}
  for row in (whole, alone):
    (pair,), _ = read("dpo", [row])
    assert pair.choices == ("good", "bad") and pair.prompt == "user: hi"
  with pytest.raises(UserError, match="f:1: prompt is a list of turns, and chosen .* are texts"):
    read("dpo", [{"prompt": turns("hi"), "chosen": "good", "rejected": "bad"}])


@pytest.mark.parametrize(
  "objective, row, rows",
  [
    ("reward", rated("q", [1, 2, 3]), [0, 0, 0, 1, 1, 1]),
    ("kto", {"prompt": "q\n", "chosen": "a", "rejected": "b"}, [0, 0, 1, 1]),
    ("dpo", {"prompt": "q\n", "chosen": "a", "rejected": "b"}, [0, 1]),
  ],
)
def test_answers_to_a_prompt_are_drawn_as_a_whole(tokenizer, objective, row, rows):
  examples, _ = read(objective, [row, row | {"prompt": "other\n"}])
  split, _ = objectives.module(objective).encode(tokenizer, examples, EncodeOptions())
  found = split.units([1, len(rows) - 1])
  assert found["rows"].tolist() == rows and found["predictions"].tolist() == [rows[1], rows[-1]]


@pytest.mark.parametrize("objective", ["dpo", "kto"])
def test_no_template_words_conversations(write, tokenizer, objective):
  says = lambda text: [{"role": "assistant", "content": text}]
  path = write("f.jsonl", [{"prompt": "hi", "chosen": says("good"), "rejected": says("bad")}])
  with pytest.raises(UserError, match="'{{prompt}}', expected None for the conv.*f.jsonl"):
    load(tokenizer, objective, train=path, template="{{prompt}}")


@pytest.mark.parametrize("objective", ["dpo", "kto"])
def test_answers_may_be_calls_of_tools_which_the_template_sees(write, tokenizer, objective):
  call = lambda name: [{"role": "assistant", "content": None, "tool_calls": [{"name": name}]}]
  row = {
    "prompt": [{"role": "user", "content": "hi"}], "chosen": call("add"), "rejected": call("sub"),
    "tools": [{"name": "T"}], "source": "a",
  }  # fmt: skip
  source = (
    "{% for t in tools or [] %}{{ t.name }}{% endfor %}{% for m in messages %}"
    "[{{ m.content or m.tool_calls[0].name }}]</s>{% endfor %}"
  )
  train = write("f.jsonl", [row])
  split = load(tokenizer, objective, train=train, chat_template=source, tasks="source").train
  decode = lambda at, side: tokenizer.decode(
    split.arrays["tokens"][at, side][split.arrays["mask"][at, side]]
  )
  found = [decode(0, 0), decode(0, 1) if objective == "dpo" else decode(1, 0)]
  assert found == ["T[hi]</s>[add]</s>", "T[hi]</s>[sub]</s>"]
  assert split.tasks == ["a"] * len(split.where) and split.references[0] == ["[add]"]
  assert split.arrays["labels"].tolist() == ([0] if objective == "dpo" else [1, 0])


@pytest.mark.parametrize(
  "row, said",
  [
    (rated("q", [1]), "1 completions with 1 ratings, expected two or more with as many"),
    (rated("q", [1, 2]) | {"completions": ["a"] * 3}, "3 completions with 2 ratings"),
    (rated("q", [1, float("nan")]), "ratings holds nan, expected a number"),
    (rated("q", [1, True]), "ratings holds True, expected a number"),
    (rated("q", [0, 1], "ranking"), "ranking holds 0, expected a whole number from 1"),
    (rated("q", [1, 2]) | {"completions": "ab"}, "completions is str, expected a list"),
    (rated("q", [1, 1]) | {"completions": ["a", "a"]}, "all completions are the same answer"),
    (rated("q", [1, 2]) | {"completions": ["a", "a"]}, "are the same answer: leave the pair out"),
    (rated("q", [1, 2]) | {"completions": ["a", " "]}, "the chosen answer is empty"),
  ],
)
def test_a_malformed_rating_is_refused_or_skipped(row, said):
  good = rated("p", [1, 2], next(name for name in ("ratings", "ranking") if name in row))
  with pytest.raises(UserError, match=f"f:2: .*{said}"):
    read("dpo", [good, row])
  examples, skipped = read("dpo", [good, row], malformed="skip")
  assert [one.prompt for one in examples] == ["p"] and skipped == {"malformed": 1}


@pytest.mark.parametrize(
  "objective, column",
  [(objective, side) for objective in ("dpo", "kto") for side in ("chosen", "rejected")]
  + [("kto", "label")],
)
@pytest.mark.parametrize("asked", ["prompt", "instruction"])
def test_a_row_that_lacks_a_column_is_refused_or_skipped(objective, column, asked):
  answers = {"completion": "a", "output": "a", "label": True}
  good = {asked: "p"} | (answers if column == "label" else {"chosen": "a", "rejected": "b"})
  row = {name: value for name, value in good.items() if name != column}
  with pytest.raises(UserError, match=f"f:2: column '{column}' is missing"):
    read(objective, [good, row])
  with pytest.raises(UserError, match=f"f:2: column '{column}' holds null"):
    read(objective, [good, row | {column: None}])
  examples, skipped = read(objective, [good, row, good], malformed="skip")
  assert {one.where for one in examples} == {"f:1", "f:3"} and skipped == {"malformed": 1}


def test_completions_need_one_kind_of_score():
  with pytest.raises(UserError, match="completions come with neither ratings nor ranking"):
    read("dpo", [{"prompt": "q", "completions": ["a", "b"]}])
  with pytest.raises(UserError, match="with ratings and ranking, expected one list"):
    read("dpo", [rated("q", [1, 2], ranking=[1, 2])])


def prompts(split):
  return [tuple(prompt) for prompt in split.prompts]


@pytest.mark.parametrize("objective", ["dpo", "kto"])
@pytest.mark.parametrize("size", [0.3, 5])
def test_a_prompt_is_in_one_split_alone(write, tokenizer, objective, size):
  rows = [
    {"prompt": f"q{n % 20}\n", "chosen": f"good {n}", "rejected": f"bad {n}", "id": n}
    for n in range(60)
  ]
  one = load(tokenizer, objective, train=write("f.jsonl", rows), validation=size, test=0.2)
  found = [collections.Counter(prompts(split)) for split in one.splits.values()]
  assert len(found) == 3 and sum(found, collections.Counter()).total() == 60 * (
    2 if objective == "kto" else 1
  )
  for left, right in ((0, 1), (0, 2), (1, 2)):
    assert not found[left].keys() & found[right].keys()
  if objective == "kto":  # both thumbs of a pair are judged
    assert set(one.validation.arrays["labels"].tolist()) == {0, 1}


def test_all_pairs_of_ratings_are_drawn_together_and_ties_are_judged_alone(write, tokenizer):
  path = write("f.jsonl", [rated(f"q{n}\n", [1, 2, 2, 4]) for n in range(12)])
  one = load(tokenizer, train=path, validation=3)
  assert set(collections.Counter(prompts(one.validation)).values()) == {6}
  assert len(set(prompts(one.validation))) == 3
  assert set(collections.Counter(prompts(one.train)).values()) == {5}
  assert one.train.arrays["difference"].min() == 1
  assert one.train.arrays["difference"].dtype == np.float32
  assert (one.validation.arrays["difference"] == 0).sum() == 3
  counts = one.report["splits"]
  assert counts["train"]["skipped"] == {"ties": 9} and counts["train"]["read"] == 54
  assert counts["validation"]["ties"] == 3


def test_what_is_skipped_in_a_file_is_counted_in_train_alone(write, tokenizer):
  rows = [{"prompt": f"q{n}\n", "chosen": "yes", "rejected": "no"} for n in range(8)]
  path = write("f.jsonl", [*rows, rows[0] | {"rejected": "yes"}])
  one = load(tokenizer, train=path, validation=2, test=2, malformed="skip")
  report = one.report["splits"]
  found = {name: (counts["read"], counts["skipped"]) for name, counts in report.items()}
  assert found == {"train": (5, {"malformed": 1}), "validation": (2, {}), "test": (2, {})}


def test_the_reasons_for_which_pairs_are_skipped_are_those_of_their_texts(write, tokenizer):
  pair = lambda prompt, chosen: {"prompt": prompt, "chosen": chosen, "rejected": "no"}
  path = write("f.jsonl", [pair("ask\n", "yes"), pair("long ask\n", "yes"), pair("q\n", "y</s>")])
  options = {"train": path, "max_length": 9, "too_long": "truncate", "no_target": "skip"}
  with_eos = {"special_tokens": "allow"}
  counts = load(tokenizer, **options, **with_eos).report["splits"]["train"]
  assert counts["skipped"] == {"no_target": 1} and counts["special_tokens"] == {"eos": 1}
  mixture = load(tokenizer, tasks={"a": options | with_eos}).report["splits"]["train"]
  assert mixture["skipped"] == {"no_target": 1} and mixture["special_tokens"] == {"eos": 1}


def test_two_files_may_not_share_a_prompt(write, tokenizer):
  pair = lambda prompt, answer: {"prompt": prompt, "chosen": answer, "rejected": "no"}
  train = write("train.jsonl", [pair("A \n", "yes"), pair("b\n", "yes"), pair("a\n", "well")])
  test = write("test.jsonl", [pair("a\n", "fine")])
  with pytest.raises(UserError, match=r"2 examples of train are in test too: .*train.jsonl:1 = "):
    load(tokenizer, train=train, test=test)
  one = load(tokenizer, train=train, test=test, overlap="drop")
  assert [tokenizer.decode(prompt) for prompt in one.train.prompts] == ["b\n"]


@pytest.mark.parametrize("objective, each", [("dpo", 1), ("kto", 2)])
def test_each_epoch_draws_another_template_of_a_pair(write, tokenizer, objective, each):
  rows = [{"prompt": f"q{n}", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(8)]
  options = {
    "train": write("f.jsonl", rows), "validation": 2, "template": ["{{ prompt }}:", "{{ prompt }}?"]
  }  # fmt: skip
  plain = load(tokenizer, objective, **options)
  texts = [tokenizer.decode(prompt) for prompt in plain.train.prompts]
  assert len(texts) == 12 * each and {text[-1] for text in texts} == {":", "?"}
  held = [tokenizer.decode(prompt) for prompt in plain.validation.prompts]
  assert {text[-1] for text in held} == {":"}
  assert not {text[:-1] for text in held} & {text[:-1] for text in texts}
  train = load(tokenizer, objective, **options, resample=True).train
  words = lambda step: [
    tokenizer.decode(row[0][mask[0]])[:3]
    for batch in [data.batch(train, 0, step, 6 * each)]
    for row, mask in zip(batch["tokens"], batch["mask"], strict=True)
  ]
  first, second = words(0), words(1)
  assert sorted(text[:-1] for text in first) == sorted(text[:-1] for text in texts)[::2]
  assert sorted(first + second) == sorted(texts)


@pytest.mark.parametrize("objective", ["dpo", "kto"])
def test_the_prompt_of_a_template_with_an_answer_is_asked(write, tokenizer, objective):
  row = {"sentence": "so so", "chosen": "both", "rejected": "none"}
  theirs = "{templates: {1: !Template {name: ask, jinja: '{{ sentence }}? ||| {{ said }}'}}}"
  given = {"train": write("f.jsonl", [row]), "rename": {"said": "chosen"}}
  given["template"] = ("sentiment/specific", write("own.yaml", theirs) + ":ask")
  split = load(tokenizer, objective, **given).train
  asked = "Is the opinion in this sentence negative or positive?\nSentence: so so\nOpinion:\n"
  assert set(map(tokenizer.decode, split.prompts)) == {asked, "so so?\n"}
  for key in ("answer", "text"):
    with pytest.raises(UserError, match=f"data.{key} is 'chosen', expected none: the answers of p"):
      load(tokenizer, objective, **given | {key: "chosen"})


def test_a_thumb_s_other_answer_belongs_to_another_prompt(tokenizer):
  rows = [{"prompt": f"q{n}\n", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(3)]
  examples, _ = read("kto", rows)
  split, _ = objectives.module("kto").encode(tokenizer, examples, EncodeOptions())
  text = lambda at, side: tokenizer.decode(split.arrays["tokens"][at, side])
  for at in range(split.examples):
    mine, other = text(at, 0)[:2], text(at, 1)
    assert mine in other and mine[1] not in other.split()[-1]


@pytest.mark.parametrize("policy", ["error", "skip"])
def test_a_thumb_is_kept_though_the_other_answer_is_too_long_or_has_no_token(tokenizer, policy):
  rows = [
    {"prompt": "long prompt\n", "completion": "a", "label": True},
    {"prompt": "q\n", "completion": "long answer", "label": True},
  ]
  options = EncodeOptions(max_length=16, too_long=policy)
  encode = objectives.module("kto").encode
  split, counts = encode(tokenizer, read("kto", rows)[0], options)
  assert counts["kept"] == 2 and counts["truncated"] == 0 and not counts["skipped"]
  assert tokenizer.decode(split.arrays["tokens"][0, 1]) == "long prompt\nlong"
  if policy == "skip":
    rows.append({"prompt": "r\n", "completion": "x" * 20, "label": False})
    split, counts = encode(tokenizer, read("kto", rows)[0], options)
    assert counts["skipped"] == {"too_long": 1} and counts["classes"] == {"down": 0, "up": 2}
    assert "x" not in tokenizer.decode(split.arrays["tokens"][1, 1])


def test_thumbs_are_up_in_many_forms():
  labels = (True, 1, 1.0, "up", "True", "1", False, 0, 0.0, "down", "false")
  rows = [{"prompt": f"q{n}", "completion": "a", "label": label} for n, label in enumerate(labels)]
  examples, _ = read("kto", rows)
  assert [example.choices for example in examples] == [("up",)] * 6 + [("down",)] * 5
  with pytest.raises(UserError, match="the label is 0.5, expected true or false"):
    read("kto", [rows[0] | {"label": 0.5}])


def test_an_encoder_reads_prompt_and_answer_as_two_texts(wordpiece):
  row = {"prompt": "a b", "chosen": "b", "rejected": "a b"}
  examples, _ = read("reward", [row])
  split, counts = objectives.module("reward").encode(wordpiece, examples, EncodeOptions())
  for side, answer in enumerate(("b", "a b")):
    known = wordpiece("a b", answer)
    real = split.arrays["mask"][0, side]
    assert split.arrays["tokens"][0, side][real].tolist() == known["input_ids"]
    assert split.arrays["types"][0, side][real].tolist() == known["token_type_ids"]
    assert split.arrays["weights"][0, side][real].tolist() == known["token_type_ids"]
  assert counts["longer_chosen"] == 0 and split.choices == [["b", "a b"]]
