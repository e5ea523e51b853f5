"""Checks that a model has an embedding for every token: for an id beyond, jax reads the last."""

from __future__ import annotations

from collections.abc import Iterable

from jaxtune.data.split import Split
from jaxtune.data.tokenizer import Tokenizer
from jaxtune.errors import UserError


def check(
  tokenizer: Tokenizer, rows: Iterable[Iterable[int]], size: int, where: Iterable[str]
) -> None:
  """Raises UserError for an id of `size` or more in any row; `where` gives the rows' places."""
  for row, place in zip(rows, where, strict=True):
    highest = max(row, default=0)
    if highest >= size:
      token = tokenizer.convert_ids_to_tokens(int(highest))
      raise UserError(
        f"{place}: the token {token!r} has the id {highest}, and the model has embeddings for "
        f"{size} tokens: use the tokenizer that the model was trained with, or enlarge its "
        "embeddings"
      )


def check_split(tokenizer: Tokenizer, split: Split, size: int) -> None:
  """Checks all ids of a split that a model will be given, also those of its prompts."""
  check(tokenizer, split.prompts, size, split.where)
  arrays = split.arrays
  given = [arrays["tokens"] * arrays["mask"]]
  given += [arrays["inputs"] * arrays["inputs_mask"]] if "inputs" in arrays else []
  given += [arrays["answers"] - 1] if "answers" in arrays else []
  for ids in given:
    highest_X = ids.reshape(len(ids), -1).max(1, initial=0)
    row = int((highest_X >= size).argmax())  # the first of them, if any
    place = split.where[arrays["example"][row] if "example" in arrays else row]
    check(tokenizer, [[highest_X[row]]], size, [place])
