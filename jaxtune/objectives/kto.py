"""Kahneman-Tversky optimisation: from thumbs up and down, not pairs (Ethayarajh et al. 2024)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxtune.data import views
from jaxtune.data.encode import thumbs
from jaxtune.objectives import Batch, Forward, Sums, choices, sft
from jaxtune.schema import Positive

HEAD = "lm"
MEASURES = ("loss", "accuracy", "up", "down", "drift")
METRICS = sft.METRICS
VIEW = views.THUMBS
NUMBERS = ("beta", "desirable", "undesirable")
REFERENCE = True

read, encode, references = thumbs.read, thumbs.encode, sft.references


def loss(
  forward: Forward,
  batch: Batch,
  beta: Positive = 0.1,
  desirable: Positive = 1.0,
  undesirable: Positive = 1.0,
) -> tuple[Float[Array, " B"], Sums]:
  """Returns 1 - sigmoid(r - z) of answers with a thumb up, and 1 - sigmoid(z - r) of the others.

  r is the implicit reward beta * log(p / p_reference), and z (equation 7) the mean of the same of
  answers that belong to other prompts, over the rows of a batch; at least 0, and without a
  gradient. So a batch has at least two rows, and held-out losses depend on `evaluate.batch_size`.

  Args:
    forward: as for `sft.loss`.
    batch: tokens, mask and weights (B, 2, T), labels (B,) and reference (B, 2); see
      `encode.thumbs`. Also the totals of what `common` returns, unless these rows are all.
    beta: how strongly the policy is held to the reference.
    desirable, undesirable: weights of the two kinds of answers, which should balance their numbers.

  Returns:
    (losses, sums), each (B,). "correct" says whether r has the sign of the label, "up" and "down"
    are the rewards of the two kinds, each with its weights, "drift" is log(p_reference / p) of the
    answer in nats, as for `dpo.loss`.
  """
  sums_B2, _ = choices.log_probabilities(forward, batch)
  rewards_B2 = beta * (sums_B2 - batch["reference"])
  real_B = _real(batch)
  own = {"others": (rewards_B2[:, 1] * real_B).sum(), "rows": real_B.sum()}
  total = {name: batch.get(name, x) for name, x in own.items()}
  z = jax.lax.stop_gradient(jnp.maximum(total["others"] / jnp.maximum(total["rows"], 1), 0.0))
  up_B = batch["labels"] > 0
  sign_B = jnp.where(up_B, 1.0, -1.0)
  losses_B = 1.0 - jax.nn.sigmoid(sign_B * (rewards_B2[:, 0] - z))
  losses_B = losses_B * jnp.where(up_B, desirable, undesirable)
  sums = {
    "weight": jnp.ones_like(real_B),
    "correct": (1.0 + sign_B * jnp.sign(rewards_B2[:, 0])) / 2,
    "up": jnp.where(up_B, rewards_B2[:, 0], 0.0),
    "weight_up": jnp.where(up_B, 1.0, 0.0),
    "down": jnp.where(up_B, 0.0, rewards_B2[:, 0]),
    "weight_down": jnp.where(up_B, 0.0, 1.0),
    "drift": -rewards_B2[:, 0] / beta,
  }
  return losses_B * real_B, {name: x * real_B for name, x in sums.items()}


def common(forward: Forward, batch: Batch, beta: Positive = 0.1, **_: Array) -> Sums:
  """Returns "others", the rewards whose mean z is, and "rows", 1 for each real row, each (B,)."""
  others = {name: x[:, 1:] for name, x in batch.items() if x.ndim > 1}
  sums_B1, _ = choices.log_probabilities(forward, others)
  real_B = _real(batch)
  return {"others": beta * (sums_B1 - others["reference"])[:, 0] * real_B, "rows": real_B}


def _real(batch: Batch) -> Float[Array, " B"]:
  """Returns 1 for each row with a weight, and 0 for one that fills a batch up."""
  return (batch["weights"].sum((1, 2)) > 0).astype(jnp.float32)
