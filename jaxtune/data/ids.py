"""Whether a model has an embedding for every token: beyond the last, jax takes the last."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from jaxtune.data.split import Split
from jaxtune.data.tokenizer import Tokenizer
from jaxtune.errors import UserError


def check(tokenizer: Tokenizer, ids: Iterable[int], size: int, what: str) -> None:
  """Raises UserError for an id of `size` or more; `what` names the text, or its place."""
  highest = max(ids, default=0)
  if highest >= size:
    token = tokenizer.convert_ids_to_tokens(int(highest))
    raise UserError(
      f"{what}: the token {token!r} has the id {highest}, and the model has embeddings for {size} "
      "tokens: use the tokenizer that the model was trained with, or enlarge its embeddings"
    )


def check_rows(
  tokenizer: Tokenizer, rows: Sequence[Sequence[int]], size: int, where: Sequence[str] | None = None
) -> None:
  """Checks the ids of every row."""
  for n, row in enumerate(rows):
    check(tokenizer, row, size, where[n] if where else f"prompt {n + 1}")


def check_split(tokenizer: Tokenizer, split: Split, size: int) -> None:
  """Checks all that a model will be given of a split, its prompts included."""
  check_rows(tokenizer, split.prompts, size, split.where)
  arrays = split.arrays
  id_arrays = [arrays["tokens"] * arrays["mask"]]
  id_arrays += [arrays["inputs"] * arrays["inputs_mask"]] if "inputs" in arrays else []
  id_arrays += [arrays["answers"] - 1] if "answers" in arrays else []
  for ids in id_arrays:
    highest_N = ids.reshape(len(ids), -1).max(1, initial=0)
    beyond = np.flatnonzero(highest_N >= size)[:1]
    for row in beyond:
      place = split.where[arrays["example"][row] if "example" in arrays else row]
      check(tokenizer, [int(highest_N[row])], size, place)
