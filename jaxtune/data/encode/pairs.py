"""Prompts with two answers each, of which people preferred one.

A row has the columns `chosen` and `rejected`, as texts or as lists of turns:

  prompt, chosen, rejected     an answer each, after a prompt of its own; or in place of `prompt`
                               any other column, by a template
  chosen, rejected             both with the prompt in front: texts that share their beginning up to
                               and with the last "Assistant:", or conversations that share all
                               turns but the last
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxtune.data import conversations, labels, reading
from jaxtune.data.encode import chat, text
from jaxtune.data.encode.shared import to_split
from jaxtune.data.options import DataOptions, EncodeOptions
from jaxtune.data.reading import Reading
from jaxtune.data.sources import Table
from jaxtune.data.split import Split, counts
from jaxtune.data.templates import Example
from jaxtune.data.tokenizer import Tokenizer
from jaxtune.errors import UserError

SIDES = ("chosen", "rejected")
_ANSWER = "Assistant:"  # what stands before an answer in whole dialogues written as one text


def read(table: Table, name: str, options: DataOptions) -> Reading:
  """Makes an example of every pair: its prompt, and `choices`, the chosen answer first.

  Raises:
    UserError: a row without two different answers to one prompt, unless malformed is "skip".
  """
  for side in SIDES:
    if side not in table.columns:
      raise UserError(
        f"{getattr(options, name)}: no column {side!r} in {', '.join(table.columns)}; pairs need "
        "'chosen' and 'rejected', with a 'prompt' or with the prompt in front of both"
      )
  unread = [Example(None, [], *row) for row in zip(table.rows, table.where, strict=True)]
  if _asks(table, options):
    rows = [row | {"output": row["chosen"], "completion": row["chosen"]} for row in table.rows]
    answer = None if options.template is None else "chosen"
    asked = options._replace(answer=answer, text=None)
    found = reading.read_prompts(table._replace(rows=rows), name, asked)
    unread = [head._replace(row=row) for head, row in zip(found.heads, table.rows, strict=True)]
    form = found.form
  else:
    form = {"columns": SIDES}
  pairs, bad = labels.checked(unread, _pair, options.malformed)
  groups = [[pair] for _, pair in pairs]
  return Reading(groups, form, {"malformed": bad} if bad else {})


def _asks(table: Table, options: DataOptions) -> bool:
  """Says whether the prompt is a column, or made of columns, and no conversation."""
  row = table.rows[0] if table.rows else {}
  turns = any(isinstance(row.get(key), list | tuple) for key in ("prompt", *SIDES))
  known = {"prompt", "instruction"} & set(table.columns)
  return not turns and (options.template is not None or bool(known))


def _pair(example: Example) -> Example:
  """Returns an example with its prompt and both answers, which it checks."""
  chosen, rejected = (example.row[side] for side in SIDES)
  if isinstance(chosen, list | tuple) and isinstance(rejected, list | tuple):
    return _dialogue(example, list(chosen), list(rejected))
  if not isinstance(chosen, str) or not isinstance(rejected, str):
    kinds = " and ".join(type(side).__name__ for side in (chosen, rejected))
    raise UserError(f"chosen and rejected are {kinds}, expected two texts or two lists of turns")
  prompt = example.prompt
  if prompt is None:
    shared = os.path.commonprefix([chosen, rejected])
    at = shared.rfind(_ANSWER)
    if at < 0:
      raise UserError(
        "no prompt: expected a column 'prompt', or chosen and rejected texts that share their "
        f"beginning up to {_ANSWER!r}"
      )
    at += len(_ANSWER) + shared[at + len(_ANSWER) :].startswith(" ")
    prompt, chosen, rejected = chosen[:at], chosen[at:], rejected[at:]
  _check(chosen, rejected)
  return example._replace(prompt=prompt, answers=[chosen], choices=(chosen, rejected))


def _dialogue(example: Example, chosen: list, rejected: list) -> Example:
  """Reads two conversations that share all turns but the last."""
  before = list(example.row.get("prompt") or ())
  sides = [conversations.turns({"messages": before + answer}) for answer in (chosen, rejected)]
  (*shared, mine), (*others, theirs) = sides
  if shared != others:
    raise UserError("chosen and rejected differ before their last turns, expected one prompt")
  answers = mine["content"], theirs["content"]
  _check(*answers)
  prompt = "\n".join(f"{turn['role']}: {turn['content']}" for turn in shared)
  row = example.row | {side: {"messages": turns} for side, turns in zip(SIDES, sides, strict=True)}
  return example._replace(
    prompt=prompt, answers=[answers[0]], row=row, choices=answers, conversation=True
  )


def _check(chosen: str, rejected: str) -> None:
  if not chosen.strip() or not rejected.strip():
    raise UserError(f"the {SIDES[bool(chosen.strip())]} answer is empty")
  if chosen == rejected:
    raise UserError("chosen and rejected are the same answer: leave the pair out")


def encode(
  tokenizer: Tokenizer, examples: Sequence[Example], options: EncodeOptions
) -> tuple[Split, dict]:
  """Encodes both answers of every pair as `encode.text` or `encode.chat` does a single one.

  tokens, mask and weights are (X, 2, T), the chosen answer first, and labels (X,) are 0, its number
  among the two. "reference" (X, 2) is NaN until `runs.reference` has filled it in. A pair of which
  one answer is skipped is left out.

  Returns:
    The split, and counts with "longer_chosen", the share of pairs whose chosen answer has more
    tokens than the rejected one, of those that differ.
  """
  sides = [[_side(pair, number) for number in range(len(SIDES))] for pair in examples]
  split, counted = encode_twos(tokenizer, examples, sides, options)
  split = split._replace(choices=[list(pair.choices) for pair in kept_of(examples, split)])
  return split, counted | {"longer_chosen": longer_chosen(split)}


def encode_twos(
  tokenizer: Tokenizer,
  examples: Sequence[Example],
  sides: Sequence[Sequence[Example]],
  options: EncodeOptions,
) -> tuple[Split, dict]:
  """Encodes two texts of every example, as `encode.text` or `encode.chat` does one.

  Args:
    sides: both texts of each example, every one with a row of its own.

  Returns:
    The split, whose tokens, mask and weights are (X, 2, T), without examples of which one text is
    skipped; and its counts.
  """
  flat_sides = [side for two in sides for side in two]
  conversation = bool(flat_sides) and flat_sides[0].conversation
  one_turn = options._replace(turns="last")
  flat, counted = (chat if conversation else text).encode(tokenizer, flat_sides, one_turn)
  numbers = {id(side.row): number for number, side in enumerate(flat_sides)}
  at = {numbers[id(row)]: place for place, row in enumerate(flat.rows)}
  kept = [x for x in range(len(examples)) if 2 * x in at and 2 * x + 1 in at]
  places_X2 = np.array([(at[2 * x], at[2 * x + 1]) for x in kept], np.int64).reshape(-1, 2)
  arrays: dict[str, Any] = {name: array[places_X2] for name, array in flat.arrays.items()}
  arrays["labels"] = np.zeros(len(kept), np.int32)
  arrays["reference"] = np.full((len(kept), 2), np.nan, np.float32)
  chosen = [examples[x] for x in kept]
  split = to_split(arrays, chosen, [flat.prompts[place] for place in places_X2[:, 0]])
  more = {key: counted[key] for key in ("stop_tokens", "chat_template") if key in counted}
  lost = len(examples) - len(kept)
  return split, counts(split, {"too_long": lost}, counted["truncated"], **more)


def kept_of(examples: Sequence[Example], split: Split) -> list[Example]:
  """Returns the examples that a split kept, in its order."""
  rows = {id(row) for row in split.rows}
  return [example for example in examples if id(example.row) in rows]


def _side(pair: Example, number: int) -> Example:
  """Returns one answer of a pair as an example, with a row of its own."""
  row = dict(pair.row[SIDES[number]]) if pair.conversation else dict(pair.row)
  return pair._replace(answers=[pair.choices[number]], row=row, choices=())


def longer_chosen(split: Split) -> float | None:
  """Returns the share of pairs whose chosen answer is the longer one; None without such pairs."""
  lengths_X2 = split.arrays["weights"].sum(-1)
  differ = lengths_X2[:, 0] != lengths_X2[:, 1]
  return float((lengths_X2[:, 0] > lengths_X2[:, 1])[differ].mean()) if differ.any() else None
