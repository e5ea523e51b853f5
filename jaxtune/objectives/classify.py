"""Classification of whole texts by a head on the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxtune.objectives import cross_entropy
from jaxtune.schema import Rate

HEAD = "classify"
MEASURES = ("loss",)
KIND = "label"
METRICS = ("accuracy", "balanced_accuracy", "macro_f1", "matthews")


def loss(
  forward: Callable, batch: dict[str, Any], label_smoothing: Rate = 0.0
) -> tuple[Any, dict[str, Any]]:
  """Returns -log p(label) of each row in nats.

  Args:
    forward: (batch) -> logits (B, C) in fp32.
    batch: labels and weights, each (B,).
    label_smoothing: share of the label's probability that is spread over the classes.
  """
  losses_B, correct_B = cross_entropy(forward(batch), batch["labels"], label_smoothing)
  weights_B = batch["weights"]
  return losses_B * weights_B, {"weight": weights_B, "correct": correct_B * weights_B}


def predict(forward: Callable, batch: dict[str, Any]) -> dict[str, Any]:
  return {"labels": forward(batch).argmax(-1)}


def decode(dataset, split, arrays: dict[str, Any]) -> list[str]:
  """Names the predicted labels."""
  return [dataset.labels[label] for label in arrays["labels"]]


def references(dataset, split) -> list[str]:
  """Names the true labels."""
  return [dataset.labels[label] for label in split.arrays["labels"]]
