"""Simple preference optimisation: mean log-probabilities and a margin (Meng et al. 2024).

It needs no reference.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxtune.data import views
from jaxtune.data.encode import pairs
from jaxtune.objectives import Batch, Forward, Sums, choices, preferred, sft
from jaxtune.schema import NonNegative, Positive

HEAD = "lm"
MEASURES = ("loss", "accuracy", "margin", "chosen", "rejected")
METRICS = sft.METRICS
VIEW = views.PAIRS
NUMBERS = ("beta", "gamma")

read, encode, references = pairs.read, pairs.encode, sft.references


def loss(
  forward: Forward, batch: Batch, beta: Positive = 2.0, gamma: NonNegative = 1.0
) -> tuple[Float[Array, " B"], Sums]:
  """Returns each pair's -log sigmoid(reward of chosen - reward of rejected - gamma).

  The reward of an answer is beta times its mean log-probability a token (equation 6).

  Args:
    forward, batch: as for `dpo.loss`, without a reference.
    beta: the scale of rewards.
    gamma: the margin that the chosen answer's reward should have.
  """
  sums_B2, tokens_B2 = choices.log_probabilities(forward, batch)
  rewards_B2 = beta * sums_B2 / jnp.maximum(tokens_B2, 1.0)
  losses_B = -jax.nn.log_sigmoid(rewards_B2[:, 0] - rewards_B2[:, 1] - gamma)
  return preferred(losses_B, rewards_B2, batch)
