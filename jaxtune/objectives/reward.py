"""A reward model, which scores an answer, learnt from comparisons (Bradley & Terry 1952)."""

from __future__ import annotations

import jax
from jaxtyping import Array, Float

from jaxtune.data import views
from jaxtune.data.encode import pairs
from jaxtune.objectives import Batch, Forward, Sums, choices, preferred
from jaxtune.schema import NonNegative

HEAD = "reward"
MEASURES = ("loss", "margin", "chosen", "rejected")
METRICS = ("accuracy",)
VIEW = views.PAIRS
NUMBERS = ("margin", "centring")

read, encode = pairs.read, pairs.encode
decode, references = choices.decode, choices.references


def loss(
  forward: Forward, batch: Batch, margin: NonNegative = 0.0, centring: NonNegative = 0.0
) -> tuple[Float[Array, " B"], Sums]:
  """Returns each pair's -log sigmoid(r_chosen - r_rejected - margin) + centring * (sum of both)^2.

  Args:
    forward: (batch) -> rewards in fp32, one for each row of tokens.
    batch: tokens, mask and weights (B, 2, T); see `encode.pairs`.
    margin: by how much the chosen answer's reward should be larger (Touvron et al. 2023).
    centring: keeps rewards near 0, which comparisons leave open (Eisenstein et al. 2023).
  """
  rewards_B2 = _rewards(forward, batch)
  losses_B = -jax.nn.log_sigmoid(rewards_B2[:, 0] - rewards_B2[:, 1] - margin)
  return preferred(losses_B + centring * rewards_B2.sum(1) ** 2, rewards_B2, batch)


def predict(forward: Forward, batch: Batch, **_: float) -> Batch:
  """Returns "labels" (B,), the numbers of the answers with the larger reward."""
  return {"labels": _rewards(forward, batch).argmax(-1)}


def _rewards(forward: Forward, batch: Batch) -> Float[Array, "B 2"]:
  return forward(choices.flat(batch)).reshape(-1, 2)
