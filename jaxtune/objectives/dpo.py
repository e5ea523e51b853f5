"""Direct preference optimisation: the policy is its own reward model (Rafailov et al. 2023).

The implicit reward of an answer is beta * log(p(answer) / p_reference(answer)). The reference is
the frozen base, or the adapter that training starts from, so that it costs no second model.
"""

from __future__ import annotations

from typing import Annotated, Literal

import jax
import jax.numpy as jnp
from annotated_types import Ge, Lt
from jaxtyping import Array, Float

from jaxtune.data import views
from jaxtune.data.encode import pairs
from jaxtune.objectives import Batch, Forward, Sums, choices, counted, preferred, sft
from jaxtune.schema import Positive

HEAD = "lm"
MEASURES = ("loss", "accuracy", "margin", "chosen", "rejected", "drift")
METRICS = sft.METRICS
VIEW = views.PAIRS
NUMBERS = ("beta",)
REFERENCE = True

read, encode, references = pairs.read, pairs.encode, sft.references


def loss(
  forward: Forward,
  batch: Batch,
  kind: Literal["sigmoid", "hinge", "ipo", "robust"] = "sigmoid",
  beta: Positive = 0.1,
  label_smoothing: Annotated[float, Ge(0), Lt(0.5)] = 0.0,
  normalise: bool = False,
) -> tuple[Float[Array, " B"], Sums]:
  """Returns each pair's loss, of d, the difference of both answers' log(p / p_reference).

  Args:
    forward: (batch, score=, targets=) -> score(logits, targets), as for `sft.loss`.
    batch: tokens, mask and weights (B, 2, T), and reference (B, 2); see `encode.pairs`.
    kind: "sigmoid" -log sigmoid(beta d); "hinge" max(0, 1 - beta d) (SLiC, Zhao et al. 2023); "ipo"
      (d - 1 / (2 beta))^2 with log-probabilities divided by their tokens (Azar et al. 2023,
      equation 17); "robust" the sigmoid loss without the bias of flipped labels (Chowdhury et al.
      2024).
    beta: how strongly the policy is held to the reference; the smaller, the further it may go.
    label_smoothing: the share of pairs that are taken to be the wrong way round, below 0.5; for
      sigmoid (Mitchell 2023) and robust, and 0 for the others.
    normalise: divide log-probabilities by the tokens of their answer, for every kind.

  Returns:
    (losses, sums), each (B,), as `preferred` has them, and "drift", the mean of both answers'
    log(p_reference / p) in nats: where the reference has drawn the answers, an estimate of
    KL(reference | policy).
  """
  sums_B2, tokens_B2 = choices.log_probabilities(forward, batch)
  ratios_B2 = sums_B2 - batch["reference"]
  drift_B = -ratios_B2.mean(1)
  if normalise or kind == "ipo":
    ratios_B2 = ratios_B2 / jnp.maximum(tokens_B2, 1.0)
  rewards_B2 = beta * ratios_B2
  reward_B = rewards_B2[:, 0] - rewards_B2[:, 1]
  if kind == "hinge":
    losses_B = jax.nn.relu(1.0 - reward_B)
  elif kind == "ipo":
    losses_B = (reward_B / beta - 0.5 / beta) ** 2
  else:
    right_B, wrong_B = -jax.nn.log_sigmoid(reward_B), -jax.nn.log_sigmoid(-reward_B)
    sign = -1 if kind == "robust" else 1
    losses_B = (1 - label_smoothing) * right_B + sign * label_smoothing * wrong_B
    losses_B = losses_B / (1 - label_smoothing + sign * label_smoothing)
  losses_B, sums = preferred(losses_B, rewards_B2, batch)
  return losses_B, sums | {"drift": drift_B * counted(batch)}
