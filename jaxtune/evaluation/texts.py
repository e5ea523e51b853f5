"""Hands prompts to `generate` in batches, and takes the tokens that it returns apart."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from jaxtyping import Bool, Int
from tqdm import tqdm

from jaxtune import hosts

Prompts = Sequence[Sequence[int]]


def complete(
  call: Callable, prompts: Sequence[Prompts], rows: int, stop_tokens: tuple[int, ...]
) -> list[list[list[int]]]:
  """Continues the prompts of each of E trials.

  Args:
    call: ({"tokens", "mask" (E, N, T), "numbers" (E, N), "count" (E,)}) -> ids (E, N, new), by
      `generate.generate`; of the N prompts of a trial the first ones count, and the numbers say
      which of its prompts they are.
    rows: how many texts are continued at a time.

  Returns:
    The ids of each trial's completions, before their stop tokens.
  """
  made: list[list[list[int]]] = [[[] for _ in asked] for asked in prompts]
  calls = schedule(longest(prompts), rows)
  widest = {length: max(len(n) for one, n in calls if one == length) for length, _ in calls}
  for length, numbers in tqdm(calls, "generating", leave=False, disable=hosts.bars()):
    chosen = [[n for n in numbers if n < len(asked)] for asked in prompts]
    pairs = zip(prompts, chosen, strict=True)
    padded = [
      pad_left([asked[n] for n in own], stop_tokens[0], length, widest[length])
      for asked, own in pairs
    ]
    tokens_ENT, mask_ENT = map(np.stack, zip(*padded, strict=True))
    numbers_EN = np.stack([np.resize(own or numbers, widest[length]) for own in chosen])
    count_E = np.asarray([len(own) for own in chosen])
    batch = {"tokens": tokens_ENT, "mask": mask_ENT, "numbers": numbers_EN, "count": count_E}
    for e, ids_Nn in enumerate(np.asarray(call(batch))):
      for n, ids_n in zip(chosen[e], ids_Nn, strict=False):
        made[e][n] = until_stop(ids_n, stop_tokens)
  return made


def longest(prompts: Iterable[Prompts]) -> list[int]:
  """Returns the tokens of each prompt, of the longest of its number where trials have their own."""
  return [max(map(len, several)) for several in itertools.zip_longest(*prompts, fillvalue=())]


def schedule(lengths: Sequence[int], rows: int) -> list[tuple[int, list[int]]]:
  """Sorts prompts into calls of `generate`, so that short ones are not padded to long ones.

  The prompts of a call are more than half as long as its longest one, unless that leaves fewer than
  fill the rows: every length is a program of its own. A call has at most 8 times as many prompts as
  rows.

  Returns:
    (length to pad to, numbers of the prompts) of each call.
  """
  order = sorted(range(len(lengths)), key=lengths.__getitem__)
  buckets: list[list[int]] = []
  while order:
    longest = lengths[order[-1]]
    shorter = sum(2 * lengths[n] <= longest for n in order)
    start = min(shorter, max(len(order) - rows, 0))
    start = start if start >= rows else 0
    buckets.append(sorted(order[start:]))
    order = order[:start]
  most = 8 * rows
  return [
    (max(lengths[n] for n in bucket), bucket[i : i + most])
    for bucket in buckets
    for i in range(0, len(bucket), most)
  ]


def pad_left(
  prompts: Prompts, pad: int, length: int, count: int | None = None
) -> tuple[Int[np.ndarray, "N T"], Bool[np.ndarray, "N T"]]:
  """Pads prompts of at most `length` tokens on the left; returns ids and mask, true on tokens.

  `count` is the number of rows, the last ones of which are padding; default that of the prompts.
  """
  shape = (count or len(prompts), length)
  tokens_NT, mask_NT = np.full(shape, pad, np.int32), np.zeros(shape, bool)
  for i, prompt in enumerate(prompts):
    tokens_NT[i, length - len(prompt) :] = prompt
    mask_NT[i, length - len(prompt) :] = True
  return tokens_NT, mask_NT


def until_stop(tokens: Iterable[int], stop_tokens: tuple[int, ...]) -> list[int]:
  """Returns the generated ids of a text before its first stop token."""
  return list(itertools.takewhile(lambda token: token not in stop_tokens, map(int, tokens)))
