"""A reward model, which scores an answer, learnt from comparisons (Bradley & Terry 1952)."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from jaxtune.data import Data, Split, views
from jaxtune.data.encode import pairs
from jaxtune.objectives import Batch, Forward, Sums, choices, preferred
from jaxtune.schema import NonNegative

HEAD = "reward"
MEASURES = ("loss", "accuracy", "margin", "chosen", "rejected")
METRICS = ("ece",)
VIEW = views.PAIRS
NUMBERS = ("margin", "centring")

read, encode = pairs.read, partial(pairs.encode, two_texts=True)


def loss(
  forward: Forward, batch: Batch, margin: NonNegative = 0.0, centring: NonNegative = 0.0
) -> tuple[Float[Array, " B"], Sums]:
  """Returns -log sigmoid(r_chosen - r_rejected - margin * difference) + centring * (sum of both)^2.

  The difference is that of the ratings, and 1 where only the choice is known.

  Args:
    forward: (batch) -> rewards in fp32, one for each row of tokens.
    batch: tokens, mask and weights (B, 2, T), and difference (B,); see `encode.pairs`.
    margin: by how much the chosen answer's reward should be larger for each unit of the difference
      (Touvron et al. 2023).
    centring: keeps rewards near 0, which comparisons leave open (Eisenstein et al. 2023).
  """
  rewards_B2 = _rewards(forward, batch)
  wanted_B = margin * batch["difference"]
  losses_B = -jax.nn.log_sigmoid(rewards_B2[:, 0] - rewards_B2[:, 1] - wanted_B)
  return preferred(losses_B + centring * rewards_B2.sum(1) ** 2, rewards_B2, batch)


def predict(forward: Forward, batch: Batch, **_: float) -> Batch:
  """Returns "rewards" (B, 2) of the chosen and the rejected answer."""
  return {"rewards": _rewards(forward, batch)}


def decode(dataset: Data, split: Split, arrays: dict[str, np.ndarray]) -> list[list[float]]:
  """Returns the rewards of both answers."""
  return arrays["rewards"].astype(float).tolist()


def references(dataset: Data, split: Split) -> list[dict[str, Any]]:
  """Returns the difference of the ratings of both answers, and the tokens of each text."""
  tokens_X2 = split.arrays["mask"].sum(-1).tolist()
  differences = split.arrays["difference"].tolist()
  return [
    {"difference": difference, "tokens": tokens}
    for difference, tokens in zip(differences, tokens_X2, strict=True)
  ]


def _rewards(forward: Forward, batch: Batch) -> Float[Array, "B 2"]:
  return forward(choices.flat(batch)).reshape(-1, 2)
