"""What encoders share: batches of examples, the policies for those that do not fit, and the split.

A policy leaves an example out or refuses it, as an option of `EncodeOptions` says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from jaxtune import hosts
from jaxtune.data import padding
from jaxtune.data.options import EncodeOptions
from jaxtune.data.split import Split
from jaxtune.data.templates import Example
from jaxtune.errors import UserError

_BATCH = 1000


class Row(NamedTuple):
  """A tokenised text.

  Attributes:
    ids: of its tokens, with special ones.
    seen: how many tokens, or words, the tokenizer left of the text before it was cut.
    marks: a number for each token, whose meaning the encoder decides; () where it has none.
  """

  ids: list[int]
  seen: int
  marks: Sequence[int] = ()


def in_batches(examples: Sequence[Example]) -> Iterator[Sequence[Example]]:
  """Yields the examples in batches that a tokenizer takes at once; shows progress if many."""
  quiet = len(examples) < 10_000 or not hosts.primary()
  with tqdm(total=len(examples), desc="Tokenising", unit=" rows", disable=quiet) as bar:
    for start in range(0, len(examples), _BATCH):
      batch = examples[start : start + _BATCH]
      yield batch
      bar.update(len(batch))


def fit(
  examples: Sequence[Example],
  tokenise: Callable[[Sequence[Example], int | None], list[Row]],
  special: int,
  options: EncodeOptions,
) -> tuple[dict[int, Row], dict[str, int], int]:
  """Tokenises texts, and applies the policies to those that are too long or leave no token.

  Args:
    tokenise: (examples, max_length) -> their rows, cut at max_length unless that is None.
    special: how many tokens of a row are not the text's.

  Returns:
    The rows that are kept, by the number of their example; how many examples are left out, by
    reason; and how many are cut.
  """
  rows = tokenise(examples, None) if examples else []
  where = [example.where for example in examples]
  long = padding.find_too_long([len(row.ids) for row in rows], where, options)
  silent = [at for at, row in enumerate(rows) if not row.seen]
  if silent and options.malformed == "error":
    raise UserError(f"{where[silent[0]]}: the tokenizer leaves no token of the text")
  cut = options.too_long == "truncate"
  if long and cut:
    if options.max_length <= special:
      raise UserError(
        f"data.max_length is {options.max_length}, expected more than the {special} special tokens "
        "of a row"
      )
    shortened = tokenise([examples[at] for at in long], options.max_length)
    for at, short in zip(long, shortened, strict=True):
      rows[at] = short._replace(seen=rows[at].seen)
  out = {*silent, *(() if cut else long)}
  kept = {at: row for at, row in enumerate(rows) if at not in out}
  skipped = {"too_long": len(long) * (not cut), "no_token": len(silent)}
  return kept, skipped, len(long) * cut


def drop_untrained(
  items: Sequence[Any], trained: Sequence[bool], options: EncodeOptions
) -> tuple[list[Any], int]:
  """Applies the policy to items, which have an `example`, without a token that is trained.

  Returns:
    The others, or with the policy "keep" all of them, and how many were left out.
  """
  if options.no_target == "keep":
    return list(items), 0
  kept = [item for item, some in zip(items, trained, strict=True) if some]
  empty = [item.example.where for item, some in zip(items, trained, strict=True) if not some]
  if empty and options.no_target == "error":
    raise UserError(
      f"{', '.join(empty[:3])}: no token to train on (the answer is empty, or was cut off); "
      f"{len(empty)} of {len(items)} examples: mend them, raise data.max_length, or set "
      "data.no_target='skip'"
    )
  return kept, len(empty)


def to_split(
  arrays: dict[str, np.ndarray],
  examples: Sequence[Example],
  prompts: list[list[int]] | None = None,
  references: list[list[str]] | None = None,
  choices: list[list[str]] | None = None,
) -> Split:
  """Makes a split of encoded examples; by default with no prompts and the examples' answers."""
  return Split(
    arrays,
    [[] for _ in examples] if prompts is None else prompts,
    [example.answers for example in examples] if references is None else references,
    rows=[example.row for example in examples],
    where=[example.where for example in examples],
    choices=choices,
  )
