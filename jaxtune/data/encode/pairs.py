"""Prompts with two answers each, of which people preferred one.

A row has two answers as texts or as lists of turns, or several that people rated or ranked:

  prompt, chosen, rejected       an answer each, after a prompt of its own; or in place of `prompt`
                                 any other column, by a template
  chosen, rejected               both with the prompt in front: texts that share their beginning up
                                 to and with the last "Assistant:", or conversations that share all
                                 turns but the last
  prompt, completions, ratings   lists of answers and of numbers, the larger the better: a pair for
                                 every two answers (`encode.rated`)
  prompt, completions, ranking   the same with ranks, 1 for the best; answers may share a rank
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxtune import schema
from jaxtune.data import cells, conversations, labels, reading
from jaxtune.data.encode import chat, rated, text, whole_texts
from jaxtune.data.encode.shared import to_split
from jaxtune.data.options import DataOptions, EncodeOptions
from jaxtune.data.reading import Reading
from jaxtune.data.sources import Table
from jaxtune.data.split import Split, counts
from jaxtune.data.templates import BLANK, Example, Template, resolve
from jaxtune.data.tokenizer import Tokenizer, ends_texts, token_ids
from jaxtune.errors import UserError

SIDES = ("chosen", "rejected")
_ANSWER = "Assistant:"  # what stands before an answer in whole dialogues written as one text


def read(table: Table, name: str, options: DataOptions) -> Reading:
  """Makes an example of every pair: its prompt, and `choices`, the chosen answer first.

  Pairs that a row's ratings make are one group, and all that have one prompt belong to one split.

  Raises:
    UserError: a row without two different answers to one prompt, unless malformed is "skip".
  """
  for key in ("answer", "text"):
    if (given := getattr(options, key)) is not None:
      raise UserError(
        f"data.{key} is {schema.shown(given)}, expected none: the answers of pairs are in the "
        "columns chosen and rejected, and data.template makes their prompt"
      )
  if rated.ANSWERS in table.columns:
    table, pairs, bad = rated.pairs(table, options.malformed)
  else:
    for side in SIDES:
      if side not in table.columns:
        raise UserError(
          f"{getattr(options, name)}: no column {side!r} in {', '.join(table.columns)}; pairs need "
          "'chosen' and 'rejected', with a 'prompt' or with the prompt in front of both, or "
          "'completions' with 'ratings' or a 'ranking'"
        )
    pairs, bad = [[(row, 1.0)] for row in range(len(table.rows))], 0
  by_row, form = _unread(table, name, options)
  groups = []
  for of_row in pairs:
    unread = [one._replace(difference=d) for row, d in of_row for one in by_row[row]]
    good, refused = labels.checked(unread, _pair, options.malformed)
    bad += refused
    if good:
      groups.append([pair._replace(key=good[0][1].prompt) for _, pair in good])
  return Reading(groups, form, {"malformed": bad} if bad else {})


def _unread(table: Table, name: str, options: DataOptions) -> tuple[list[list[Example]], dict]:
  """Makes examples of every row, one for each template, whose answers are not read yet."""
  if not _asks(table, options):
    if options.template is not None:
      raise UserError(
        f"data.template is {schema.shown(options.template)}, expected None for the conversations "
        f"of {getattr(options, name)}, which the chat template writes; of a task among others set "
        "data.tasks.NAME.template=None"
      )
    placed = zip(table.rows, table.where, strict=True)
    return [[Example(None, [], row, where)] for row, where in placed], {"columns": SIDES}
  answers = ("chosen", "output", "completion")  # of a row that lacks it, `_pair` says so
  rows = [row | dict.fromkeys(answers, row.get("chosen")) for row in table.rows]
  if options.template is not None:
    options = options._replace(template=_asking(options.template))
  found = reading.read_prompts(table._replace(rows=rows), name, options)
  by_row = zip(found.groups, table.rows, strict=True)
  return [[one._replace(row=row) for one in group] for group, row in by_row], found.form


def _asking(template: Any) -> list[Template]:
  """Returns templates whose prompts alone are read, also of those that bring an answer."""
  given = [template] if isinstance(template, str) else template
  found = [resolve(one, "chosen") for one in given]
  own = lambda one: one.name is not None and one.answer is not None  # else "|||" stands before it
  return [one._replace(answer=BLANK) if own(one) else one for one in found]


def _asks(table: Table, options: DataOptions) -> bool:
  """Says whether the prompt is a column, or made of columns, and no conversation."""
  row = table.rows[0] if table.rows else {}
  turns = any(isinstance(row.get(key), list | tuple) for key in ("prompt", *SIDES))
  known = {"prompt", "instruction"} & set(table.columns)
  return not turns and (options.template is not None or bool(known))


def _pair(example: Example) -> Example:
  """Returns an example with its prompt and both answers, which it checks."""
  chosen, rejected = (cells.check_column(side, example.row) for side in SIDES)
  if isinstance(chosen, list | tuple) and isinstance(rejected, list | tuple):
    return _dialogue(example, list(chosen), list(rejected))
  if not isinstance(chosen, str) or not isinstance(rejected, str):
    kinds = " and ".join(type(side).__name__ for side in (chosen, rejected))
    raise UserError(f"chosen and rejected are {kinds}, expected two texts or two lists of turns")
  prompt = example.prompt
  if prompt is None:
    if isinstance(example.row.get("prompt"), list | tuple):
      raise UserError(
        "prompt is a list of turns, and chosen and rejected are texts, expected lists"
      )
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
  before = example.row.get("prompt") or ()
  if isinstance(before, str):  # beside whole conversations it is there twice
    alone = len(chosen) == len(rejected) == 1
    before = [{"role": "user", "content": before}] if alone else ()
  before = list(before)
  sides = [conversations.turns({"messages": before + answer}) for answer in (chosen, rejected)]
  (*shared, mine), (*others, theirs) = sides
  if shared != others:
    raise UserError("chosen and rejected differ before their last turns, expected one prompt")
  answers = conversations.text_of(mine), conversations.text_of(theirs)
  _check(*answers)
  tools = {key: value for key, value in example.row.items() if key == "tools"}
  rows = {side: {"messages": turns} | tools for side, turns in zip(SIDES, sides, strict=True)}
  return example._replace(
    prompt=conversations.written(shared), answers=[answers[0]], row=example.row | rows,
    choices=answers, conversation=True,
  )  # fmt: skip


def _check(chosen: str, rejected: str) -> None:
  if not chosen.strip() or not rejected.strip():
    raise UserError(f"the {SIDES[bool(chosen.strip())]} answer is empty")
  if chosen == rejected:
    raise UserError("chosen and rejected are the same answer: leave the pair out")


def encode(
  tokenizer: Tokenizer,
  examples: Sequence[Example],
  options: EncodeOptions,
  two_texts: bool = False,
) -> tuple[Split, dict]:
  """Encodes both answers of every pair as `encode.text` or `encode.chat` does a single one.

  tokens, mask and weights are (X, 2, T), the chosen answer first, and labels (X,) are 0, its number
  among the two. difference (X,) says by how much the chosen answer is rated higher: 1 where only
  the choice is known, and 0 for a tie. "reference" (X, 2) is NaN until `runs.reference` has filled
  it in. A pair of which one answer is skipped is left out.

  Args:
    two_texts: whether a tokenizer that ends texts itself, as those of encoders do, writes prompt
      and answer as it does two texts, with "types" where it has them.

  Returns:
    The split, and counts with "ties" and "longer_chosen", the share of pairs whose chosen answer
    has more tokens than the rejected one, of those that differ.
  """
  sides = [[_side(pair, number) for number in range(len(SIDES))] for pair in examples]
  split, counted, kept = encode_twos(tokenizer, examples, sides, options, two_texts)
  difference_X = np.array([pair.difference for pair in kept], np.float32)
  arrays = split.arrays | {"difference": difference_X}
  split = split._replace(arrays=arrays, choices=[list(pair.choices) for pair in kept])
  longer, of = longer_chosen(split)
  ties = int((difference_X == 0).sum())
  return split, counted | {"ties": ties, "longer_chosen": longer / of if of else None}


def encode_twos(
  tokenizer: Tokenizer,
  examples: Sequence[Example],
  sides: Sequence[Sequence[Example]],
  options: EncodeOptions,
  two_texts: bool = False,
) -> tuple[Split, dict, list[Example]]:
  """Encodes two texts of every example, as `encode.text` or `encode.chat` does one.

  Args:
    sides: both texts of each example, every one with a row of its own.

  Returns:
    The split, whose tokens, mask and weights are (X, 2, T), without examples of which one text is
    skipped; its counts, where the reasons of all texts are one, "template or too_long", as an
    example may be left out for two; and the examples that are kept.
  """
  flat_sides = [side for two in sides for side in two]
  flat, counted = encode_answers(tokenizer, flat_sides, options, two_texts)
  numbers = {id(side.row): number for number, side in enumerate(flat_sides)}
  at = {numbers[id(row)]: place for place, row in enumerate(flat.rows)}
  kept = [x for x in range(len(examples)) if 2 * x in at and 2 * x + 1 in at]
  places_X2 = np.array([(at[2 * x], at[2 * x + 1]) for x in kept], np.int64).reshape(-1, 2)
  arrays: dict[str, Any] = {name: array[places_X2] for name, array in flat.arrays.items()}
  arrays["labels"] = np.zeros(len(kept), np.int32)
  arrays["reference"] = np.full((len(kept), 2), np.nan, np.float32)
  chosen = [examples[x] for x in kept]
  own = [(flat.prompts[place], flat.references[place]) for place in places_X2[:, 0]]
  split = to_split(arrays, chosen, [prompt for prompt, _ in own], [answers for _, answers in own])
  known = ("stop_tokens", "chat_template", "special_tokens")
  more = {key: counted[key] for key in known if key in counted}
  skipped = {" or ".join(counted["skipped"]): len(examples) - len(kept)}
  return split, counts(split, skipped, counted["truncated"], **more), chosen


def encode_answers(
  tokenizer: Tokenizer, sides: Sequence[Example], options: EncodeOptions, two_texts: bool = False
) -> tuple[Split, dict]:
  """Encodes prompts with an answer each, as `encode` does both answers of a pair."""
  if sides and sides[0].conversation:
    return chat.encode(tokenizer, sides, options._replace(turns="last"))
  if not (two_texts and ends_texts(tokenizer)):
    return text.encode(tokenizer, sides, options)
  rows = [{"text": side.prompt, "pair": side.answers[0]} for side in sides]
  read_from = {id(row): side.row for row, side in zip(rows, sides, strict=True)}
  whole = [side._replace(row=row) for side, row in zip(sides, rows, strict=True)]
  flat, counted = whole_texts.encode(tokenizer, whole, np.zeros(len(rows)), options, {})
  arrays = {name: x for name, x in flat.arrays.items() if name != "labels"}
  arrays["weights"] = arrays.get("types", arrays["mask"]).astype(np.float32)
  prompts = token_ids(tokenizer, [row["text"] for row in flat.rows])
  rows = [read_from[id(row)] for row in flat.rows]
  return flat._replace(arrays=arrays, prompts=prompts, rows=rows), counted


def _side(pair: Example, number: int) -> Example:
  """Returns one answer of a pair as an example, with a row of its own."""
  row = dict(pair.row[SIDES[number]]) if pair.conversation else dict(pair.row)
  return pair._replace(answers=[pair.choices[number]], row=row, choices=())


def longer_chosen(split: Split) -> tuple[int, int]:
  """Counts the pairs whose chosen answer has more tokens, and those whose answers differ in that.

  Ties are left out.
  """
  lengths_X2 = split.arrays["mask"].sum(-1)[split.arrays["difference"] > 0]
  first_X, second_X = lengths_X2.T
  return int((first_X > second_X).sum()), int((first_X != second_X).sum())
