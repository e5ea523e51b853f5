"""Few-shot prompts: demonstrations from the training split in front of every question.

This works on ids: a prompt is the one that a tuned model gets, with examples in front of it.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from jaxtune.data.padding import pad, pad_tokens
from jaxtune.data.prompts import encode_prompts
from jaxtune.data.split import Split
from jaxtune.data.tokenizer import Tokenizer
from jaxtune.errors import UserError


def shots(
  split: Split,
  train: Split,
  tokenizer: Tokenizer,
  count: int,
  *,
  positions: int,
  new_tokens: int = 0,
  seed: int = 0,
) -> tuple[Split, dict]:
  """Puts `count` demonstrations, prompt and answer, in front of each example of a split.

  The examples, their order and their targets stay as they are. All get the same demonstrations. If
  not all of these fit, those that are farthest from the question are left out.

  Args:
    train: the split that they are drawn from, tokenised by the same tokenizer. If its examples have
      classes, or answers that are one of several choices, each is drawn about equally often.
    positions: the most tokens that the model takes.
    new_tokens: how many of them to keep for generation; an example's own answer always has room.

  Returns:
    The split with its demonstrations, and {"shots": count, "used": {how many an example has: how
    many examples}, "demonstrations": the places of those drawn, with the one next to the question
    last}.

  Raises:
    UserError: if there are no prompts to put them before, or too few examples to draw from.
  """
  check_shots(split, train, count)
  drawn = _draw(train, count, seed)
  separator = tokenizer("\n\n", add_special_tokens=False).input_ids
  front = partial(_front, encode_prompts(tokenizer, [""])[0], tokenizer.bos_token_id)
  texts = [_text(train, row, front, tokenizer.eos_token_id) + separator for row in drawn]
  used, before = Counter(), []
  for prompt, length in zip(split.prompts, split.lengths["tokens"].tolist(), strict=True):
    room = positions - max(length, len(prompt) + new_tokens)
    fitting = texts
    while fitting and sum(map(len, fitting)) > room:
      fitting = fitting[1:]
    used[len(fitting)] += 1
    before.append(sum(fitting, []))
  with_shots = split._replace(
    arrays=split.arrays | _prepended(tokenizer, split, before, front, positions),
    prompts=[_insert(p, front(p), ids) for p, ids in zip(split.prompts, before, strict=True)],
  )
  places = [train.where[row] for row in drawn]
  return with_shots, {"shots": count, "used": dict(sorted(used.items())), "demonstrations": places}


def check_shots(split: Split, train: Split, count: int) -> None:
  """Raises UserError if there are no prompts, or too few examples to draw from."""
  if not any(split.prompts) or not any(train.prompts) or "inputs" in split.arrays:
    raise UserError(
      "evaluate.shots needs a decoder, and prompts with answers in both the training and the "
      "evaluated split"
    )
  if not 1 <= count <= train.examples:
    raise UserError(f"evaluate.shots is {count}, expected 1 to {train.examples}, the rows of train")


def _draw(train: Split, count: int, seed: int) -> list[int]:
  """Draws rows without repetition, in turn from each class that has any left."""
  rng = np.random.Generator(np.random.Philox(key=np.array([seed % 2**64, 0], np.uint64)))
  order = rng.permutation(train.examples)
  labels = train.arrays.get("labels")
  if labels is not None and labels.ndim == 1 and np.issubdtype(labels.dtype, np.integer):
    classes = labels.tolist()
  elif train.choices:
    classes = [answers[0] for answers in train.references]
  else:
    return order[:count].tolist()
  turns = defaultdict(itertools.count)  # counts the rows of each class
  turn_X = [next(turns[classes[row]]) for row in order]
  return rng.permutation(order[np.argsort(turn_X, kind="stable")[:count]]).tolist()


def _front(added: list[int], bos: int | None, row: list[int]) -> int:
  """Counts the special tokens that a row begins with: those that a tokenizer adds, or a BOS.

  Chat templates write their own, or none.
  """
  return len(added) if added and row[: len(added)] == added else int(row[:1] == [bos])


def _text(train: Split, row: int, front: Callable[[list[int]], int], eos: int) -> list[int]:
  """Returns the ids of an example's prompt and right answer, without BOS and EOS around them."""
  tokens, mask = train.arrays["tokens"][row], train.arrays["mask"][row]
  if tokens.ndim == 2:  # one row for each answer there is to choose from
    label = train.arrays["labels"][row] if len(tokens) > 1 else 0
    tokens, mask = tokens[label], mask[label]
  ids = tokens[mask].tolist()
  return ids[front(ids) : -1 if ids[-1] == eos else None]


def _insert(row: list, front: int, values: list) -> list:
  """Returns a row with values after the special tokens at its front."""
  return row[:front] + values + row[front:]


def _prepended(
  tokenizer: Tokenizer,
  split: Split,
  before: Sequence[list[int]],
  front: Callable[[list[int]], int],
  positions: int,
) -> dict[str, np.ndarray]:
  """Returns the tokens with the demonstrations before them, for each answer to choose from."""
  *shape, width = split.arrays["mask"].shape
  answers = int(np.prod(shape[1:]))
  flat = {name: split.arrays[name].reshape(-1, width) for name in ("tokens", "mask", "weights")}
  tokens, weights = [], []
  for row, real_T in enumerate(flat["mask"]):
    ids = before[row // answers] if real_T.any() else []
    real = flat["tokens"][row, real_T].tolist()
    tokens.append(_insert(real, front(real), ids))
    weights.append(_insert(flat["weights"][row, real_T].tolist(), front(real), [0.0] * len(ids)))
  arrays = pad_tokens(tokenizer, tokens, max(positions, width))
  arrays["weights"] = pad(weights, arrays["tokens"].shape[1], 0, np.float32)
  return {name: x.reshape(*shape, x.shape[1]) for name, x in arrays.items()}
