"""Tagging of words (named entities, parts of speech) by a head on every token."""

from __future__ import annotations

from functools import partial

import numpy as np
from jaxtyping import Array, Float

from jaxtune.data import Data, Split, reading, views
from jaxtune.data.encode import tokens
from jaxtune.objectives import Batch, Forward, Sums, cross_entropy
from jaxtune.schema import Rate

HEAD = "tokens"
MEASURES = ("loss", "accuracy")
KIND = "tags"
METRICS = ("span_f1", "span_precision", "span_recall")
VIEW = views.WORDS

read = partial(reading.read_columns, tokens.read_row)
encode = tokens.encode


def loss(
  forward: Forward, batch: Batch, label_smoothing: Rate = 0.0
) -> tuple[Float[Array, " B"], Sums]:
  """Sums -log p(tag) of each row's words in nats.

  Args:
    forward: (batch) -> logits (B, T, C) in fp32.
    batch: labels and weights, each (B, T); the weight is 1 at each word's first subword.
    label_smoothing: share of the tag's probability that is spread over the tags.
  """
  losses_BT, correct_BT = cross_entropy(forward(batch), batch["labels"], label_smoothing)
  weights_BT = batch["weights"]
  return (losses_BT * weights_BT).sum(1), {
    "weight": weights_BT.sum(1),
    "correct": (correct_BT * weights_BT).sum(1),
  }


def predict(forward: Forward, batch: Batch) -> Batch:
  """Returns the likeliest "labels" (B, T) of all tokens."""
  return {"labels": forward(batch).argmax(-1)}


def decode(dataset: Data, split: Split, arrays: dict[str, np.ndarray]) -> list[list[str]]:
  """Gives every word its tag; "O" where truncation cut it off."""
  return tokens.word_tags(split, arrays["labels"], dataset.labels)


def references(dataset: Data, split: Split) -> list[list[str]]:
  """Returns the true tag of every word."""
  return split.references
