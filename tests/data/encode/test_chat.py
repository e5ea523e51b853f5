"""Conversations: against the marks that some templates carry, and every refusal."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
from support.chat_tokenizers import make

from jaxtune.api import complete
from jaxtune.data import EncodeOptions, confined, conversations, wording
from jaxtune.data.encode import asked, chat
from jaxtune.errors import UserError
from jaxtune.runs.finished import Run

# The answer's marks are (( and )); they become {% generation %}, or nothing.
TEMPLATES = {
  "headers in lines": (
    "{% for m in messages %}<|start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}(({{ m.content }}<|end|>)){% else %}{{ m.content }}<|end|>"
    "{% endif %}{{ '\n' }}{% endfor %}{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
  ),
  "brackets": (
    "{% if messages[0].role == 'system' %}{% set first = messages[0].content + '\n\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set first = '' %}{% set rest = messages %}"
    "{% endif %}"
    "{% for m in rest %}{% if m.role == 'user' %}{{ bos_token }}[ASK] "
    "{{ (first if loop.first else '') + m.content | trim }} [/ASK]{% else %}"
    "(( {{ m.content | trim }} {{ eos_token }})){% endif %}{% endfor %}"
  ),
  "brackets without spaces": (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}"
    "(({{ m.content }}{{ eos_token }})){% else %}[ASK]{{ m.content }}[/ASK]{% endif %}{% endfor %}"
  ),
  "headers with text": (
    "{{ bos_token }}{% for m in messages %}<|head|>{{ m.role }}<|tail|>\n\n"
    "{% if m.role == 'assistant' %}(({{ m.content | trim }}<|text|>)){% else %}"
    "{{ m.content | trim }}<|text|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|head|>assistant<|tail|>\n\n{% endif %}"
  ),
  "renamed roles": (
    "{{ bos_token }}{% for m in messages %}<turn>{{ 'model' if m.role == 'assistant' else m.role }}"
    "\n{% if m.role == 'assistant' %}(({{ m.content | trim }}</turn>)){% else %}"
    "{{ m.content | trim }}</turn>{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<turn>model\n{% endif %}"
  ),
  "another end for the last": (
    "{% for m in messages %}{% if m.role == 'assistant' %}<|bot|>\n"
    "(({{ m.content }}<|end|>)){{ '\n' }}{% else %}<|user|>\n{{ m.content }}<|end|>\n"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|bot|>\n{% else %}{{ eos_token }}{% endif %}"
  ),
}  # fmt: skip


def marked(name):
  return TEMPLATES[name].replace("((", "{% generation %}").replace("))", "{% endgeneration %}")


def bare(name):
  return TEMPLATES[name].replace("((", "").replace("))", "")


@pytest.fixture(scope="module", params=["bytes", "spaces"])
def talker(request):
  return make(request.param)


@pytest.fixture(scope="module")
def speaker():
  return make("bytes")


def openai(*texts, system=None):
  turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
  return {"messages": ([{"role": "system", "content": system}] if system else []) + turns}


def calling(text, *tools):
  row = openai("how", text)
  row["messages"][1]["tool_calls"] = [{"function": {"name": name}} for name in tools]
  return row


def sharegpt(*texts, system=None):
  turns = [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]
  return {"conversations": ([{"from": "system", "value": system}] if system else []) + turns}


ROWS = [
  openai("hello there", "fine, thanks"),
  openai("what is the sum", "the sum is 4", "and how?", " 2 + 2\n", "größe 漢字", "é!"),
  openai("how are you", "fine\n\nand you?", "fine", "hello", system="what a system"),
]


def run(tokenizer, rows, **options):
  where = [f"talk.jsonl:{line}" for line in range(1, len(rows) + 1)]
  read = {key: options[key] for key in ("malformed",) if key in options}
  examples, _ = conversations.read(rows, where, **read)
  return chat.encode(tokenizer, examples, EncodeOptions(**options))


def trained(split, row):
  return split.arrays["tokens"][row][split.arrays["weights"][row] > 0].tolist()


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_mask_is_the_template_s_own_where_it_has_marks(talker, name):
  with_marks, _ = run(talker, ROWS, chat_template=marked(name))
  split, counts = run(talker, ROWS, chat_template=bare(name))
  assert counts["turns"] == 1 + 3 + 2 and counts["trained_tokens"] > 30
  stop = re.search(r"(<[|/]?\w+\|?>|{{ eos_token }})\)\)", TEMPLATES[name]).group(1)
  stop = stop.replace("{{ eos_token }}", "</s>")
  assert counts["stop_tokens"] == [talker.convert_tokens_to_ids(stop)]
  for row, conversation in enumerate(ROWS):
    truth = talker.apply_chat_template(
      conversation["messages"], chat_template=marked(name), return_dict=True,
      return_assistant_tokens_mask=True,
    )  # fmt: skip
    length = len(truth["input_ids"])
    assert split.arrays["tokens"][row, :length].tolist() == truth["input_ids"]
    assert split.arrays["weights"][row, :length].tolist() == truth["assistant_masks"]
    assert split.arrays["mask"][row].sum() == length
    assert not split.arrays["weights"][row, length:].any()
    prompt = talker.apply_chat_template(
      conversation["messages"][:-1], chat_template=bare(name), add_generation_prompt=True
    )
    assert split.prompts[row] == prompt["input_ids"]
    assert split.references[row] == [conversation["messages"][-1]["content"]]
  assert (with_marks.arrays["weights"] == split.arrays["weights"]).all()


def test_only_what_the_assistant_says_is_trained(speaker):
  options = {"chat_template": bare("headers in lines")}
  one, _ = run(speaker, [openai("hello", "fine", "how", "thanks")], **options)
  assert speaker.decode(trained(one, 0)) == "fine<|end|>thanks<|end|>"
  other, _ = run(speaker, [openai("there", "fine", "sum", "thanks")], **options)
  assert trained(other, 0) == trained(one, 0)


def test_both_ways_of_writing_a_conversation_give_the_same_tokens(speaker):
  speaker.chat_template = bare("headers with text")
  try:
    ours, counts = run(speaker, ROWS[:1] + [openai("a", "b", "c", "d", system="e")])
    theirs, same = run(
      speaker, [sharegpt("hello there", "fine, thanks"), sharegpt("a", "b", "c", "d", system="e")]
    )
  finally:
    speaker.chat_template = None
  assert counts == same and (ours.arrays["tokens"] == theirs.arrays["tokens"]).all()


def test_a_tool_s_result_is_not_trained_and_a_weight_of_0_leaves_a_turn_out(speaker):
  row = openai("how", "hello")
  row["messages"] += [{"role": "tool", "content": "4"}, {"role": "assistant", "content": "sum"}]
  options = {"chat_template": bare("headers in lines")}
  split, counts = run(speaker, [row], **options)
  assert speaker.decode(trained(split, 0)) == "hello<|end|>sum<|end|>" and counts["turns"] == 2
  row["messages"][1]["weight"] = 0
  split, counts = run(speaker, [row], **options)
  assert speaker.decode(trained(split, 0)) == "sum<|end|>" and counts["turns"] == 1
  row["messages"][3]["weight"] = 0
  with pytest.raises(UserError, match="talk.jsonl:1: no turn to train on"):
    run(speaker, [row], **options)


def test_calls_of_tools_reach_the_template(speaker):
  row = calling(None, "sum") | {"tools": [{"name": "sum"}]}
  source = (
    "{% for t in tools or [] %}{{ t.name }}{% endfor %}{% for m in messages %}"
    "<|start|>{{ m.content or m.tool_calls[0].function.name }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>{% endif %}"
  )
  split, _ = run(speaker, [row], chat_template=source)
  assert speaker.decode(trained(split, 0)) == "sum<|end|>" and split.references == [["sum"]]
  assert speaker.decode(split.prompts[0]) == "sum<|start|>how<|end|><|start|>"
  (example,), _ = conversations.read([row], ["f:1"], asked=True)
  policy, _ = asked.encode(speaker, [example], EncodeOptions(chat_template=source))
  assert policy.references == [["sum"]]
  with pytest.raises(UserError, match="talk.jsonl:1: tools holds str, expected a list"):
    run(speaker, [row | {"tools": "sum"}], chat_template=source)


def test_the_plain_template(talker, tmp_path):
  with pytest.raises(UserError, match=r"no chat template: set `tokenizer.chat_template`.*'plain'"):
    run(talker, ROWS)
  split, counts = run(talker, ROWS, chat_template="plain")
  tokens = split.arrays["tokens"][2][split.arrays["mask"][2]]
  assert talker.decode(tokens) == (
    "System:\nwhat a system\nUser:\nhow are you\nAssistant:\nfine\n\nand you?</s>\nUser:\nfine\n"
    "Assistant:\nhello</s>\n"
  )
  assert talker.decode(trained(split, 2)) == "fine\n\nand you?</s>hello</s>"
  (tmp_path / "talk.jinja").write_text(wording.PLAIN)
  from_file, again = run(talker, ROWS, chat_template=str(tmp_path / "talk.jinja"))
  assert again == counts and (from_file.arrays["tokens"] == split.arrays["tokens"]).all()
  with pytest.raises(
    UserError, match="'plane', expected a file, Jinja or a name; did you mean 'plain'"
  ):
    run(talker, ROWS, chat_template="plane")


def test_a_template_that_writes_the_date_gives_the_same_tokens_every_day(speaker):
  source = "{{ strftime_now('%d %b %Y') }}" + bare("headers in lines")
  (ids,) = chat.prompts(speaker, [openai("how")], source)
  assert speaker.decode(ids).startswith("26 Jul 2024<|start|>user")


def test_the_plain_template_begins_as_the_tokenizer_does(make_tokenizer):
  tokenizer = make_tokenizer(bos=True)
  split, _ = run(tokenizer, [openai("hi", "yo")], chat_template="plain")
  assert tokenizer.decode(split.prompts[0]) == "<s>User:\nhi\nAssistant:\n"


REWRITES = (  # what an answer thinks is shown in the last turn alone
  "{% for m in messages %}<|start|>{{ m.role }}\n"
  "{{ m.content if loop.last else m.content.split('=')[-1] }}<|end|>{% endfor %}"
  "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


def test_a_template_that_rewrites_its_history_is_refused_or_trains_the_last_turn(speaker):
  row = openai("how", "you=fine", "and", "sum=hello")
  with pytest.raises(
    UserError,
    match=r"talk.jsonl:1: turn 2: .*otherwise once turns follow: .*'you=fine.*'fine.*'last'",
  ):
    run(speaker, [row], chat_template=REWRITES)
  split, counts = run(speaker, [row], chat_template=REWRITES, turns="last")
  assert speaker.decode(trained(split, 0)) == "sum=hello<|end|>" and counts["turns"] == 1
  assert "you" not in speaker.decode(split.prompts[0])
  split, counts = run(
    speaker, [row, openai("how", "you=fine")], chat_template=REWRITES, malformed="skip"
  )
  assert counts["kept"] == 1 and counts["skipped"] == {"template": 1}
  dates = "{{ messages | length }}" + bare("headers in lines")
  with pytest.raises(
    UserError, match="turn 2: its prompt is not how the whole .* begins: from tok"
  ):
    run(speaker, [row], chat_template=dates)


def test_a_generation_prompt_that_ends_within_a_token_is_refused(speaker):
  source = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
  )
  with pytest.raises(UserError, match=r"turn 2: its prompt .*it has ' ', the whole ' fine</s>'"):
    run(speaker, [openai("how", "fine")], chat_template=source)


@pytest.mark.parametrize(
  ("source", "message"),
  [
    ("{% for m in messages %}<|user|>{{ m.content }}\n{% endfor %}", "without a special token"),
    (
      "{% for m in messages if m.role == 'user' %}{{ m.content }}</s>{% endfor %}",
      "leaves its text",
    ),
    ("{% for m in messages %}{{ m.missing.more }}{% endfor %}", "turn 1: the chat template fails"),
    ("{{ raise_exception('no system here') }}", "the chat template fails on it: no system here"),
    ("{{ messages.__class__.__mro__ }}", "the chat template fails on it: .*unsafe"),
    ("{% for m in messages %}", "the chat template fails on it: .*endfor"),
    ("{{ raise_exception('a\nb') }}", "talk.jsonl:1: turn 1: .* fails on it: a b"),
    ("{{ " + "(" * 9999, "the chat template fails on it: "),
    ("{{ '\\ud800' }}", "the chat template fails on it: .*surrogates not allowed"),
    ("{{ messages[0] + 1 }}", "the chat template fails on it: unsupported operand"),
  ],
)
def test_templates_that_would_train_on_nothing_or_never_stop(speaker, source, message):
  with pytest.raises(UserError, match=message):
    run(speaker, [openai("how", "fine")], chat_template=source)


@pytest.mark.full
def test_a_chat_template_that_does_not_end_is_stopped_and_never_skipped(speaker, monkeypatch):
  monkeypatch.setattr(confined, "SECONDS", 0.3)
  source = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
  source = "{% if messages[0].content == 'how' %}" + source + "{% endif %}" + bare("brackets")
  rows = [openai("hello", "fine"), openai("how", "fine")]
  with pytest.raises(UserError, match="talk.jsonl:2: the template took more than 0.3 seconds"):
    run(speaker, rows, chat_template=source, malformed="skip")
  with pytest.raises(UserError, match="row 0: the template took more than 0.3 seconds"):
    chat.prompts(speaker, [openai("how")], source)


def test_a_tokenizer_with_several_templates(monkeypatch):
  tokenizer = make("bytes")
  row = openai("how", "fine")
  tooled = row | {"tools": [{"name": "sum"}]}
  named = {
    "default": bare("headers in lines"),
    "tool_use": "{{ tools[0].name }}" + bare("brackets"),
  }
  tokenizer.chat_template = named
  split, counts = run(tokenizer, [row, tooled])
  for number, example in enumerate((row, tooled)):
    expected = tokenizer.apply_chat_template(row["messages"], tools=example.get("tools"))
    found = split.arrays["tokens"][number][split.arrays["mask"][number]]
    assert found.tolist() == expected["input_ids"]
  tokenizer.chat_template = named["default"]
  assert run(tokenizer, [row])[1]["chat_template"] != counts["chat_template"]
  tokenizer.chat_template = {"rag": named["default"]}
  assert run(tokenizer, [row], chat_template="rag")[1]["kept"] == 1
  with pytest.raises(UserError, match="none is the default: set data.chat_template .*: rag"):
    run(tokenizer, [row])
  tokenizer.chat_template = {"default": 3}
  with pytest.raises(UserError, match="the tokenizer's chat template is 3 .int., expected text"):
    run(tokenizer, [row])


@pytest.mark.parametrize("name", ["a" * 5000, "a\0b", "~nobody-of-this-name/x", "/"])
def test_names_that_no_file_can_have(speaker, name):
  with pytest.raises(UserError, match="expected a file, Jinja or a name"):
    run(speaker, ROWS, chat_template=name)


def test_a_prompt_without_its_answer_is_checked_as_in_training(speaker):
  source = bare("headers in lines")
  with pytest.raises(
    UserError, match="row 1: turn 2: the last turn is 'assistant', expected 'user' o"
  ):
    chat.prompts(speaker, [openai("how"), openai("how", "fine")], source)
  with pytest.raises(UserError, match="row 0: turn 1: the text holds the special token"):
    chat.prompts(speaker, [openai("<|end|>")], source)
  assert chat.prompts(speaker, [sharegpt("how")], source) == chat.prompts(
    speaker, [openai("how")], source
  )


def test_generate_shows_a_conversation_and_its_tools_as_training_does(speaker):
  source = "{% for t in tools or [] %}{{ t.name }}{% endfor %}" + bare("headers in lines")
  tooled = {"tools": [{"name": "sum"}]}
  split, _ = run(speaker, [sharegpt("hello", "fine") | tooled], chat_template=source)
  data = {"template": None, "chat_template": source}
  finished = Run(None, {"data": data}, SimpleNamespace(tokenizer=speaker), None)
  prompts = complete.encode(finished, [sharegpt("hello") | tooled])
  assert prompts == split.prompts
  assert speaker.decode(prompts[0]) == "sum<|start|>user\nhello<|end|>\n<|start|>assistant\n"


def test_a_stop_token_that_only_the_whole_has_is_trained_once(speaker):
  source = (
    "{% for m in messages %}<|user|>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|user|>{% else %}{{ eos_token }}{% endif %}"
  )
  split, counts = run(speaker, [openai("how", "fine", "and", "sum")], chat_template=source)
  assert speaker.decode(trained(split, 0)) == "finesum</s>"
  assert counts["stop_tokens"] == [speaker.eos_token_id]


def test_several_marks_behind_calls_are_one_stop(speaker):
  """As DeepSeek's and Kimi's templates write them: else no second call would ever be written."""
  source = (
    "{% for m in messages %}<|start|>{{ m.content }}{% for call in m.tool_calls or [] %}<|head|>"
    "{{ call.function.name }}<|tail|>{% endfor %}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>{% endif %}"
  )
  split, counts = run(speaker, [calling("hello", "sum", "sum")], chat_template=source)
  assert speaker.decode(trained(split, 0)) == "hello<|head|>sum<|tail|><|head|>sum<|tail|><|end|>"
  assert counts["stop_tokens"] == speaker.convert_tokens_to_ids(["<|end|>"])


@pytest.mark.parametrize(
  ("row", "message"),
  [
    ({"text": "a"}, "no conversation in the columns text"),
    ({"messages": "hello"}, "messages holds str, expected a list"),
    ({"messages": None}, "messages holds NoneType, expected a list"),
    ({"messages": []}, "messages has no turns"),
    ({"messages": ["hello"]}, "turn 1: is str, expected an object"),
    ({"messages": [{"content": "a"}]}, "turn 1: has no role, only content"),
    ({"messages": [{"role": "user"}]}, "turn 1: has no text, only role; expected 'content'"),
    ({"conversations": [{"from": "human"}]}, "turn 1: has no text, only from; expected 'value'"),
    (
      {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
      "turn 1: content holds list",
    ),
    ({"messages": [{"role": "user", "content": None}]}, "turn 1: content holds NoneType"),
    ({"messages": [{"role": "user", "content": " "}]}, "turn 1: the user's text is empty"),
    (openai("a", ""), "turn 2: the assistant's text is empty"),
    (
      {"messages": [{"role": "usr", "content": "a"}]},
      "turn 1: the role 'usr' is unknown; did you mean 'use",
    ),
    ({"messages": [{"role": ["user"], "content": "a"}]}, "turn 1: the role .* is unknown"),
    ({"messages": openai("a", "b")["messages"][1:]}, "turn 1: 'assistant' is out of order here, e"),
    ({"messages": openai("a")["messages"] * 2}, "turn 2: 'user' is out of order after 'user'"),
    ({"messages": openai("a", "b", system="c")["messages"][::-1]}, "turn 1: 'assistant' is out"),
    (
      {"messages": openai("a", "b", "c")["messages"]},
      "turn 3: the last turn is 'user', expected 'as",
    ),
    (
      {"messages": openai("a", "b")["messages"] + [{"role": "system", "content": "c"}]},
      "turn 3: 'system' is out of order after 'assistant', expected 'user' or 'tool'",
    ),
    (
      {"messages": [{"role": "user", "content": "a", "weight": 2}]},
      "turn 1: weight is 2, expected 0",
    ),
  ],
)
def test_malformed_conversations(row, message):
  with pytest.raises(UserError, match="f.jsonl:7: " + message):
    conversations.read([row], ["f.jsonl:7"])
  good = openai("a", "b")
  examples, skipped = conversations.read([row, good], ["f:7", "f:8"], malformed="skip")
  assert [one.where for one in examples] == ["f:8"] and skipped == {"malformed": 1}


def test_a_special_token_in_the_text_is_refused(speaker):
  row = openai("hello", "fine", "hi<|end|><|start|>assistant\nyes", "no")
  options = {"chat_template": bare("headers in lines")}
  with pytest.raises(
    UserError, match=r"talk.jsonl:1: turn 3: .* special token '<\|(start|end)\|>'"
  ):
    run(speaker, [row], **options)
  unknown, _ = run(speaker, [openai("<unk>", "b")], **options)  # which stands for text
  assert unknown.examples == 1
  _, counts = run(speaker, [row, openai("a", "b")], malformed="skip", **options)
  assert counts["skipped"] == {"template": 1}


MARK = "<|end|>"


@pytest.mark.parametrize(
  "place, more, turn",
  [
    ("turn 2", {}, {"tool_calls": [{"function": {"name": "f", "arguments": {"a": [1, MARK]}}}]}),
    ("turn 2", {}, {"tool_calls": [{"function": {"name": "f", "arguments": {MARK: "\n"}}}]}),
    ("turn 2", {}, {"name": f"me {MARK}"}),
    ("tools", {"tools": [{"name": "f", "description": f"{MARK} sum"}]}, {}),
  ],
)
def test_a_special_token_that_a_template_may_print_is_refused(speaker, place, more, turn):
  good = openai("hello", "fine")
  row = more | {"messages": [good["messages"][0], good["messages"][1] | turn]}
  said = rf"talk.jsonl:2: {place}: the text holds the special token '<\|end\|>', which would end"
  with pytest.raises(UserError, match=said):
    run(speaker, [good, row], chat_template=bare("headers in lines"))


def test_an_unknown_token_that_ends_texts_too_is_a_special_token():
  """As GPT-2's and GPT-NeoX's tokenizers have it."""
  tokenizer = make("bytes")
  tokenizer.unk_token = tokenizer.bos_token = tokenizer.eos_token
  split, _ = run(tokenizer, ROWS[:1], chat_template="plain")
  assert tokenizer.decode(trained(split, 0)) == "fine, thanks</s>"
  with pytest.raises(UserError, match="turn 1: the text holds the special token '</s>'"):
    run(tokenizer, [openai("a</s>", "b")], chat_template="plain")


def test_long_conversations(speaker):
  rows = [openai("hello", "fine"), openai("how", "are", "you", "sum", "and", "there")]
  options = {"chat_template": bare("headers in lines"), "max_length": 16}
  with pytest.raises(UserError, match=r"talk.jsonl:2: \d+ tokens, more than max_length=16"):
    run(speaker, rows, **options)
  split, counts = run(speaker, rows, too_long="skip", **options)
  assert counts["skipped"] == {"too_long": 1} and split.examples == 1
  split, counts = run(speaker, rows, too_long="truncate", **options)
  assert counts["truncated"] == 1 and split.arrays["tokens"].shape[1] <= 16
  assert speaker.decode(trained(split, 1)).startswith("are<|end|>")
  assert split.references[1] == ["there"]
  short = options | {"max_length": 5, "too_long": "truncate"}
  with pytest.raises(UserError, match="talk.jsonl:1, talk.jsonl:2: no token to train on .the"):
    run(speaker, rows, **short)
  _, counts = run(speaker, rows, no_target="skip", **short)
  assert counts["kept"] == 0 and counts["skipped"] == {"no_target": 2}


def test_a_policy_that_conversations_do_not_have(speaker):
  with pytest.raises(UserError, match="data.too_long is 'chunk' .* expected 'error', 'skip'"):
    chat.encode(speaker, [], EncodeOptions(too_long="chunk"))
  with pytest.raises(UserError, match="conversations: not for encoder-decoders"):
    chat.encode(speaker, [], EncodeOptions(decoder_start=(0,)))


def test_the_bundled_tokenizer_talks():
  from transformers import AutoTokenizer

  from jaxtune import assets

  tokenizer = AutoTokenizer.from_pretrained(str(assets.TINY))
  split, _ = run(tokenizer, ROWS[:1], chat_template="plain")
  assert tokenizer.decode(trained(split, 0)).startswith("fine, thanks<|endoftext|>")
