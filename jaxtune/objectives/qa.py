"""Extractive question answering: predicts the first and the last token of the answer."""

from __future__ import annotations

from functools import partial

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxtune.data import Data, Split, reading, views
from jaxtune.data.encode import qa
from jaxtune.objectives import Batch, Forward, Sums, cross_entropy, weigh

HEAD = "qa"
MEASURES = ("loss",)
METRICS = ("squad_exact_match", "squad_f1")
VIEW = views.ANSWERS

read = partial(reading.read_columns, qa.read_row)
encode = qa.encode


def loss(forward: Forward, batch: Batch) -> tuple[Float[Array, " B"], Sums]:
  """Returns the mean of -log p(start) and -log p(end) of each row in nats (Devlin et al. 2019).

  Args:
    forward: (batch) -> logits (B, T, 2) in fp32.
    batch: mask (B, T); starts, ends and weights, each (B,).
  """
  starts_BT, ends_BT = _logits(forward, batch)
  first_B, right_first_B = cross_entropy(starts_BT, batch["starts"])
  last_B, right_last_B = cross_entropy(ends_BT, batch["ends"])
  return weigh((first_B + last_B) / 2, right_first_B & right_last_B, batch["weights"])


def predict(forward: Forward, batch: Batch) -> Batch:
  """Returns the logits of every token as the first ("starts") and as the last ("ends"), (B, T)."""
  starts_BT, ends_BT = _logits(forward, batch)
  return {"starts": starts_BT, "ends": ends_BT}


def decode(dataset: Data, split: Split, arrays: dict[str, np.ndarray]) -> list[str]:
  """Returns the likeliest span's text of each example."""
  return qa.answer_texts(split, arrays["starts"], arrays["ends"])


def _logits(forward: Forward, batch: Batch) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
  logits_BT2 = jnp.where(batch["mask"][..., None], forward(batch), -1e9)
  return logits_BT2[..., 0], logits_BT2[..., 1]


def references(dataset: Data, split: Split) -> list[list[str]]:
  """Returns the accepted answers of each question."""
  return split.references
