"""Tagging of words (named entities, parts of speech) by a head on every token."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxtune.data import labelled
from jaxtune.objectives import cross_entropy
from jaxtune.schema import Rate

HEAD = "tokens"
MEASURES = ("loss", "accuracy")
KIND = "tags"
METRICS = ("span_f1", "span_precision", "span_recall")


def loss(
  forward: Callable, batch: dict[str, Any], label_smoothing: Rate = 0.0
) -> tuple[Any, dict[str, Any]]:
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


def predict(forward: Callable, batch: dict[str, Any]) -> dict[str, Any]:
  return {"labels": forward(batch).argmax(-1)}


def decode(dataset, split, arrays: dict[str, Any]) -> list[list[str]]:
  """Gives every word its tag; "O" where truncation cut it off."""
  return labelled.word_tags(split, arrays["labels"], dataset.labels)


def references(dataset, split) -> list[list[str]]:
  """Returns the true tag of every word."""
  return split.references
