"""The ids of prompts, as training and generation see them."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtune import schema
from jaxtune.data import specials
from jaxtune.data.tokenizer import Tokenizer, token_ids


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
