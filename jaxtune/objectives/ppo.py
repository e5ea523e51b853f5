"""Proximal policy optimisation with a learnt value function (PPO; Schulman et al. 2017).

A reward comes with an answer's last token, and at every token a penalty for leaving the policy from
before training. Advantages are estimated from them by a value function, a linear map of the
model's last states, which is trained beside the policy (as by Ouyang et al. 2022).
`runs.rollouts` says where the answers come from.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from annotated_types import Ge, Le
from jaxtyping import Array, Float

from jaxtune.objectives import Batch, Forward, Sums, grpo
from jaxtune.schema import NonNegative, Positive, Rate

HEAD, MEASURES, METRICS, VIEW = grpo.HEAD, grpo.MEASURES, grpo.METRICS, grpo.VIEW
NUMBERS = ("clip_low", "clip_high", "value_clip", "value_weight", "kl", "kl_target", "kl_rate",
           "gamma", "trace", "kl_stop")  # fmt: skip
ROLLOUT = True
LOGGED = (*grpo.LOGGED, "value", "value_error")

read, encode, references, adapt = grpo.read, grpo.encode, grpo.references, grpo.adapt

Discount = Annotated[float, Ge(0), Le(1)]


def init(width: int) -> dict[str, Array]:
  """Returns the trained arrays of the value function, zeros, of states of so many numbers."""
  return {"value_kernel": jnp.zeros(width), "value_bias": jnp.zeros(())}


def loss(
  forward: Forward,
  batch: Batch,
  value_kernel: Float[Array, " D"],
  value_bias: Float[Array, ""],
  *,
  temperature: Positive = 1.0,
  clip_low: NonNegative = 0.2,
  clip_high: NonNegative = 0.2,
  value_clip: Positive = 0.2,
  value_weight: NonNegative = 0.1,
  detached: bool = False,
  kl: NonNegative = 0.05,
  kl_target: NonNegative = 0.0,
  kl_rate: NonNegative = 0.1,
  estimator: grpo.Estimator = "k1",
  kl_stop: NonNegative = 0.0,
  gamma: Discount = 1.0,
  trace: Discount = 0.95,
  whiten: bool = True,
  score_clip: NonNegative = 0.0,
  entropy: Rate = 0.0,
) -> tuple[Float[Array, "R S"], Sums]:
  """Returns each answer's loss, of the policy and of the value function.

  Args:
    forward, batch: as for `grpo.loss`, with "values" and "returns" (R, S, n) of the batch.
    value_kernel, value_bias: of the value function.
    temperature, clip_low, clip_high, entropy: as for `grpo.loss`.
    value_clip: how far a value may move from what it was when the answer was drawn.
    value_weight: weight of the squared error of the values.
    detached: whether the value function reads the states without training what makes them.
    kl: weight of the penalty, in rewards; `kl_target`, `kl_rate`, `estimator` as for `grpo.loss`.
    kl_stop: the divergence KL(p_drawn | p) from the policy that drew the answers, in nats a token
      over the rows that are computed at once, beyond which they give no more gradient; 0 for none.
    gamma, trace: the discount, and lambda, of generalised advantages (Schulman et al. 2016).
    whiten: whether the advantages of a rollout are brought to mean 0 and standard deviation 1.
    score_clip: the largest size of a reward, before penalties; 0 for no limit.
  """
  del kl_target, kl_rate, estimator, gamma, trace, whiten, score_clip  # `learn`, `adapt` read them
  values = value_kernel, value_bias, detached
  log_RSn, entropy_RSn, values_RSn = _read(forward, batch, temperature, *values)
  change_RSn = log_RSn - batch["policy"]
  losses_RSn, clipped_RSn = grpo.clip(change_RSn, batch["advantages"], clip_low, clip_high)
  near_RSn = batch["values"] + jnp.clip(values_RSn - batch["values"], -value_clip, value_clip)
  errors = [(x - batch["returns"]) ** 2 for x in (values_RSn, near_RSn)]
  losses_RSn += value_weight * 0.5 * jnp.maximum(*errors)
  if entropy:
    losses_RSn -= entropy * grpo.entropies(forward, batch, temperature)
  losses_RSn = losses_RSn * _goes_on(change_RSn, batch, kl_stop)
  monitored = {
    "kl": grpo.divergence(batch["reference"] - log_RSn, "k3"), "entropy": entropy_RSn,
    "clipped": clipped_RSn, "value": values_RSn, "value_error": errors[0],
    "kl_weight": jnp.full_like(log_RSn, kl),
  }  # fmt: skip
  return grpo.added_up(losses_RSn, monitored, batch)


def observe(
  forward: Forward,
  batch: Batch,
  temperature: float,
  value_kernel: Float[Array, " D"],
  value_bias: Float[Array, ""],
  **_: Array,
) -> Sums:
  """Returns what `learn` needs of answers by the weights that drew them, each (R, S, n)."""
  read = _read(forward, batch, temperature, value_kernel, value_bias)
  return {"policy": read[0], "values": read[2] * batch["weights"]}


def _read(
  forward: Forward,
  batch: Batch,
  temperature: float,
  kernel_D: Array,
  bias: Array,
  detached: bool = False,
) -> tuple[Array, Array, Array]:
  """Returns log p of the tokens, entropies and values, (R, S, n), by one pass."""
  call = partial(forward, states=True)
  (losses_RSn, entropy_RSn), states_RSnD = grpo.scored(call, batch, temperature)
  states_RSnD = jax.lax.stop_gradient(states_RSnD) if detached else states_RSnD
  values_RSn = states_RSnD.astype(jnp.float32) @ kernel_D + bias
  return grpo.of_answers(-losses_RSn, batch), entropy_RSn, values_RSn


def _goes_on(change_RSn: Float[Array, "R S n"], batch: Batch, kl_stop: Array | float) -> Array:
  """Returns 0 where the policy has left that which drew the answers too far, else 1."""
  weights_RSn = batch["weights"]
  moved_RSn = grpo.divergence(change_RSn, "k3") * weights_RSn
  moved = moved_RSn.sum() / jnp.maximum(weights_RSn.sum(), 1)
  return jax.lax.stop_gradient(jnp.where((kl_stop > 0) & (moved > kl_stop), 0.0, 1.0))


def learn(
  sampled: grpo.Sampled,
  *,
  kl: float,
  estimator: grpo.Estimator,
  gamma: float,
  trace: float,
  whiten: bool,
  score_clip: float,
  **_: object,
) -> dict[str, np.ndarray]:
  """Returns what an update reads: "advantages", "returns" and "values" (N, n), and "scale" (N,).

  Sums over the tokens of an answer are divided by the mean number of tokens of the rollout.
  """
  scores_N = np.nan_to_num(sampled.rewards)
  if score_clip:
    scores_N = np.clip(scores_N, -score_clip, score_clip)
  penalty_Nn = kl * np.asarray(grpo.divergence(sampled.reference - sampled.policy, estimator))
  last_Nn = sampled.weights * (np.cumsum(sampled.weights[:, ::-1], 1)[:, ::-1] == 1)
  rewards_Nn = last_Nn * scores_N[:, None] - penalty_Nn * sampled.weights
  advantages_Nn = generalised(rewards_Nn, sampled.values, sampled.weights, gamma, trace)
  returns_Nn = advantages_Nn + sampled.values
  if whiten:
    count = max(sampled.weights.sum(), 1.0)
    centred_Nn = advantages_Nn - advantages_Nn.sum() / count
    deviation = np.sqrt((centred_Nn**2 * sampled.weights).sum() / max(count - 1, 1))
    advantages_Nn = centred_Nn / (deviation + 1e-8) * sampled.weights
  arrays = {"advantages": advantages_Nn, "returns": returns_Nn, "values": sampled.values}
  arrays["scale"] = grpo.scales(sampled, "batch") * (sampled.weights.sum(1) > 0)
  return {name: x.astype(np.float32) for name, x in arrays.items()}


def generalised(
  rewards_Nn: np.ndarray, values_Nn: np.ndarray, weights_Nn: np.ndarray, gamma: float, trace: float
) -> np.ndarray:
  """Returns the generalised advantages of positions with weight 1, which stand in one piece.

  A_t = d_t + gamma * trace * A_{t+1}, with d_t = r_t + gamma * V_{t+1} - V_t; after the last
  position both are 0.
  """
  advantages_Nn, after_N = np.zeros_like(values_Nn), np.zeros(len(values_Nn))
  next_N = np.zeros(len(values_Nn))
  for t in reversed(range(values_Nn.shape[1])):
    delta_N = rewards_Nn[:, t] + gamma * next_N - values_Nn[:, t]
    after_N = (delta_N + gamma * trace * after_N) * weights_Nn[:, t]
    advantages_Nn[:, t], next_N = after_N, values_Nn[:, t] * weights_Nn[:, t]
  return advantages_Nn
