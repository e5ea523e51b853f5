"""Prompts with answers, and plain text.

Prompt and answer are tokenised apart and their ids joined, so that the prompt's ids in training are
those that generation will see. No token reaches across the border: a template ends in the newline
or the space that separates the two.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from jaxtune.data import padding, specials
from jaxtune.data.encode.shared import drop_untrained, in_batches, to_split
from jaxtune.data.options import EncodeOptions
from jaxtune.data.prompts import encode_prompts
from jaxtune.data.split import Split, counts
from jaxtune.data.templates import Example
from jaxtune.data.tokenizer import Tokenizer, token_ids
from jaxtune.errors import UserError

SHORTEST_TAIL = 16  # a document's last chunk is kept from this many tokens on


class _Item(NamedTuple):
  ids: list[int]
  trained_from: int  # position of the first target
  prompt: list[int]
  example: Example
  doubled: list[str]  # the special tokens that come twice


def encode(
  tokenizer: Tokenizer, examples: Sequence[Example], options: EncodeOptions
) -> tuple[Split, dict]:
  """Encodes prompts, answers and stop tokens.

  A beginning-of-sequence token comes first if the tokenizer adds one itself; the stop token is the
  tokenizer's eos. The answer and the stop token are trained on; of plain text, every token but the
  first.

  For an encoder-decoder, the prompt, with the special tokens that the tokenizer adds to a text, is
  "inputs" (X, S) with "inputs_mask"; "tokens" are decoder_start, the answer and the stop token.

  Args:
    options: too_long="truncate" cuts the end; "chunk" (plain text only) cuts each document into
      consecutive windows of max_length, the last of which is kept from 16 tokens on.

  Returns:
    The split, and counts; if texts hold "bos" or "eos" themselves, also "special_tokens".

  Raises:
    UserError: with file and line, by the policies; or for a tokenizer without eos.
  """
  if options.max_length is not None and options.max_length < 2:
    raise UserError(f"data.max_length is {options.max_length}, expected 2 or more tokens")
  if tokenizer.eos_token_id is None:
    raise UserError("the tokenizer has no eos token, so answers cannot end: set its `eos_token`")
  items = list(_tokenise(tokenizer, examples, options))
  items, doubled = _settle_specials(tokenizer, items, options)
  lengths = [max(len(item.ids), len(item.prompt)) for item in items]
  where = [item.example.where for item in items]
  plain = all(item.example.prompt is None for item in items)
  policies = ("skip", "truncate", *["chunk"] * (plain or options.too_long == "chunk"))
  long = padding.find_too_long(lengths, where, options, policies)
  items, short_tails = _shorten(items, options)
  trained = [item.trained_from < len(item.ids) for item in items]
  items, empty = drop_untrained(items, trained, options)
  skips = options.too_long == "skip"
  skipped = {"too_long": len(long) * skips, "no_target": empty, "short_tail": short_tails}
  split = _to_split(tokenizer, items, options)
  return split, counts(split, skipped, len(long) * (not skips), **doubled)


def _tokenise(
  tokenizer: Tokenizer, examples: Sequence[Example], options: EncodeOptions
) -> Iterator[_Item]:
  start = options.decoder_start
  for batch in in_batches(examples):
    prompts = [example.prompt or "" for example in batch]
    texts = [example.answers[0] if example.answers else "" for example in batch]
    ids = zip(
      encode_prompts(tokenizer, prompts, bool(start)), token_ids(tokenizer, texts), strict=True
    )
    for example, text, (prompt, answer) in zip(batch, texts, ids, strict=True):
      plain = example.prompt is None
      if start and plain:
        raise UserError(f"{example.where}: plain text has no prompt, which an encoder needs")
      ids = [*(start or prompt), *answer, tokenizer.eos_token_id]
      # The first token has nothing before it to be predicted from.
      trained_from = 1 if plain else max(len(start or prompt), 1)
      doubled = specials.doubled(tokenizer, prompt, answer, plain)
      yield _Item(ids, trained_from if text.strip() else len(ids), prompt, example, doubled)


def _settle_specials(
  tokenizer: Tokenizer, items: list[_Item], options: EncodeOptions
) -> tuple[list[_Item], dict]:
  """Applies the policy to special tokens that come twice; returns how often each does."""
  count = Counter(name for item in items for name in item.doubled)
  if count and options.special_tokens == "strip":
    whole = bool(options.decoder_start)
    twice = [item.example for item in items if item.doubled]
    bare = [specials.stripped(tokenizer, example, whole) for example in twice]
    again = _tokenise(tokenizer, bare, options)
    items = [next(again) if item.doubled else item for item in items]
  twice = [item for item in items if item.doubled]
  if twice and options.special_tokens != "allow":
    more = f" (in {len(twice)} of {len(items)} examples)"
    raise specials.refuse(tokenizer, twice[0].doubled, twice[0].example.where, more)
  return items, {"special_tokens": dict(count)} if count else {}


def _shorten(items: list[_Item], options: EncodeOptions) -> tuple[list[_Item], int]:
  """Applies the policy to items that are too long; also counts the chunks too short to keep."""
  most = options.max_length
  if most is None:
    return items, 0
  kept, tails = [], 0
  for item in items:
    inputs = len(item.prompt) if options.decoder_start else 0
    if max(len(item.ids), inputs) <= most:
      kept.append(item)
    elif options.too_long == "truncate":
      if inputs > most:  # a text to be encoded keeps its end token
        item = item._replace(prompt=item.prompt[: most - 1] + item.prompt[-1:])
      kept.append(item._replace(ids=item.ids[:most]))
    elif options.too_long == "chunk":
      if item.example.prompt is not None:
        raise UserError(
          f"{item.example.where}: too_long='chunk' is for plain text, and this has a prompt: "
          "use 'truncate' or 'skip'"
        )
      chunks = [item.ids[at : at + most] for at in range(0, len(item.ids), most)]
      long_enough = [ids for ids in chunks if len(ids) >= min(SHORTEST_TAIL, most)]
      kept += [item._replace(ids=ids) for ids in long_enough]
      tails += len(chunks) - len(long_enough)
  return kept, tails


def _to_split(tokenizer: Tokenizer, items: Sequence[_Item], options: EncodeOptions) -> Split:
  arrays = padding.pad_tokens(tokenizer, [item.ids for item in items], options.max_length)
  trained_from_X = np.array([item.trained_from for item in items], np.int64)
  later_XT = np.arange(arrays["mask"].shape[1]) >= trained_from_X[:, None]
  arrays["weights"] = (arrays["mask"] & later_XT).astype(np.float32)
  if options.decoder_start:
    inputs = padding.pad_tokens(tokenizer, [item.prompt for item in items], options.max_length)
    arrays |= {"inputs": inputs["tokens"], "inputs_mask": inputs["mask"]}
  examples = [item.example for item in items]
  prompts = [[] if item.example.prompt is None else item.prompt for item in items]
  references = [[] if example.prompt is None else example.answers for example in examples]
  return to_split(arrays, examples, prompts, references)
