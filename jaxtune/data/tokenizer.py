"""Calls of a transformers tokenizer that several modules need."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Tokenizer = Any  # a transformers tokenizer; importing transformers here would take seconds


def token_ids(tokenizer: Tokenizer, texts: Sequence[str], special: bool = False) -> list[list[int]]:
  """Tokenises texts: a list of ids for each.

  Args:
    special: whether to add the special tokens that the tokenizer puts around a text.
  """
  if not texts:
    return []
  return tokenizer(
    list(texts), add_special_tokens=special, return_attention_mask=False,
    return_token_type_ids=False, verbose=False,
  ).input_ids  # fmt: skip


def ends_texts(tokenizer: Tokenizer) -> bool:
  """Tells whether a tokenizer puts a special token at the end of a text by itself."""
  (bare,), (whole,) = token_ids(tokenizer, ["a"]), token_ids(tokenizer, ["a"], special=True)
  return whole[-1:] != bare[-1:]
