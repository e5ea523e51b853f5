"""Answers that people liked or did not like, one at a time.

A row has a prompt (a column `prompt`, `instruction`, or what a template makes), its answer
(`completion` or `output`) and a `label`: true or 1 for a thumb up, false or 0 for a thumb down. A
row with `chosen` and `rejected` is one of each.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxtune.data import cells, labels, reading
from jaxtune.data.encode import pairs
from jaxtune.data.options import DataOptions, EncodeOptions
from jaxtune.data.reading import Reading
from jaxtune.data.sources import Table
from jaxtune.data.split import Split
from jaxtune.data.templates import Example
from jaxtune.data.tokenizer import Tokenizer
from jaxtune.errors import UserError

NAMES = ("down", "up")


def read(table: Table, name: str, options: DataOptions) -> Reading:
  """Makes an example of every answer, whose `choices` name its label: "up" or "down".

  Raises:
    UserError: a label that is neither, or no answer, unless malformed is "skip".
  """
  if set(pairs.SIDES) <= set(table.columns):
    found = pairs.read(table, name, options)
    return found._replace(groups=[_both(group) for group in found.groups])
  if "label" not in table.columns:
    raise UserError(
      f"{getattr(options, name)}: no column 'label' in {', '.join(table.columns)}; expected a "
      "label (true or false) beside each answer, or pairs with 'chosen' and 'rejected'"
    )
  found = reading.read_prompts(table, name, options)
  groups, bad = [], 0
  for group in found.groups:
    good, refused = labels.checked(group, _labelled, options.malformed)
    bad += refused
    if good:
      groups.append([one._replace(key=group[0].prompt) for _, one in good])
  return Reading(groups, found.form, {"malformed": bad} if bad else {})


def _both(group: list[Example]) -> list[Example]:
  """Returns both answers of a pair, each by every template, with a row of its own."""
  made = []
  for number, side in enumerate(pairs.SIDES):
    row = group[0].row | (group[0].row[side] if group[0].conversation else {})
    label = (NAMES[1 - number],)
    made += [
      pair._replace(answers=[pair.choices[number]], choices=label, row=row) for pair in group
    ]
  return made


def _labelled(example: Example) -> Example:
  value = cells.check_column("label", example.row)
  said = str(int(value)) if value in (0, 1) else str(value).lower()  # 1.0 and True are 1
  if said not in ("true", "false", *NAMES, "0", "1"):
    raise UserError(f"the label is {value!r}, expected true or false")
  if not example.answers or not example.answers[0].strip():
    raise UserError("the answer is empty")
  return example._replace(choices=(NAMES[said in ("true", "1", "up")],))


def encode(
  tokenizer: Tokenizer, examples: Sequence[Example], options: EncodeOptions
) -> tuple[Split, dict]:
  """Encodes every answer, and beside it, after the same prompt, that of the next other prompt.

  tokens, mask and weights are (X, 2, T): the answer, and the one that does not belong to the
  prompt, of which the divergence from the reference is estimated. That one is cut where it is too
  long: the policies of `options` are for the first. labels (X,) are 1 for "up".

  Returns:
    The split, where an answer with a thumb down is no reference; and counts with "classes"
    (examples by label), whose "skipped" and "truncated" are of the first answers.
  """
  own = [one._replace(row=dict(one.row)) for one in examples]
  read_from = {id(one.row): example.row for one, example in zip(own, examples, strict=True)}
  alone, counted = pairs.encode_answers(tokenizer, own, options)
  fit = {id(row) for row in alone.rows}
  own = [one for one in own if id(one.row) in fit]
  sides = [[one, _answered(one, _following(own, at))] for at, one in enumerate(own)]
  cut = options._replace(too_long="truncate")
  split, of_twos, examples = pairs.encode_twos(tokenizer, own, sides, cut)
  of_first = ("skipped", "truncated", "special_tokens")
  counted = of_twos | {name: counted[name] for name in of_first if name in counted}
  kept = [one.choices[0] for one in examples]
  arrays = split.arrays | {"labels": np.array([name == "up" for name in kept], np.int32)}
  references = [own * (name == "up") for own, name in zip(split.references, kept, strict=True)]
  choices, rows = [[name] for name in kept], [read_from[id(row)] for row in split.rows]
  split = split._replace(arrays=arrays, references=references, choices=choices, rows=rows)
  return split, counted | {"classes": {name: kept.count(name) for name in NAMES}}


def _following(examples: Sequence[Example], at: int) -> Example:
  """Returns the next example of another prompt, from the first on again; else the next."""
  turn = (examples[(at + step) % len(examples)] for step in range(1, len(examples)))
  following = examples[(at + 1) % len(examples)]
  return next((other for other in turn if other.key != examples[at].key), following)


def _answered(example: Example, other: Example) -> Example:
  """Returns an example with another one's answer."""
  row = dict(example.row)
  if example.conversation:
    row["messages"] = [*example.row["messages"][:-1], other.row["messages"][-1]]
  return example._replace(answers=other.answers, row=row)
