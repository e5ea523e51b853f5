"""Classification of whole texts by a head on the model."""

from __future__ import annotations

from functools import partial

import numpy as np
from jaxtyping import Array, Float

from jaxtune.data import Data, Split, reading, views
from jaxtune.data.encode import classify
from jaxtune.objectives import Batch, Forward, Sums, cross_entropy, weigh
from jaxtune.schema import Rate

HEAD = "classify"
MEASURES = ("loss",)
METRICS = ("accuracy", "balanced_accuracy", "macro_f1", "matthews")
VIEW = views.CLASSES

read = partial(reading.read_columns, classify.read_row)
encode = classify.encode


def loss(
  forward: Forward, batch: Batch, label_smoothing: Rate = 0.0
) -> tuple[Float[Array, " B"], Sums]:
  """Returns -log p(label) of each row in nats; where every token has a label, the sum of them.

  Args:
    forward: (batch) -> logits (B, C), or (B, T, C), in fp32.
    batch: labels and weights, each (B,), or (B, T).
    label_smoothing: share of the label's probability that is spread over the classes.
  """
  losses, correct = cross_entropy(forward(batch), batch["labels"], label_smoothing)
  return weigh(losses, correct, batch["weights"])


def predict(forward: Forward, batch: Batch) -> Batch:
  """Returns the likeliest "labels", (B,) or (B, T)."""
  return {"labels": forward(batch).argmax(-1)}


def decode(dataset: Data, split: Split, arrays: dict[str, np.ndarray]) -> list[str]:
  """Returns the names of the predicted labels."""
  return [dataset.labels[label] for label in arrays["labels"]]


def references(dataset: Data, split: Split) -> list[str]:
  """Returns the names of the true labels."""
  return decode(dataset, split, split.arrays)
