"""Tokenises prompts, for training and for generation alike."""

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
  """Tokenises prompts with special tokens in front of them and without a stop token behind.

  Args:
    whole: whether to keep all special tokens that the tokenizer adds, as an encoder needs them.
    special_tokens: what happens to prompts that hold these tokens; see `EncodeOptions`.
    where: the places of the prompts, for errors.
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


def prompt_texts(tokenizer: Tokenizer, prompts: Sequence[list[int]]) -> list[str]:
  """Returns the texts that `encode_prompts` makes these ids of.

  Their special tokens are written out, but for a BOS that the tokenizer adds.
  """
  bos = tokenizer.bos_token_id
  adds = bos is not None and encode_prompts(tokenizer, ["a"])[0][:1] == [bos]
  bare = [ids[1:] if adds and ids[:1] == [bos] else ids for ids in prompts]
  return [tokenizer.decode(ids, clean_up_tokenization_spaces=False) for ids in bare]


def _without_stop(tokenizer: Tokenizer, ids: list[list[int]]) -> list[list[int]]:
  """Takes off the stop token behind texts, as an answer will follow, and adds a missing BOS."""
  around = tokenizer("a").input_ids
  stops = around[-1:] == [tokenizer.eos_token_id]
  missing = getattr(tokenizer, "add_bos_token", False) and around[:1] != [tokenizer.bos_token_id]
  front = [tokenizer.bos_token_id] if missing and tokenizer.bos_token_id is not None else []
  return [front + (row[:-1] if stops else row) for row in ids]
