"""Encodes conversations by a chat template; the assistant's turns are trained on.

To find the tokens of these turns, the conversation is rendered up to each of them, as inference
would render it, and the ids are compared. So the template needs no marks (`{% generation %}`). If
the prompt that inference sees is not how the whole conversation begins, no mask would be right, and
the conversation is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from jaxtune.data import padding, wording
from jaxtune.data.encode.shared import drop_untrained, in_batches, to_split
from jaxtune.data.options import EncodeOptions
from jaxtune.data.split import Split, counts
from jaxtune.data.templates import Example
from jaxtune.data.tokenizer import Tokenizer, token_ids
from jaxtune.errors import UserError

Result = TypeVar("Result")


class _Turn(NamedTuple):
  """An assistant's turn, and the ids of its prompt and of the conversation up to its end."""

  number: int
  trained: bool
  prompt: list[int]
  answered: list[int]


class _Item(NamedTuple):
  ids: list[int]
  trained: list[bool]
  prompt: list[int]
  stops: list[int]  # the tokens that end the trained turns
  turns: int
  example: Example


def encode(
  tokenizer: Tokenizer, examples: Sequence[Example], options: EncodeOptions
) -> tuple[Split, dict]:
  """Encodes conversations; the assistant's turns and the tokens that end them are trained on.

  The ids are those that `apply_chat_template` gives for the whole conversation.

  Args:
    examples: from `conversations.read`.
    options: turns="last" trains on the last turn alone, as a template needs that rewrites earlier
      turns; malformed is for conversations for which the template allows no right mask; too_long
      can be "skip" or "truncate", which cuts the end.

  Returns:
    The split, whose prompts end in the generation prompt of the last turn; and counts with "turns"
    (trained), "stop_tokens" (ids that end a turn, at which generation should stop) and
    "chat_template" (its sha256).

  Raises:
    UserError: with file and line, and with the turn that is wrong.
  """
  padding.check_too_long(options.too_long, ("skip", "truncate"))
  if options.decoder_start:
    raise UserError(
      "conversations: not for encoder-decoders, which are trained by 'sft' on prompts"
    )
  sources = wording.sources(tokenizer, options.chat_template)
  items, bad = [], 0
  for item in _encode(tokenizer, sources, examples, options.turns):
    if not isinstance(item, UserError):
      items.append(item)
    elif options.malformed == "error":
      raise item
    else:
      bad += 1
  long = padding.find_too_long(
    [len(item.ids) for item in items], [item.example.where for item in items], options
  )
  cut = options.too_long == "truncate"
  if cut:
    within = slice(options.max_length)
    items = [item._replace(ids=item.ids[within], trained=item.trained[within]) for item in items]
  else:
    out = {*long}
    items = [item for at, item in enumerate(items) if at not in out]
  items, empty = drop_untrained(items, [any(item.trained) for item in items], options)
  skipped = {"template": bad, "too_long": len(long) * (not cut), "no_target": empty}
  arrays = padding.pad_tokens(tokenizer, [item.ids for item in items], options.max_length)
  width = arrays["tokens"].shape[1]
  arrays["weights"] = padding.pad([item.trained for item in items], width, 0, np.float32)
  split = to_split(arrays, [item.example for item in items], [item.prompt for item in items])
  return split, counts(
    split, skipped, len(long) * cut,
    turns=sum(item.turns for item in items),
    stop_tokens=sorted({stop for item in items for stop in item.stops}),
    chat_template=hashlib.sha256("".join(dict.fromkeys(sources)).encode()).hexdigest(),
  )  # fmt: skip


def prompts(
  tokenizer: Tokenizer, rows: Sequence[dict], chat_template: str | None = None
) -> list[list[int]]:
  """Encodes what the model sees before it answers, just as `encode` does for training.

  Args:
    rows: conversations that end in a user's turn or in a tool's result, with `tools` or without.
    chat_template: see `wording.template`.
  """
  where, marks = [f"row {i}" for i in range(len(rows))], wording.special(tokenizer)
  jobs = [_attempt(wording.job, row, marks.values(), None) for row in rows]
  texts = []
  for result in wording.render(tokenizer, wording.sources(tokenizer, chat_template), jobs, where):
    if isinstance(result, UserError):
      raise result
    texts += result
  return token_ids(tokenizer, texts)


