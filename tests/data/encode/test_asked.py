"""Prompts that a policy answers itself: an answer that is there is a reference, and no more."""

from __future__ import annotations

import pytest
from support.reading import read

from jaxtune import objectives
from jaxtune.data import DataOptions, EncodeOptions, load, sources
from jaxtune.data.encode import asked
from jaxtune.errors import UserError

ROWS = [
  {"prompt": "short?", "completion": "a worked solution " * 9},
  {"prompt": "a longer question?", "completion": "."},
  {"prompt": "none?", "completion": ""},
]


def test_only_the_prompt_has_to_fit(tokenizer):
  examples, _ = read("grpo", ROWS)
  split, counts = asked.encode(tokenizer, examples, EncodeOptions(max_length=10, too_long="skip"))
  assert counts["kept"] == 2 and counts["skipped"] == {"too_long": 1}
  assert list(map(tokenizer.decode, split.prompts)) == ["short?", "none?"]
  assert split.references == [[ROWS[0]["completion"]], [""]] and split.where == ["f:1", "f:3"]
  assert split.arrays["example"].tolist() == [0, 1]
  with pytest.raises(UserError, match="f:2: 18 tokens, more than max_length=10"):
    asked.encode(tokenizer, examples, EncodeOptions(max_length=10))
  split, _ = asked.encode(tokenizer, examples, EncodeOptions(max_length=18))
  assert split.references[1] == ["."] and split.arrays["mask"].sum(1).tolist() == [6, 18, 5]


def test_a_conversation_s_last_turn_need_not_fit(tokenizer):
  source = "{% for m in messages %}[{{ m.content }}]{{ '</s>' * (loop.index - 1) }}{% endfor %}"
  turns = [{"role": "user", "content": "ask"}, {"role": "assistant", "content": "x" * 50}]
  examples, _ = read("grpo", [{"messages": turns}])
  options = EncodeOptions(max_length=8, chat_template=source)
  split, _ = asked.encode(tokenizer, examples, options)
  assert tokenizer.decode(split.prompts[0]) == "[ask]" and split.references == [["x" * 50]]


def test_a_conversation_may_end_in_the_question(tokenizer):
  source = "{% for m in messages %}[{{ m.content }}]{{ '</s>' * (loop.index - 1) }}{% endfor %}"
  rows = [
    {"conversations": [{"from": "human", "value": "ask"}]},
    {"conversations": [{"from": "human", "value": "more"}, {"from": "gpt", "value": "said"}]},
  ]
  examples, _ = read("grpo", rows)
  split, _ = asked.encode(tokenizer, examples, EncodeOptions(chat_template=source))
  assert list(map(tokenizer.decode, split.prompts)) == ["[ask]", "[more]"]
  assert split.references == [[""], ["said"]] and split.rows[0] is rows[0]
  system = {"messages": [{"role": "system", "content": "be"}]}
  with pytest.raises(UserError, match="last turn is 'system', expected 'assistant' or 'user' or"):
    read("grpo", [system])


def test_a_prompt_is_in_one_split_alone_whatever_its_answer(write, tokenizer):
  run = lambda **options: load(tokenizer, objectives.module("grpo"), DataOptions(**options))
  files = {"train": write("train.jsonl", [{"prompt": "2+2?"}, {"prompt": "1+1?"}])}
  files["test"] = write("test.jsonl", [{"prompt": "2+2? ", "completion": "4"}])
  with pytest.raises(UserError, match="1 examples of train are in test too: .*train.jsonl:1 = "):
    run(**files)
  assert run(**files, overlap="drop").train.where == [f"{files['train']}:2"]
  rows = [{"prompt": f"{n % 12}?", "completion": f"{n}"} for n in range(24)]
  splits = run(train=write("f.jsonl", rows), test=4).splits
  train, test = (set(map(tokenizer.decode, split.prompts)) for split in splits.values())
  assert len(train) + len(test) == 12 and not train & test


def test_a_template_needs_no_answer():
  table = sources.Table([{"q": "why"}], ["f:1"], {})
  options = DataOptions(train="f", template=["{{ q }}?", "{{ q }}!"])
  found = objectives.module("ppo").read(table, "train", options)
  assert [(one.prompt, one.answers) for one in found.groups[0]] == [("why?", [""]), ("why!", [""])]
