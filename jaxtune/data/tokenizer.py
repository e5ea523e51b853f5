"""What is asked of a tokenizer: the ids of prompts and of answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxtune import schema
from jaxtune.data import specials

Tokenizer = Any  # a transformers tokenizer; importing transformers here would take seconds


def token_ids(tokenizer: Tokenizer, texts: Sequence[str], special: bool = False) -> list[list[int]]:
  """Tokenises texts.

  Args:
    special: whether with the special tokens that the tokenizer adds to a text.
  """
  if not texts:
    return []
  return tokenizer(
    list(texts), add_special_tokens=special, return_attention_mask=False,
    return_token_type_ids=False, verbose=False,
  ).input_ids  # fmt: skip


def encode_prompts(
  tokenizer: Tokenizer,
  prompts: Sequence[str],
  whole: bool = False,
  special_tokens: str = "allow",
  where: Sequence[str] | None = None,
) -> list[list[int]]:
  """Tokenises prompts as training does: special tokens in front, no stop token behind.

  Args:
    whole: as an encoder reads them: with all special tokens that the tokenizer adds.
    special_tokens: for prompts that hold these tokens themselves; see `EncodeOptions`.
    where: places of the prompts, for errors.
  """
  ids = token_ids(tokenizer, prompts, special=True)
  ids = ids if whole else _without_stop(tokenizer, ids)
  for n, row in enumerate(ids if special_tokens != "allow" else ()):
    if doubled := specials.doubled(tokenizer, row, []):
      if special_tokens == "error":
        what = where[n] if where else f"the prompt {schema.shown(prompts[n])}"
        raise specials.refuse(tokenizer, doubled, what)
      text = specials.bare(tokenizer, prompts[n], whole)
      (ids[n],) = encode_prompts(tokenizer, [text], whole, "error")
  return ids


def _without_stop(tokenizer: Tokenizer, ids: list[list[int]]) -> list[list[int]]:
  """Keeps of the special tokens around texts those in front, as an answer is to follow."""
  around = tokenizer("a").input_ids
  stops = around[-1:] == [tokenizer.eos_token_id]
  missing = getattr(tokenizer, "add_bos_token", False) and around[:1] != [tokenizer.bos_token_id]
  front = [tokenizer.bos_token_id] if missing and tokenizer.bos_token_id is not None else []
  return [front + (row[:-1] if stops else row) for row in ids]


def ends_texts(tokenizer: Tokenizer) -> bool:
  """Tells whether a tokenizer adds a special token of its own at the end of a text."""
  return tokenizer("a").input_ids[-1] in tokenizer.all_special_ids