def _encode(
  tokenizer: Tokenizer, sources: tuple[str, str], examples: Sequence[Example], turns: str
) -> Iterator[_Item | UserError]:
  """Yields the tokens of every example, or the error that says what is wrong with it."""
  marks = wording.special(tokenizer)
  for batch in in_batches(examples):
    jobs = [_attempt(wording.job, example.row, marks.values(), turns) for example in batch]
    results = list(wording.render(tokenizer, sources, jobs, [example.where for example in batch]))
    texts = [text for texts in results if isinstance(texts, list) for text in texts]
    ids = iter(token_ids(tokenizer, texts))
    for example, job, result in zip(batch, jobs, results, strict=True):
      if isinstance(result, UserError):
        yield result
        continue
      numbers = [count for count, prompt in job.prefixes if not prompt]
      weights = [bool(job.turns[n - 1].get("weight", 1)) for n in numbers]
      answers = [_Turn(n, w, next(ids), next(ids)) for n, w in zip(numbers, weights, strict=True)]
      example = _as_written(tokenizer, example, job.turns[-1], answers[-1])
      yield _attempt(_mask, tokenizer, marks, example, answers)


def _attempt(function: Callable[..., Result], *args: Any) -> Result | UserError:
  try:
    return function(*args)
  except UserError as error:
    return error


def _as_written(tokenizer: Tokenizer, example: Example, said: dict, last: _Turn) -> Example:
  """Returns an example whose answer is as the template writes it, where it is more than a text.

  That is what a model learns to write: its calls of tools are compared with it.
  """
  if not any(said[key] for key in said.keys() - {"role", "content", "weight"}):
    return example
  ids = last.answered[_common_prefix_length(last.prompt, last.answered) :]
  return example._replace(answers=[tokenizer.decode(ids, skip_special_tokens=True).strip()])


def _mask(
  tokenizer: Tokenizer, marks: Collection[int], example: Example, turns: list[_Turn]
) -> _Item:
  """Finds each turn's tokens in the whole conversation, which is the last turn's `answered`."""
  whole = turns[-1].answered
  trained, stops = [False] * len(whole), []
  blank = lambda token: token in marks or not tokenizer.decode([token]).strip()
  for turn in turns:
    if not turn.trained:
      continue
    place = f"{example.where}: turn {turn.number}"
    begin, end = (
      _common_prefix_length(turn.prompt, whole),
      _common_prefix_length(turn.answered, whole),
    )
    if begin < len(turn.prompt):
      raise UserError(
        f"{place}: its prompt is not how the whole conversation begins: "
        f"{_describe_difference(tokenizer, turn.prompt, whole, begin)}; the template rewrites "
        "former turns (try data.turns='last'), or its generation prompt ends within a token"
      )
    if not all(map(blank, turn.answered[end:])):
      raise UserError(
        f"{place}: the template writes it otherwise once turns follow: "
        f"{_describe_difference(tokenizer, turn.answered, whole, end)}: try data.turns='last'"
      )
    if all(map(blank, whole[begin:end])):
      raise UserError(f"{place}: the template leaves its text out, so nothing would be trained on")
    stop = _stop(whole, begin, end, marks, blank)
    if stop is None and turn is turns[-1]:
      raise UserError(
        f"{place}: the template ends it without a special token, so the model would never learn to "
        "stop: let it end assistant turns in eos_token"
      )
    last = end if stop is None else stop + 1
    trained[begin:last] = [True] * (last - begin)
    stops += [] if stop is None else [whole[stop]]
  count = sum(turn.trained for turn in turns)
  return _Item(whole, trained, turns[-1].prompt, stops, count, example)


def _stop(
  whole: list[int], begin: int, end: int, marks: Collection[int], blank: Callable[[int], bool]
) -> int | None:
  """Finds the token that ends a turn: of the special ones after which no text follows, the first.

  Of several without a space between them, as behind a call of a tool, it is the last.
  """
  stop, last = None, end
  while end > begin and blank(whole[end - 1]):
    end -= 1
    stop = end if whole[end] in marks else stop
  while stop is not None and stop + 1 < last and whole[stop + 1] in marks:
    stop += 1
  return stop


def _common_prefix_length(left: Sequence[int], right: Sequence[int]) -> int:
  """Counts the tokens of the longest common beginning."""
  pairs = enumerate(zip(left, right, strict=False))
  return next((at for at, (a, b) in pairs if a != b), min(len(left), len(right)))


def _describe_difference(
  tokenizer: Tokenizer, alone: Sequence[int], whole: Sequence[int], at: int
) -> str:
  said = [repr(tokenizer.decode(ids[at : at + 8])) for ids in (alone, whole)]
  return f"from token {at + 1} on it has {said[0]}, the whole {said[1]}"
