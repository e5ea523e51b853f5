"""Whole texts, or pairs of them, with a number each: what classification and regression share."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from jaxtune.data import cells, padding
from jaxtune.data.encode.shared import Row, fit, to_split
from jaxtune.data.options import EncodeOptions
from jaxtune.data.prompts import encode_prompts
from jaxtune.data.split import Split, counts
from jaxtune.data.templates import Example, sandbox
from jaxtune.data.tokenizer import Tokenizer, ends_texts, token_ids
from jaxtune.errors import UserError


def read_texts(row: dict, text: str, pair: str | None) -> tuple[dict[str, str | None], str]:
  """Reads a text and a second one, columns or Jinja; returns them by name, and joined by a line."""
  texts = {"text": read_text(row, text), "pair": None if pair is None else read_text(row, pair)}
  return texts, "\n".join(one for one in texts.values() if one is not None)


def read_text(row: dict, source: str) -> str:
  """Reads a column, or renders Jinja, which must not be empty."""
  if sandbox.is_template(source):
    text = sandbox.renderer(source)(row)
  else:
    text = cells.check_text(source, row)
  if not text.strip():
    raise UserError(f"the text of {source!r} is empty")
  return text


def encode(
  tokenizer: Tokenizer,
  examples: Sequence[Example],
  labels_X: np.ndarray,
  options: EncodeOptions,
  skipped: dict[str, int],
) -> tuple[Split, dict]:
  """Encodes texts with their labels; a skipped text is left out together with its label.

  Special tokens are the tokenizer's own. A tokenizer that adds none at the end of a text, as those
  of decoders do, gets its eos at the end of each, from which a head on the last token reads.

  Args:
    labels_X: the label of every example.
    options: too_long can be "skip" or "truncate", which cuts the longer of two texts first;
      malformed is for a text without a token.
    skipped: how many examples were left out before, by reason.
  """
  paired = any(example.row["pair"] is not None for example in examples)
  if ends_texts(tokenizer):
    tokenise, special = _with_own_specials, tokenizer.num_special_tokens_to_add(pair=paired)
  else:
    tokenise, special = _with_eos, len(encode_prompts(tokenizer, [""])[0]) + 1 + paired
  rows, unfit, truncated = fit(examples, partial(tokenise, tokenizer, special), special, options)
  arrays = padding.pad_tokens(tokenizer, [row.ids for row in rows.values()], options.max_length)
  arrays |= {"weights": np.ones(len(rows), np.float32), "labels": labels_X[list(rows)]}
  types = [row.marks for row in rows.values()]
  if any(types):
    arrays["types"] = padding.pad(types, arrays["tokens"].shape[1])
  split = to_split(arrays, [examples[at] for at in rows])
  return split, counts(split, unfit | skipped, truncated)


def _with_own_specials(
  tokenizer: Tokenizer, special: int, examples: Sequence[Example], max_length: int | None
) -> list[Row]:
  """Tokenises texts with the tokenizer's special tokens; marks tell a pair's texts apart."""
  texts = [example.row["text"] for example in examples]
  pairs = [example.row["pair"] for example in examples]
  paired = pairs[0] is not None
  cut = {} if max_length is None else {"truncation": "longest_first", "max_length": max_length}
  out = tokenizer(texts, pairs if paired else None, verbose=False, **cut)
  typed = paired and "token_type_ids" in out and any(map(any, out["token_type_ids"]))
  types = out["token_type_ids"] if typed else [()] * len(examples)
  pairs = zip(out["input_ids"], types, strict=True)
  return [Row(ids, len(ids) - special, marks) for ids, marks in pairs]


def _with_eos(
  tokenizer: Tokenizer, special: int, examples: Sequence[Example], max_length: int | None
) -> list[Row]:
  """Tokenises texts with eos at the end of each."""
  eos = tokenizer.eos_token_id
  if eos is None:
    raise UserError("the tokenizer has no eos token to end texts with: set its `eos_token`")
  pairs = [example.row["pair"] for example in examples]
  paired = pairs[0] is not None
  front = special - 1 - paired
  lefts = encode_prompts(tokenizer, [example.row["text"] for example in examples])
  rights = token_ids(tokenizer, [pair or "" for pair in pairs])
  rows = []
  for left, right in zip(lefts, rights, strict=True):
    if max_length is not None:
      room = max_length - special
      length = min(len(left) - front, max(room // 2, room - len(right)))
      left, right = left[: front + length], right[: room - length]
    ids = [*left, eos, *(right + [eos] if paired else [])]
    rows.append(Row(ids, len(ids) - special))
  return rows
