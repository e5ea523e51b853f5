"""Answers that people liked or did not like, one at a time.

A row has a prompt (a column `prompt`, `instruction`, or what a template makes), its answer
(`completion` or `output`) and a `label`: true or 1 for a thumb up, false or 0 for a thumb down. A
row with `chosen` and `rejected` is one of each.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxtune.data import labels, reading
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
    groups = [
      [pair._replace(answers=[answer], choices=(label,), row=_one(pair, side))]
      for pair in found.heads
      for side, answer, label in zip(pairs.SIDES, pair.choices, reversed(NAMES), strict=True)
    ]
    return found._replace(groups=groups)
  if "label" not in table.columns:
    raise UserError(
      f"{getattr(options, name)}: no column 'label' in {', '.join(table.columns)}; expected a "
      "label (true or false) beside each answer, or pairs with 'chosen' and 'rejected'"
    )
  found = reading.read_prompts(table, name, options)
  good, bad = labels.checked(found.heads, _labelled, options.malformed)
  return Reading([[one] for _, one in good], found.form, {"malformed": bad} if bad else {})


def _one(pair: Example, side: str) -> dict:
  return dict(pair.row[side]) if pair.conversation else dict(pair.row)


def _labelled(example: Example) -> Example:
  value = example.row["label"]
  if value not in (0, 1) and str(value).lower() not in ("true", "false", *NAMES, "0", "1"):
    raise UserError(f"the label is {value!r}, expected true or false")
  if not example.answers or not example.answers[0].strip():
    raise UserError("the answer is empty")
  up = str(value).lower() in ("true", "1", "up")
  return example._replace(choices=(NAMES[up],), row=dict(example.row))


def encode(
  tokenizer: Tokenizer, examples: Sequence[Example], options: EncodeOptions
) -> tuple[Split, dict]:
  """Encodes every answer, and beside it the next example's answer to the same prompt.

  tokens, mask and weights are (X, 2, T): the answer, and the one that does not belong to the
  prompt, of which the divergence from the reference is estimated. labels (X,) are 1 for "up".

  Returns:
    The split, and counts with "classes" (examples by label).
  """
  following = [*examples[1:], *examples[:1]]
  sides = [
    [one._replace(row=dict(one.row)), _answered(one, other)]
    for one, other in zip(examples, following, strict=True)
  ]
  split, counted = pairs.encode_twos(tokenizer, examples, sides, options)
  kept = [one.choices[0] for one in pairs.kept_of(examples, split)]
  arrays = split.arrays | {"labels": np.array([name == "up" for name in kept], np.int32)}
  split = split._replace(arrays=arrays, choices=[[name] for name in kept])
  return split, counted | {"classes": {name: kept.count(name) for name in NAMES}}


def _answered(example: Example, other: Example) -> Example:
  """Returns an example with another one's answer."""
  row = dict(example.row)
  if example.conversation:
    row["messages"] = [*example.row["messages"][:-1], other.row["messages"][-1]]
  return example._replace(answers=other.answers, row=row)
