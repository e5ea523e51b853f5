"""Regression of a number for each text, by a head on the model (as for STS-B)."""

from __future__ import annotations

from functools import partial

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxtune.data import Data, Split, reading, views
from jaxtune.data.encode import regression
from jaxtune.objectives import Batch, Forward, Sums, weigh

HEAD = "regression"
MEASURES = ("loss",)
METRICS = ("pearson", "spearman", "mse")
VIEW = views.NUMBERS

read = partial(reading.read_columns, regression.read_row)
encode = regression.encode


def loss(forward: Forward, batch: Batch) -> tuple[Float[Array, " B"], Sums]:
  """Returns each row's squared error.

  Args:
    forward: (batch) -> values (B,) in fp32.
    batch: labels and weights, each (B,).
  """
  squares_B = (forward(batch) - batch["labels"]) ** 2
  return weigh(squares_B, jnp.zeros_like(squares_B), batch["weights"])


def predict(forward: Forward, batch: Batch) -> Batch:
  """Returns the predicted "labels" (B,)."""
  return {"labels": forward(batch)}


def decode(dataset: Data, split: Split, arrays: dict[str, np.ndarray]) -> list[float]:
  """Returns the predicted numbers."""
  return [float(label) for label in arrays["labels"]]


def references(dataset: Data, split: Split) -> list[float]:
  """Returns the true numbers."""
  return decode(dataset, split, split.arrays)
