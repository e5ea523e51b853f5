"""Odds ratio preference optimisation: imitates and compares at once (Hong et al. 2024).

It needs no reference.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxtune.data import views
from jaxtune.data.encode import pairs
from jaxtune.objectives import Batch, Forward, Sums, choices, preferred, sft
from jaxtune.schema import Positive

HEAD = "lm"
MEASURES = ("loss", "accuracy", "margin", "chosen", "rejected")
METRICS = sft.METRICS
VIEW = views.PAIRS
NUMBERS = ("beta",)

read, encode, references = pairs.read, pairs.encode, sft.references


def loss(forward: Forward, batch: Batch, beta: Positive = 0.1) -> tuple[Float[Array, " B"], Sums]:
  """Returns each pair's -log p(chosen) a token - beta log sigmoid(log odds ratio).

  The odds of an answer are p / (1 - p), where log p is its mean over tokens (equations 4 to 7).
  What is imitated is the answer alone, as in the paper; trl imitates the prompt too.

  Args:
    forward, batch: as for `dpo.loss`, without a reference.
    beta: the weight of the comparison, lambda in the paper.
  """
  sums_B2, tokens_B2 = choices.log_probabilities(forward, batch)
  means_B2 = jnp.minimum(sums_B2 / jnp.maximum(tokens_B2, 1.0), -1e-6)  # 1 - p must not be 0
  odds_B2 = means_B2 - jnp.log(-jnp.expm1(means_B2))
  compared_B = jax.nn.log_sigmoid(odds_B2[:, 0] - odds_B2[:, 1])
  return preferred(-means_B2[:, 0] - beta * compared_B, beta * means_B2, batch)
