"""Texts, or pairs of them, with a number each."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from jaxtune.data import cells
from jaxtune.data.encode import whole_texts
from jaxtune.data.options import EncodeOptions
from jaxtune.data.split import Split, counts
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
  return texts | {"label": number}, joined, [str(value)]


def encode(
  tokenizer: Tokenizer, examples: Sequence[Example], options: EncodeOptions
) -> tuple[Split, dict]:
  """Encodes texts as `whole_texts.encode` does, with a number each: labels (N,) float32.

  Returns:
    The split, and counts with "range", the smallest and the largest label.
  """
  split, kept, skipped, truncated = whole_texts.encode(tokenizer, examples, options)
  labels_N = np.array([examples[at].row["label"] for at in kept], np.float32)
  split = split._replace(arrays=split.arrays | {"labels": labels_N})
  ends = [float(labels_N.min()), float(labels_N.max())] if len(labels_N) else None
  return split, counts(split, skipped, truncated, range=ends)
