"""Whole texts, or pairs of them, without their labels: what classification and regression share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxtune.data import cells, padding
from jaxtune.data.options import EncodeOptions
from jaxtune.data.prompts import encode_prompts
from jaxtune.data.split import Split
from jaxtune.data.templates import Example, sandbox
from jaxtune.data.tokenizer import Tokenizer, ends_texts, token_ids
from jaxtune.errors import UserError


class Encoded(NamedTuple):
  """Tokenised texts.

  Attributes:
    split: without labels.
    kept: the numbers of the examples that it holds.
    skipped: how many were left out, by reason.
    truncated: how many were cut.
  """

  split: Split
  kept: list[int]
  skipped: dict[str, int]
  truncated: int


class _Rows(NamedTuple):
  ids: list[list[int]]
  types: list[list[int] | None]  # which of two texts a token belongs to, for tokenizers that say
  special: int  # tokens of a row that are not the text's


def read_texts(row: dict, text: str, pair: str | None) -> tuple[dict[str, str | None], str]:
  """Reads a text and a second one, columns or Jinja; returns them by name, and joined by a line."""
  texts = {"text": read_text(row, text), "pair": None if pair is None else read_text(row, pair)}
  return texts, "\n".join(one for one in texts.values() if one is not None)


def read_text(row: dict, source: str) -> str:
  """Reads a column, or renders Jinja, which must not be empty."""
  make = sandbox.renderer(source) if sandbox.is_template(source) else None
  text = make(row) if make else cells.check_text(source, row)
  if not text.strip():
    raise UserError(f"the text of {source!r} is empty")
  return text


def encode(tokenizer: Tokenizer, examples: Sequence[Example], options: EncodeOptions) -> Encoded:
  """Encodes texts; too_long can be "skip" or "truncate", which cuts the longer of two texts first.

  Special tokens are the tokenizer's own. One that adds none at the end of a text, as decoders' do,
  gets its eos at the end of each, from which a head on the last token reads.
  """
  rows = _tokenise(tokenizer, examples, None)
  ids, types = list(rows.ids), list(rows.types)
  empty = [at for at, row in enumerate(ids) if len(row) <= rows.special]
  if empty and options.malformed == "error":
    raise UserError(f"{examples[empty[0]].where}: the tokenizer leaves no token of the text")
  where = [example.where for example in examples]
  long = padding.find_too_long([len(row) for row in ids], where, options)
  cut = options.too_long == "truncate"
  if long and cut:
    if options.max_length <= rows.special:
      raise UserError(
        f"data.max_length is {options.max_length}, expected more than the {rows.special} special "
        "tokens of a row"
      )
    shortened = _tokenise(tokenizer, [examples[at] for at in long], options.max_length)
    for at, row, kinds in zip(long, shortened.ids, shortened.types, strict=True):
      ids[at], types[at] = row, kinds
  out = {*empty} | (set() if cut else {*long})
  kept = [at for at in range(len(examples)) if at not in out]
  arrays = padding.pad_tokens(tokenizer, [ids[at] for at in kept], options.max_length)
  arrays["weights"] = np.ones(len(kept), np.float32)
  if any(types[at] is not None for at in kept):
    arrays["types"] = padding.pad([types[at] for at in kept], arrays["tokens"].shape[1])
  split = Split(
    arrays,
    prompts=[[] for _ in kept],
    references=[examples[at].answers for at in kept],
    rows=[examples[at].row for at in kept],
    where=[examples[at].where for at in kept],
  )
  skipped = {"too_long": len(long) * (not cut), "no_token": len(empty)}
  return Encoded(split, kept, skipped, len(long) * cut)


def _tokenise(tokenizer: Tokenizer, examples: Sequence[Example], max_length: int | None) -> _Rows:
  """Tokenises texts, cut at max_length."""
  if not examples:
    return _Rows([], [], 0)
  closed = ends_texts(tokenizer)
  return (_with_own_specials if closed else _with_eos)(tokenizer, examples, max_length)


def _with_own_specials(
  tokenizer: Tokenizer, examples: Sequence[Example], max_length: int | None
) -> _Rows:
  pairs = [example.row["pair"] for example in examples]
  paired = pairs[0] is not None
  cut = {} if max_length is None else {"truncation": "longest_first", "max_length": max_length}
  texts = [example.row["text"] for example in examples]
  out = tokenizer(texts, pairs if paired else None, verbose=False, **cut)
  typed = paired and "token_type_ids" in out and any(map(any, out["token_type_ids"]))
  types = out["token_type_ids"] if typed else [None] * len(examples)
  return _Rows(out["input_ids"], types, tokenizer.num_special_tokens_to_add(pair=paired))


def _with_eos(tokenizer: Tokenizer, examples: Sequence[Example], max_length: int | None) -> _Rows:
  eos = tokenizer.eos_token_id
  if eos is None:
    raise UserError("the tokenizer has no eos token to end texts with: set its `eos_token`")
  front = len(encode_prompts(tokenizer, [""])[0])
  lefts = encode_prompts(tokenizer, [example.row["text"] for example in examples])
  pairs = [example.row["pair"] for example in examples]
  paired = any(pair is not None for pair in pairs)
  rights = token_ids(tokenizer, [pair or "" for pair in pairs])
  special = front + 1 + paired
  if max_length is not None:
    room = max_length - special
    for at, (left, right) in enumerate(zip(lefts, rights, strict=True)):
      half = max(room // 2, room - len(right))
      length = min(len(left) - front, half)
      lefts[at], rights[at] = left[: front + length], right[: room - length]
  ids = [
    left + [eos] + (right + [eos] if paired else [])
    for left, right in zip(lefts, rights, strict=True)
  ]
  return _Rows(ids, [None] * len(ids), special)
