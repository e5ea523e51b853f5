"""Tagging of words (named entities, parts of speech) by a head on every token."""

from __future__ import annotations

from functools import partial

import numpy as np

from jaxtune.data import Data, Split, reading, views
from jaxtune.data.encode import tokens
from jaxtune.objectives import classify

HEAD = "tokens"
MEASURES = ("loss", "accuracy")
METRICS = ("span_f1", "span_precision", "span_recall")
VIEW = views.WORDS

read = partial(reading.read_columns, tokens.read_row)
encode = tokens.encode
# Every token is classified; its weight is 1 where it is the first subword of a word, else 0.
loss, predict = classify.loss, classify.predict


def decode(dataset: Data, split: Split, arrays: dict[str, np.ndarray]) -> list[list[str]]:
  """Returns the tag of every word; "O" for a word that truncation cut off."""
  return tokens.word_tags(split, arrays["labels"], dataset.labels)


def references(dataset: Data, split: Split) -> list[list[str]]:
  """Returns the true tag of every word."""
  return split.references
