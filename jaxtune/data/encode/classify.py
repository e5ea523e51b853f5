"""Texts, or pairs of them, with a class each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from jaxtune.data import cells, labels
from jaxtune.data.encode import whole_texts
from jaxtune.data.options import EncodeOptions
from jaxtune.data.split import Split
from jaxtune.data.templates import Example
from jaxtune.data.tokenizer import Tokenizer


def read_row(
  row: dict, text: str = "text", pair: str | None = None, label: str = "label"
) -> tuple[dict, str, list[str]]:
  """Reads a text, perhaps a second one (`pair`), both columns or Jinja, and the name of a class."""
  value = cells.check_class(label, row)
  texts, joined = whole_texts.read_texts(row, text, pair)
  return texts | {"label": value}, joined, [labels.written(value)]


def encode(
  tokenizer: Tokenizer, examples: Sequence[Example], options: EncodeOptions
) -> tuple[Split, dict]:
  """Encodes texts as `whole_texts.encode` does, with a class each: labels (X,) int32.

  Args:
    options: malformed is for a label that is not in the set or a text without a token.

  Returns:
    The split (references are the labels' names), and counts with "labels" (names in order) and
    "classes" (examples by name).
  """
  names = labels.names((example.row["label"] for example in examples), options.labels)
  number = lambda example: labels.index(example.row["label"], names, options.numbered_labels)
  pairs, unknown = labels.checked(examples, number, options.malformed)
  labels_X = np.array([number for _, number in pairs], np.int32)
  split, counted = whole_texts.encode(
    tokenizer, [example for example, _ in pairs], labels_X, options, {"label": unknown}
  )
  references = [[names[label]] for label in split.arrays["labels"]]
  present = Counter(name for (name,) in references)
  classes = {name: present[name] for name in names}
  return split._replace(references=references), counted | {"labels": names, "classes": classes}
