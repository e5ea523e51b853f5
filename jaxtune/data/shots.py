"""Few-shot prompts: demonstrations from the training split in front of every question.

This works on ids: a prompt is the one that a tuned model gets, with examples in front of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from jaxtune.data.padding import pad, pad_token, width
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
  each: bool = False,
  classes: Sequence | None = None,
  separator: str = "\n\n",
) -> tuple[Split, dict]:
  """Puts `count` demonstrations, prompt and answer, in front of each example of a split.

  Examples, their order and their targets stay as they are. If not all demonstrations fit, those
  farthest from the question are left out.

  Args:
    train: what they are drawn from, tokenised by the same tokenizer.
    positions: the most tokens that the model takes.
    new_tokens: of those, what generation needs; an example's own answer has room in any case.
    seed: draws them, once for all examples, or with `each` for every example by its number.
    classes: of the rows of train, each to be shown about equally often; None for its labels, or
      for the answers where an example's is one of several choices.
    separator: between demonstrations, and before the question.

  Returns:
    The split with its demonstrations, and {"shots": count, "used": {how many an example has: how
    many examples}, "demonstrations": places of those drawn, nearest the question last (one list,
    or with `each` one for each example)}.

  Raises:
    UserError: no prompts to put them before, or too few examples to draw from.
  """
  check_shots(split, train, count)
  classes = _classes(train) if classes is None else classes
  drawn = [
    _draw(train.examples, classes, count, seed, n) for n in range(split.examples if each else 1)
  ]
  front = encode_prompts(tokenizer, [""])[0]
  between = tokenizer(separator, add_special_tokens=False).input_ids
  texts = {n: _text(train, n, front, tokenizer.eos_token_id) + between for n in set(sum(drawn, []))}
  placed, before = [], []
  for n in range(split.examples):
    demonstrations = [texts[row] for row in drawn[n if each else 0]]
    longest = int(split.arrays["mask"][n].sum(-1).max())
    needed = max(longest, len(split.prompts[n]) + new_tokens)
    kept = _fitting(demonstrations, positions - needed)
    placed.append(len(kept))
    before.append(sum(kept, []))
  made = split._replace(
    arrays=split.arrays | _prepended(split, before, len(front), pad_token(tokenizer), positions),
    prompts=[
      _join(prompt, ids, len(front)) for prompt, ids in zip(split.prompts, before, strict=True)
    ],
  )
  places = [[train.where[row] for row in rows] for rows in drawn]
  used = dict(sorted(Counter(placed).items()))
  return made, {"shots": count, "used": used, "demonstrations": places if each else places[0]}


def check_shots(split: Split, train: Split, count: int) -> None:
  """Raises UserError where there are no prompts, or too few examples to draw from."""
  if not any(split.prompts) or not any(train.prompts) or "inputs" in split.arrays:
    raise UserError(
      "evaluate.shots needs a decoder, and prompts with answers in both the training and the "
      "evaluated split"
    )
  if not 1 <= count <= train.examples:
    raise UserError(f"evaluate.shots is {count}, expected 1 to {train.examples}, the rows of train")


def _classes(train: Split) -> list | None:
  labels = train.arrays.get("labels")
  if labels is not None and labels.ndim == 1 and np.issubdtype(labels.dtype, np.integer):
    return labels.tolist()
  return [answers[0] for answers in train.references] if train.choices else None


def _draw(examples: int, classes: Sequence | None, count: int, seed: int, n: int) -> list[int]:
  """Draws rows without repetition; of classes in turn, as long as each has any left."""
  key = np.array([seed % 2**64, n], np.uint64)
  rng = np.random.Generator(np.random.Philox(key=key))
  order = rng.permutation(examples)
  if classes is None:
    return order[:count].tolist()
  turns: Counter = Counter()
  turn_N = np.empty(examples, np.int64)
  for place, row in enumerate(order):
    turn_N[place] = turns[classes[row]]
    turns[classes[row]] += 1
  chosen = order[np.argsort(turn_N, kind="stable")[:count]]
  return rng.permutation(chosen).tolist()


def _text(train: Split, n: int, front: list[int], eos: int) -> list[int]:
  """Takes an example's prompt and right answer, without what starts and ends a text."""
  tokens, mask = train.arrays["tokens"][n], train.arrays["mask"][n]
  if tokens.ndim == 2:  # one row for each answer there is to choose from
    label = train.arrays["labels"][n] if len(tokens) > 1 else 0
    tokens, mask = tokens[label], mask[label]
  ids = tokens[mask].tolist()
  return ids[len(front) : -1 if ids[-1] == eos else None]


def _fitting(demonstrations: list[list[int]], room: int) -> list[list[int]]:
  """Keeps the last ones that fit."""
  lengths = np.cumsum([len(ids) for ids in reversed(demonstrations)])
  kept = int((lengths <= room).sum())
  return demonstrations[len(demonstrations) - kept :]


def _join(ids: list[int], before: list[int], front: int) -> list[int]:
  return ids[:front] + before + ids[front:]


def _prepended(
  split: Split, before: Sequence[list[int]], front: int, fill: int, positions: int
) -> dict[str, np.ndarray]:
  """Lays the demonstrations before the tokens, of every answer where there are several."""
  shape = split.arrays["mask"].shape
  repeat = int(np.prod(shape[1:-1]))
  flat = {name: split.arrays[name].reshape(-1, shape[-1]) for name in ("tokens", "mask", "weights")}
  rows: dict[str, list] = {"tokens": [], "weights": []}
  for row, real_T in enumerate(flat["mask"]):
    ids = before[row // repeat] if real_T.any() else []
    rows["tokens"].append(_join(flat["tokens"][row, real_T].tolist(), ids, front))
    rows["weights"].append(_join(flat["weights"][row, real_T].tolist(), [0.0] * len(ids), front))
  most = width(rows["tokens"], max(positions, shape[-1]))
  tokens = pad(rows["tokens"], most, fill)
  weights = pad(rows["weights"], most, 0, np.float32)
  lengths = np.array([len(ids) for ids in rows["tokens"]])
  mask = np.arange(most) < lengths[:, None]
  made = {"tokens": tokens, "mask": mask, "weights": weights}
  return {name: x.reshape(*shape[:-1], most) for name, x in made.items()}
