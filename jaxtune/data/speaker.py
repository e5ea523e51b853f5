"""Renders conversations as transformers does, in the process of `confined`.

This is a module of its own so that the process has imported transformers, which takes seconds,
before it starts to measure the time of a template.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime

from transformers import PreTrainedTokenizerBase
from transformers.utils import chat_template_utils

from jaxtune.data import confined
from jaxtune.errors import UserError

# What templates get for today from `strftime_now`, so that a run has the same tokens on every day.
# It is the date that Llama 3.2's template writes where it does not know today's.
TODAY = datetime(2024, 7, 26)


def speaker(sources: tuple[str, str], tokens: Mapping) -> Callable[[tuple], list[str | int]]:
  """Makes the function that renders the prefixes of a `wording.Job`, given as a tuple.

  Args:
    sources: the template, and the one for conversations with tools.
    tokens: the special tokens, which templates read by their names.

  Returns:
    (turns, tools, prefixes) -> texts. A text that is the beginning of the last one is given by its
    length, since histories are long.
  """
  tokenizer = PreTrainedTokenizerBase()

  def render(turns: list, tools: list | None, prompt: bool) -> str:
    source = sources[bool(tools)]
    try:
      compiled = chat_template_utils._compile_jinja_template(source)  # it keeps what it compiled
      compiled.environment.globals["strftime_now"] = TODAY.strftime
      text = tokenizer.apply_chat_template(
        turns, tools=tools, chat_template=source, tokenize=False,
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

  def run(job: tuple[list, list | None, list]) -> list[str | int]:
    turns, tools, prefixes = job
    *before, last = [render(turns[:count], tools, prompt) for count, prompt in prefixes]
    return [len(text) if last.startswith(text) else text for text in before] + [last]

  return run
