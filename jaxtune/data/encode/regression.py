"""Texts, or pairs of them, with a number each."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from jaxtune.data import cells, labels
from jaxtune.data.encode import whole_texts
from jaxtune.data.options import EncodeOptions
from jaxtune.data.split import Split
from jaxtune.data.templates import Example
from jaxtune.data.tokenizer import Tokenizer
from jaxtune.errors import UserError


def read_row(
  row: dict, text: str = "text", pair: str | None = None, label: str = "label"
) -> tuple[dict, str, list[str]]:
  """Reads a text, perhaps a second one (`pair`), both columns or Jinja, and a number."""
  value = cells.check_column(label, row)
  try:
    number = math.nan if isinstance(value, bool) else float(value)
  except (TypeError, ValueError, OverflowError):
    number = math.nan
  if not math.isfinite(number):
    raise UserError(f"column {label!r} holds {value!r}, expected a number")
  texts, joined = whole_texts.read_texts(row, text, pair)
  return texts | {"label": number}, joined, [labels.written(number)]


def encode(
  tokenizer: Tokenizer, examples: Sequence[Example], options: EncodeOptions
) -> tuple[Split, dict]:
  """Encodes texts as `whole_texts.encode` does, with a number each: labels (X,) float32.

  Returns:
    The split, and counts with "range", the smallest and the largest label.
  """
  labels_X = np.array([example.row["label"] for example in examples], np.float32)
  split, counted = whole_texts.encode(tokenizer, examples, labels_X, options, {})
  kept_X = split.arrays["labels"]
  ends = [float(kept_X.min()), float(kept_X.max())] if len(kept_X) else None
  return split, counted | {"range": ends}
