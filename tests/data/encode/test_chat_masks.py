"""Which tokens are trained, over conversations at random, against spans of characters."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.chat_tokenizers import make

from jaxtune.data import EncodeOptions, conversations
from jaxtune.data.encode import chat
from jaxtune.errors import UserError

HEADERS = (
  "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
  "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
TEMPLATES = {
  "headers": HEADERS,
  "a system of its own": (
    "{% if messages[0].role != 'system' %}<|start|>system\nhello<|end|>\n{% endif %}" + HEADERS
  ),
  "tools": (
    "{{ bos_token }}{% if tools %}<|text|>{{ tools | tojson }}<|text|>{% endif %}" + HEADERS
  ),
  "trims": HEADERS.replace("m.content", "m.content | trim"),
  "brackets": (
    "{% if messages[0].role == 'system' %}{% set first = messages[0].content + '\n\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set first = '' %}{% set rest = messages %}"
    "{% endif %}{% for m in rest %}{% if m.role == 'user' %}{{ bos_token }}[ASK] "
    "{{ (first if loop.first else '') + m.content | trim }} [/ASK]{% else %}"
    " {{ m.content | trim }} {{ eos_token }}{% endif %}{% endfor %}"
  ),
}


def headers(turns, trim=False):
  for turn in turns:
    text = turn["content"].strip() if trim else turn["content"]
    yield f"<|start|>{turn['role']}\n", False
    yield f"{text}<|end|>", turn["role"] == "assistant" and turn.get("weight", 1)
    yield "\n", False


def brackets(turns):
  system = turns[0]["content"] + "\n\n" if turns[0]["role"] == "system" else ""
  for number, turn in enumerate(turns[bool(system) :]):
    if turn["role"] == "user":
      yield f"<s>[ASK] {system if not number else ''}{turn['content'].strip()} [/ASK]", False
    else:
      yield f" {turn['content'].strip()} </s>", turn.get("weight", 1)


def pieces(name, row):
  """Writes a conversation as the template should: pieces of text, and whether each is trained."""
  turns, tools = row["messages"], row.get("tools")
  if name == "brackets":
    return list(brackets(turns))
  before = {
    "a system of its own": "<|start|>system\nhello<|end|>\n" * (turns[0]["role"] != "system"),
    "tools": "<s>" + (f"<|text|>{json.dumps(tools, ensure_ascii=False)}<|text|>" if tools else ""),
  }.get(name, "")
  return [(before, False), *headers(turns, name == "trims")]


PARTS = [
  "hello",
  "assistant",
  "sum",
  "é",
  "漢字",
  "🙂",
  "4",
  ".",
  " ",
  "  ",
  "\n",
  "\n\n",
  "\t",
  "[",
  "|",
]
TEXTS = st.lists(st.sampled_from(PARTS), min_size=1, max_size=6).map("".join)
SAID = TEXTS.filter(str.strip)


@st.composite
def rows(draw):
  turns = [{"role": "system", "content": draw(TEXTS)}] if draw(st.booleans()) else []
  for _ in range(draw(st.integers(1, 3))):
    turns.append({"role": "user", "content": draw(SAID)})
    turns.append({"role": "assistant", "content": draw(SAID)})
    if draw(st.integers(0, 3)) == 0:
      turns[-1]["weight"] = 0
  tools = {"tools": [{"name": draw(SAID)}]} if draw(st.booleans()) else {}
  return {"messages": turns} | tools


@pytest.fixture(scope="module", params=["bytes", "spaces"])
def talker(request):
  return make(request.param)


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(row=rows())
def test_what_is_trained(talker, name, row):
  options = {"chat_template": TEMPLATES[name]}
  found = pieces(name, row)
  text = "".join(piece for piece, _ in found)
  coded = talker(text, add_special_tokens=False, return_offsets_mapping=True)
  spans, at = [], 0
  for piece, trained in found:
    spans += [(at, at + len(piece))] if trained else []
    at += len(piece)
  inside = [any(a <= start < b for a, b in spans) for start, _ in coded["offset_mapping"]]
  ask = lambda turns, **more: talker.apply_chat_template(
    turns, tools=row.get("tools"), **options, **more
  )
  assert ask(row["messages"])["input_ids"] == coded["input_ids"]
  prompt = ask(row["messages"][:-1], add_generation_prompt=True)["input_ids"]
  assert chat.prompts(talker, [row | {"messages": row["messages"][:-1]}], **options) == [prompt]
  begins = all(
    coded["input_ids"][: len(ids)] == ids
    for n, turn in enumerate(row["messages"])
    if turn["role"] == "assistant" and turn.get("weight", 1)
    for ids in [ask(row["messages"][:n], add_generation_prompt=True)["input_ids"]]
  )
  examples, _ = conversations.read([row], ["f.jsonl:1"])
  if not begins or not spans:
    with pytest.raises(UserError, match="f.jsonl:1: (turn|no turn)"):
      chat.encode(talker, examples, EncodeOptions(**options))
    return
  split, counts = chat.encode(talker, examples, EncodeOptions(**options))
  length = len(inside)  # what follows is padding
  assert split.arrays["tokens"][0, :length].tolist() == coded["input_ids"]
  assert split.arrays["weights"][0, :length].tolist() == inside
  assert split.arrays["mask"][0].sum() == length and not split.arrays["weights"][0, length:].any()
  assert split.prompts == [prompt] and counts["turns"] == len(spans)
  stop = "</s>" if name == "brackets" else "<|end|>"
  assert counts["stop_tokens"] == [talker.convert_tokens_to_ids(stop)]
