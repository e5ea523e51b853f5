"""Rows of different lengths to arrays, and what happens to rows that are too long."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from jaxtune import schema
from jaxtune.data.options import EncodeOptions
from jaxtune.data.tokenizer import Tokenizer
from jaxtune.errors import UserError

PAD_TO = 8


def pad(rows: Sequence[Sequence], width: int, fill: Any = 0, dtype: Any = np.int32) -> np.ndarray:
  """Pads rows on the right: to (X, width), or to (X, width, ...) if the entries are sequences."""
  inner = next((np.shape(row[0]) for row in rows if len(row)), ())
  array = np.full((len(rows), width, *inner), fill, dtype)
  for at, row in enumerate(rows):
    if len(row):
      array[at, : len(row)] = row
  return array


def pad_tokens(
  tokenizer: Tokenizer, rows: Sequence[Sequence[int]], max_length: int | None
) -> dict[str, np.ndarray]:
  """Pads rows of token ids to "tokens" (X, T) int32 and "mask" (X, T) bool, true on real tokens."""
  lengths_X = np.array([len(row) for row in rows], np.int64)
  longest = int(lengths_X.max(initial=0))
  tokens_XT = pad(rows, width(longest, max_length), pad_token(tokenizer))
  return {"tokens": tokens_XT, "mask": np.arange(tokens_XT.shape[1]) < lengths_X[:, None]}


def to_widest(splits: Sequence[Mapping[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
  """Pads arrays of equal names with zeros to the largest size of each axis but the first."""
  padded: list[dict[str, np.ndarray]] = [{} for _ in splits]
  for name in splits[0]:
    largest = np.max([arrays[name].shape for arrays in splits], axis=0)
    for arrays, out in zip(splits, padded, strict=True):
      missing = [(0, 0), *((0, n) for n in (largest - arrays[name].shape)[1:])]
      out[name] = np.pad(arrays[name], missing) if np.any(missing) else arrays[name]
  return padded


def width(longest: int, most: int | None) -> int:
  """Rounds the length of the longest row up to a multiple of 8, but never beyond `most`."""
  rounded = -(-longest // PAD_TO) * PAD_TO
  return rounded if most is None else min(rounded, most)


def pad_token(tokenizer: Tokenizer) -> int:
  """Returns the id that fills rows up: padding's, else eos's, else 0 (the mask hides it)."""
  choices = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
  return next(token for token in choices if token is not None)


def find_too_long(
  lengths: Sequence[int],
  where: Sequence[str],
  options: EncodeOptions,
  policies: Sequence[str] = ("skip", "truncate"),
) -> list[int]:
  """Lists the numbers of the examples that have more than max_length tokens.

  Args:
    lengths, where: the tokens and the place of each example.
    policies: the values that data.too_long may have beside "error".

  Raises:
    UserError: if there are any and too_long is "error"; if too_long is none of the policies.
  """
  check_too_long(options.too_long, policies)
  most = options.max_length
  long = [at for at, length in enumerate(lengths) if most is not None and length > most]
  if long and options.too_long == "error":
    longest, place = max((lengths[at], where[at]) for at in long)
    raise UserError(
      f"{where[long[0]]}: {lengths[long[0]]} tokens, more than max_length={most}; so are "
      f"{len(long)} of {len(lengths)} examples, the longest {longest} tokens ({place}): raise "
      f"data.max_length, or set data.too_long to {' or '.join(map(repr, policies))}"
    )
  return long


def check_too_long(policy: str, policies: Sequence[str]) -> None:
  """Raises UserError unless `policy` is "error" or one of `policies`."""
  schema.check("data.too_long", policy, Literal["error", *policies])
