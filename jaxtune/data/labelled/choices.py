"""Label words: the answers of each example, whose likelihoods a language model compares."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from jaxtune.data import padding
from jaxtune.data.labelled import reading
from jaxtune.data.templates import Example
from jaxtune.data.tokenize import Split, check_choice, encode_prompts, measures
from jaxtune.errors import UserError, nearest

TOO_LONG = ("error", "skip", "truncate")


def choices(
  tokenizer,
  examples: Sequence[Example],
  *,
  max_length: int | None = None,
  too_long: str = "error",
  malformed: str = "error",
  special_tokens: str = "error",
) -> tuple[Split, dict]:
  """Encodes every prompt with each of its answers: tokens, mask and weights (N, C, T).

  Weights are 1 on the tokens of the answer alone. C is the most choices that an example has; where
  one has fewer, copies of its first stand in with weight 0. labels (N,) int32 is the right one.
  Where every answer of the split is a single token, the rows are `fold`ed.

  Args:
    examples: from `templates.render`, with a prompt and `choices`; the first of `answers` is right.
    max_length, too_long: "error", "skip" or "truncate", which cuts the beginning of the prompt.
    malformed: "error" or "skip", for an answer that is none of the choices, an empty choice, or
      fewer than two.
    special_tokens: see `data.tokenize`, of prompts.

  Returns:
    The split, and counts: as `data.tokenize`'s, with "classes" (examples by right answer).
  """
  check_choice("too_long", too_long, TOO_LONG)
  pairs, bad = reading.kept(examples, lambda one: (one, _right(one)), malformed)
  texts, where = [one.prompt for one, _ in pairs], [one.where for one, _ in pairs]
  prompts = encode_prompts(tokenizer, texts, special_tokens=special_tokens, where=where)
  front = len(encode_prompts(tokenizer, [""])[0])
  items, lengths = [], []
  for (one, label), prompt in zip(pairs, prompts, strict=True):
    answers = tokenizer(list(one.choices), add_special_tokens=False, verbose=False).input_ids
    lengths.append(len(prompt) + max(map(len, answers)))
    if max_length is not None and lengths[-1] > max_length and too_long != "error":
      over = lengths[-1] - max_length
      if too_long == "skip" or over > len(prompt) - front:
        continue
      prompt = prompt[:front] + prompt[front + over :]
    items.append((one, label, prompt, answers))
  long = sum(max_length is not None and length > max_length for length in lengths)
  if long and too_long == "error":
    raise padding.too_long(lengths, where, max_length, TOO_LONG[1:])
  split = _pack(tokenizer, items, max_length)
  skipped = {"label": bad, "too_long": len(pairs) - len(items)}
  return split, {
    "kept": len(items),
    "skipped": {reason: count for reason, count in skipped.items() if count},
    "truncated": long - (len(pairs) - len(items)),
    **measures(split),
    "classes": dict(Counter(one.choices[label] for one, label, _, _ in items)),
  }


def _right(example: Example) -> int:
  if example.prompt is None:
    raise UserError("plain text has no prompt to choose an answer to.")
  options = list(example.choices)
  if len(options) < 2:
    raise UserError(f"{len(options)} answer choices, expected two or more: set data.choices.")
  for option in options:
    if not option.strip():
      raise UserError(f"one of the choices {options} is empty.")
    if options.count(option) > 1:
      raise UserError(f"the choice {option!r} comes twice.")
  found = next((answer for answer in example.answers if answer in options), None)
  if found is None:
    said = example.answers[0] if example.answers else ""
    raise UserError(f"the answer {said!r} is none of the choices. {nearest(said, options)}")
  return options.index(found)


def _pack(tokenizer, items: Sequence[tuple], max_length: int | None) -> Split:
  most = max((len(answers) for *_, answers in items), default=0)
  rows, weights = [], []
  for _, _, prompt, answers in items:
    for at in range(most):
      answer = answers[at] if at < len(answers) else answers[0]
      rows.append(prompt + answer)
      weights.append([0.0] * len(prompt) + [float(at < len(answers))] * len(answer))
  width = padding.width(rows, max_length)
  shape = (len(items), most, width)
  mask = padding.pad([[True] * len(row) for row in rows], width, False, bool)
  arrays = fold(
    {
      "tokens": padding.pad(rows, width, padding.pad_token(tokenizer)).reshape(shape),
      "mask": mask.reshape(shape),
      "weights": padding.pad(weights, width, 0, np.float32).reshape(shape),
      "labels": np.array([label for _, label, _, _ in items], np.int32),
    }
  )
  return Split(
    arrays,
    prompts=[prompt for _, _, prompt, _ in items],
    references=[[one.choices[label]] for one, label, _, _ in items],
    rows=[one.row for one, *_ in items],
    where=[one.where for one, *_ in items],
    choices=[list(one.choices) for one, *_ in items],
  )


def fold(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Keeps the right answer's row alone where every answer is a single token.

  The rows of an example are equal up to there. tokens, mask and weights are then (N, 1, T), and
  "answers" (N, C, 1) int32 the answers' tokens + 1, 0 where there is none.
  """
  weights_NCT, labels_N = arrays["weights"], arrays["labels"]
  if not len(labels_N) or weights_NCT.sum(-1).max() > 1:
    return arrays
  right = lambda x: x[np.arange(len(x)), labels_N][:, None]
  answers_NC = ((arrays["tokens"] + 1) * weights_NCT).sum(-1).astype(np.int32)
  rows = {name: right(arrays[name]) for name in ("tokens", "mask", "weights")}
  return arrays | rows | {"answers": answers_NC[..., None]}


def unfold(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Undoes `fold`: a row for each answer."""
  if "answers" not in arrays:
    return arrays
  rest = {name: x for name, x in arrays.items() if name != "answers"}
  answers_NC1 = arrays["answers"]
  real_NC1 = answers_NC1 > 0
  ids_NC1 = np.where(real_NC1, answers_NC1, answers_NC1[:, :1]) - 1
  rest["tokens"] = np.where(rest["weights"] > 0, ids_NC1, rest["tokens"]).astype(np.int32)
  rest["mask"] = np.repeat(rest["mask"], answers_NC1.shape[1], 1)
  return rest | {"weights": rest["weights"] * real_NC1.astype(np.float32)}


def alike(splits: Sequence[Split]) -> list[Split]:
  """Unfolds all splits where some are."""
  folded = ["answers" in split.arrays for split in splits]
  if all(folded) or not any(folded):
    return list(splits)
  return [split._replace(arrays=unfold(split.arrays)) for split in splits]
