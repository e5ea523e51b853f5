"""Prompts with several answers each, whose likelihoods a language model compares."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxtune.data import labels, padding
from jaxtune.data.encode.shared import to_split
from jaxtune.data.options import EncodeOptions
from jaxtune.data.prompts import encode_prompts
from jaxtune.data.split import Split, counts
from jaxtune.data.templates import Example
from jaxtune.data.tokenizer import Tokenizer, token_ids
from jaxtune.errors import UserError, nearest


class _Item(NamedTuple):
  example: Example
  label: int  # the number of the right answer
  prompt: list[int]
  answers: list[list[int]]

  @property
  def length(self) -> int:
    return len(self.prompt) + max(map(len, self.answers))


def encode(
  tokenizer: Tokenizer, examples: Sequence[Example], options: EncodeOptions
) -> tuple[Split, dict]:
  """Encodes every prompt with each of its answers: tokens, mask and weights (X, C, T).

  Weights are 1 on the tokens of the answer alone. C is the most choices that an example has; an
  example with fewer is filled up by copies of its first, with weight 0. labels (X,) int32 is the
  number of the right answer. If every answer of the split is a single token, the rows are folded:
  see `fold`.

  Args:
    examples: from `templates.render`, with a prompt and `choices`; the first of `answers` is right.
    options: too_long can be "skip" or "truncate", which cuts the beginning of the prompt; malformed
      is for an empty prompt, an answer that is none of the choices, an empty choice, or fewer than
      two.

  Returns:
    The split, and counts with "classes" (examples by right answer), unless rows have choices of
    their own.
  """
  pairs, bad = labels.checked(examples, _right, options.malformed)
  where = [example.where for example, _ in pairs]
  prompts = encode_prompts(
    tokenizer, [example.prompt for example, _ in pairs],
    special_tokens=options.special_tokens, where=where,
  )  # fmt: skip
  items = [
    _Item(example, label, prompt, token_ids(tokenizer, example.choices))
    for (example, label), prompt in zip(pairs, prompts, strict=True)
  ]
  long = padding.find_too_long([item.length for item in items], where, options)
  if long:
    front = len(encode_prompts(tokenizer, [""])[0])
    items = [fitted for item in items if (fitted := _fit(item, front, options)) is not None]
  split = _to_split(tokenizer, items, options.max_length)
  classes = Counter(reference for (reference,) in split.references)
  lost = len(pairs) - len(items)
  skipped = {"label": bad, "too_long": lost}
  more = {} if split.own_choices else {"classes": dict(classes)}
  return split, counts(split, skipped, len(long) - lost, **more)


def _fit(item: _Item, front: int, options: EncodeOptions) -> _Item | None:
  """Cuts the beginning of a prompt that is too long; None where that is not enough or not wanted.

  Args:
    front: the special tokens in front of a prompt, which stay; without any, one token stays.
  """
  over = item.length - options.max_length
  if over <= 0:
    return item
  if options.too_long == "skip" or over > len(item.prompt) - max(front, 1):
    return None
  return item._replace(prompt=item.prompt[:front] + item.prompt[front + over :])


def _right(example: Example) -> int:
  """Returns the number of the right answer among an example's choices."""
  if example.prompt is None:
    raise UserError("plain text has no prompt to choose an answer to")
  if not example.prompt.strip():
    raise UserError("the prompt is empty, expected a text to choose an answer to")
  options = list(example.choices)
  if len(options) < 2:
    raise UserError(f"{len(options)} answer choices, expected two or more: set data.choices")
  for option in options:
    if not option.strip():
      raise UserError(f"one of the choices {options} is empty")
    if options.count(option) > 1:
      raise UserError(f"the choice {option!r} comes twice")
  right = next((answer for answer in example.answers if answer in options), None)
  if right is None:
    said = example.answers[0] if example.answers else ""
    raise UserError(f"the answer {said!r} is none of the choices; {nearest(said, options)}")
  return options.index(right)


def _to_split(tokenizer: Tokenizer, items: Sequence[_Item], max_length: int | None) -> Split:
  most = max((len(item.answers) for item in items), default=0)
  rows, weights = [], []
  for item in items:
    for at in range(most):
      answer = item.answers[at] if at < len(item.answers) else item.answers[0]
      rows.append(item.prompt + answer)
      weights.append([0.0] * len(item.prompt) + [float(at < len(item.answers))] * len(answer))
  arrays = padding.pad_tokens(tokenizer, rows, max_length)
  width = arrays["tokens"].shape[1]
  arrays["weights"] = padding.pad(weights, width, 0, np.float32)
  arrays = {name: x.reshape(len(items), most, width) for name, x in arrays.items()}
  labels_X = np.array([item.label for item in items], np.int32)
  return to_split(
    fold(arrays | {"labels": labels_X}),
    [item.example for item in items],
    [item.prompt for item in items],
    [[item.example.choices[item.label]] for item in items],
    [list(item.example.choices) for item in items],
  )


def fold(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Keeps of each example only the row of the right answer, if every answer is a single token.

  The rows of an example differ in that token alone. tokens, mask and weights become (X, 1, T), and
  "answers" (X, C, 1) int32 holds the answers' tokens + 1, and 0 where there is no answer.
  """
  weights_XCT, labels_X = arrays["weights"], arrays["labels"]
  if not len(labels_X) or weights_XCT.sum(-1).max() > 1:
    return arrays
  right = lambda x: x[np.arange(len(x)), labels_X][:, None]
  answers_XC = ((arrays["tokens"] + 1) * weights_XCT).sum(-1).astype(np.int32)
  rows = {name: right(arrays[name]) for name in ("tokens", "mask", "weights")}
  return arrays | rows | {"answers": answers_XC[..., None]}


def unfold(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Undoes `fold`: makes a row for each answer again."""
  if "answers" not in arrays:
    return arrays
  unfolded = dict(arrays)
  answers_XC1 = unfolded.pop("answers")
  real_XC1 = answers_XC1 > 0
  ids_XC1 = np.where(real_XC1, answers_XC1, answers_XC1[:, :1]) - 1
  unfolded["tokens"] = np.where(arrays["weights"] > 0, ids_XC1, arrays["tokens"]).astype(np.int32)
  unfolded["mask"] = np.repeat(arrays["mask"], answers_XC1.shape[1], 1)
  unfolded["weights"] = arrays["weights"] * real_XC1.astype(np.float32)
  return unfolded


def same_folding(splits: Sequence[Split]) -> list[Split]:
  """Unfolds all splits if some of them are not folded."""
  folded = ["answers" in split.arrays for split in splits]
  if all(folded) or not any(folded):
    return list(splits)
  return [split._replace(arrays=unfold(split.arrays)) for split in splits]
