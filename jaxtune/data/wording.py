"""Conversations to text: finds the chat template of a tokenizer, and renders it in `confined`."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

from jaxtune import schema
from jaxtune.data import confined, conversations
from jaxtune.data.templates import sandbox
from jaxtune.data.tokenizer import Tokenizer
from jaxtune.errors import UserError, nearest

# For tokenizers without a template: a line with the role, then the text.
PLAIN = (
  "{% for message in messages %}{{ message.role | capitalize }}:{{ '\\n' }}"
  "{{ message.content | trim }}{% if message.role == 'assistant' %}{{ eos_token }}{% endif %}"
  "{{ '\\n' }}{% endfor %}{% if add_generation_prompt %}Assistant:{{ '\\n' }}{% endif %}"
)
_BOS = "{{ bos_token }}"


class Job(NamedTuple):
  """A conversation, and which prefixes of it are to be rendered.

  Attributes:
    prefixes: for each, how many turns, and whether the prompt of the next turn follows them.
  """

  turns: list[dict]
  tools: list | None
  prefixes: list[tuple[int, bool]]


def template(tokenizer: Tokenizer, name: str | None = None, tools: bool = False) -> str:
  """Returns a chat template.

  Args:
    name: None for the tokenizer's own, the name of one if the tokenizer has several, "plain" for
      `PLAIN`, a file, or Jinja text.
    tools: whether it is for conversations with tools. A tokenizer may have another one for these.
  """
  own = getattr(tokenizer, "chat_template", None)
  named = own if isinstance(own, dict) else {}
  if named and name is None:
    name = "tool_use" if tools and "tool_use" in named else "default"
    if name not in named:
      raise UserError(
        "the tokenizer has several chat templates and none is the default: set data.chat_template "
        f"to the name of one; {nearest('', named)}"
      )
  own = named.get(name, own)
  if name is None or name in named:
    if not own:
      raise UserError(
        "the tokenizer has no chat template: set `tokenizer.chat_template`, or data.chat_template "
        "to a file, a Jinja string or 'plain'"
      )
    schema.check("the tokenizer's chat template", own, str)
    return own
  if name == "plain":
    first = tokenizer("a").input_ids[:1]
    starts = tokenizer.bos_token_id is not None and first == [tokenizer.bos_token_id]
    return _BOS * starts + PLAIN
  if sandbox.is_template(name):
    return name
  path = os.path.expanduser(name)
  if not os.path.isfile(path):
    raise UserError(
      f"data.chat_template is {name!r}, expected a file, Jinja or a name; "
      f"{nearest(name, ['plain', *named])}"
    )
  return sandbox.read_text(path)


def sources(tokenizer: Tokenizer, name: str | None) -> tuple[str, str]:
  """Returns the template for conversations without tools, and the one for those with tools."""
  return template(tokenizer, name), template(tokenizer, name, tools=True)


def special(tokenizer: Tokenizer) -> dict[int, str]:
  """Returns the special tokens by id, which no text of a conversation may hold."""
  marks = {
    id: token.content for id, token in tokenizer.added_tokens_decoder.items() if token.special
  }
  marks |= dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
  unknown = tokenizer.unk_token_id  # ordinary text becomes this one too; of GPT-2 it is also eos
  if unknown not in (tokenizer.bos_token_id, tokenizer.eos_token_id):
    marks.pop(unknown, None)
  return marks


def job(row: dict, marks: Collection[str], turns: str | None) -> Job:
  """Checks a conversation and lists the prefixes of it that are to be rendered.

  Args:
    marks: the special tokens, which no text of its turns and tools may hold.
    turns: "all" to render the prompt of each answer and the text up to its end, "last" to render
      those of the last answer, None to render the prompt of the answer that is to come.
  """
  conversation, tools = conversations.turns(row, answered=turns is not None), row.get("tools")
  if tools is not None and not isinstance(tools, list):
    raise UserError(f"tools holds {type(tools).__name__}, expected a list")
  named = {f"turn {number}": turn for number, turn in enumerate(conversation, 1)}
  for place, value in (named | {"tools": tools}).items():
    text = "\0".join(_texts(value))
    if held := [mark for mark in marks if mark in text]:
      raise UserError(
        f"{place}: the text holds the special token {held[0]!r}, which would end or forge a "
        "turn: take it out, or set data.malformed='skip'"
      )
  if turns is None:
    return Job(conversation, tools or None, [(len(conversation), True)])
  numbers = [n for n, turn in enumerate(conversation, 1) if turn["role"] == "assistant"]
  numbers = numbers if turns == "all" else numbers[-1:]
  if not any(conversation[n - 1].get("weight", 1) for n in numbers):
    raise UserError("no turn to train on: every assistant's has weight 0")
  prefixes = [prefix for n in numbers for prefix in ((n - 1, True), (n, False))]
  return Job(conversation, tools or None, prefixes)


def _texts(value: Any) -> Iterator[str]:
  """Yields all texts in a value as JSON has them, the names of its entries too."""
  if isinstance(value, str):
    yield value
  elif isinstance(value, dict | list | tuple):
    for part in value.items() if isinstance(value, dict) else value:
      yield from _texts(part)


def render(
  tokenizer: Tokenizer,
  sources: tuple[str, str],
  jobs: Sequence[Job | UserError],
  where: Sequence[str],
) -> Iterator[list[str] | UserError]:
  """Yields the texts of every job, or a UserError that names its place.

  Raises:
    UserError: if the template exceeds a limit; see `confined`.
  """
  from jaxtune.data.speaker import speaker

  good = [tuple(job) for job in jobs if isinstance(job, Job)]
  plain = {PLAIN, _BOS + PLAIN}.issuperset(sources)
  results = confined.each(speaker, good, sources, dict(tokenizer.special_tokens_map), here=plain)
  for job, place in zip(jobs, where, strict=True):
    result = job if isinstance(job, UserError) else next(results)
    if isinstance(result, confined.Exceeded):
      raise UserError(f"{place}: {result}")
    if isinstance(result, UserError):
      yield UserError(f"{place}: {result}")
    else:
      yield [result[-1][:text] if isinstance(text, int) else text for text in result]
