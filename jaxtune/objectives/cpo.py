"""Contrastive preference optimisation: DPO without a reference, and imitation (Xu et al. 2024)."""

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
NUMBERS = ("beta", "alpha")

read, encode, references = pairs.read, pairs.encode, sft.references


def loss(
  forward: Forward, batch: Batch, beta: Positive = 0.1, alpha: NonNegative = 1.0
) -> tuple[Float[Array, " B"], Sums]:
  """Returns each pair's -log sigmoid(beta log(p(chosen) / p(rejected))) - alpha log p(chosen).

  The second log-probability is a mean over tokens (equation 4 and the authors' code).

  Args:
    forward, batch: as for `dpo.loss`, without a reference.
    beta: the scale of the comparison.
    alpha: the weight of imitating the chosen answer.
  """
  sums_B2, tokens_B2 = choices.log_probabilities(forward, batch)
  compared_B = -jax.nn.log_sigmoid(beta * (sums_B2[:, 0] - sums_B2[:, 1]))
  imitated_B = -sums_B2[:, 0] / jnp.maximum(tokens_B2[:, 0], 1.0)
  return preferred(compared_B + alpha * imitated_B, beta * sums_B2, batch)
