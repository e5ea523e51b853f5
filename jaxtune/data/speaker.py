"""What `confined` runs for `wording`: a conversation becomes text as transformers renders it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from transformers import PreTrainedTokenizerBase

from jaxtune.data import confined
from jaxtune.errors import UserError


def speaker(
  sources: tuple[str, str], tokens: Mapping
) -> Callable[[tuple[list, list | None, list]], list]:
  """Makes the function of a conversation that renders prefixes of it.

  Args:
    sources: the template, and the one for conversations with tools.
    tokens: the special tokens, which templates read by their names.

  Returns:
    (turns, tools, prefixes) -> texts; a prefix is (how many turns, whether the prompt of the next
    one follows). A text with which the last one begins is given by its length: histories are long.
  """
  tokenizer = PreTrainedTokenizerBase()

  def render(turns: list, tools: list | None, prompt: bool) -> str:
    try:
      text = tokenizer.apply_chat_template(
        turns, tools=tools, chat_template=sources[bool(tools)], tokenize=False,
        add_generation_prompt=prompt, **tokens,
      )  # fmt: skip
      text.encode()
      return text
    except MemoryError:
      raise
    except Exception as error:  # a template may fail in any way that Jinja and Python can
      raise UserError(
        f"turn {len(turns)}: the chat template fails on it: {confined.said(error)}"
      ) from error

  def run(item: tuple[list, list | None, list]) -> list[str | int]:
    turns, tools, prefixes = item
    texts = [render(turns[:count], tools, prompt) for count, prompt in prefixes]
    *before, last = texts
    return [len(text) if last.startswith(text) else text for text in before] + [last]

  return run
