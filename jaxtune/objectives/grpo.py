"""Policy gradients of sampled answers, whose advantage is their reward beside that of others.

The options make one objective of several that the literature names:

  GRPO      the defaults (Shao et al. 2024, equation 3)
  Dr. GRPO  advantage "group", length "fixed" (Liu et al. 2025)
  RLOO      advantage "leave_one_out", length "sum" (Ahmadian et al. 2024)
  GSPO      ratio "sequence" (Zheng et al. 2025, equation 5)
  DAPO      length "batch" and clip_high 0.28 (Yu et al. 2025)
  REINFORCE with the batch's mean reward as the baseline: advantage "batch", length "sum"

Where the answers come from is said in the config's section `rollout`; see `runs.rollouts`.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxtune.data import views
from jaxtune.data.encode import asked
from jaxtune.objectives import Batch, Forward, Sums, sft
from jaxtune.schema import NonNegative, Positive, Rate

HEAD = "lm"
MEASURES = ("loss", "reward")
METRICS = sft.METRICS
VIEW = views.ASKED
NUMBERS = ("clip_low", "clip_high", "kl")
ROLLOUT = True
COUNTED = ("length", "truncated", "repeated")
LOGGED = ("reward", "kl", "entropy", "clipped", *COUNTED)
TINY = 1e-4  # added to a standard deviation, as trl does

read, encode, references = asked.read, asked.encode, sft.references

Advantage = Literal["group_std", "group", "leave_one_out", "batch", "batch_std"]
Length = Literal["answer", "batch", "fixed", "sum"]
Estimator = Literal["k1", "k2", "k3"]


class Sampled(NamedTuple):
  """What is known of N sampled answers before the first update on them.

  Attributes:
    rewards: (N,); NaN for answers that were not judged. Those to one prompt stand side by side.
    samples: the number of answers to each prompt.
    weights: (N, T), 1 at the positions whose next token is the answer's.
    policy, reference: (N, T), log p(next token) by the policy that drew it, and before training.
    values: (N, T), what a value function expects at each position; None without one.
    most: the most tokens that an answer can have.
  """

  rewards: np.ndarray
  samples: int
  weights: np.ndarray
  policy: np.ndarray
  reference: np.ndarray
  values: np.ndarray | None
  most: int


def loss(
  forward: Forward,
  batch: Batch,
  *,
  temperature: Positive = 1.0,
  advantage: Advantage = "group_std",
  length: Length = "answer",
  ratio: Literal["token", "sequence"] = "token",
  clip_low: NonNegative = 0.2,
  clip_high: NonNegative = 0.2,
  kl: NonNegative = 0.0,
  estimator: Estimator = "k3",
  entropy: Rate = 0.0,
) -> tuple[Float[Array, " B"], Sums]:
  """Returns each answer's clipped loss: the sum over its tokens, times its `scale`.

  Args:
    forward: as for `sft.loss`.
    batch: tokens, mask, weights (B, T), and what `learn` returns of its answers; "policy" (B, T),
      log p when they were drawn, where several updates follow.
    temperature: by which the logits are divided, when answers are drawn and when they are learnt.
    advantage: an answer's reward minus the mean reward: of its prompt's answers ("group"; with
      "group_std" divided by their standard deviation), of the other answers to its prompt
      ("leave_one_out"), or of all answers of the rollout ("batch", "batch_std").
    length: what the sum over an answer's tokens is divided by: their number ("answer"), the mean
      number of the rollout ("batch"), `rollout.max_new_tokens` ("fixed") or nothing ("sum").
    ratio: p / p_drawn of each "token", or of the "sequence", the geometric mean of its tokens'.
    clip_low, clip_high: how far the ratio may fall below 1, and rise above it, before an answer
      moves the policy no more.
    kl: weight of the divergence from the policy before training.
    estimator: of that divergence, from d = log(p_reference / p): "k1" -d, "k2" d^2 / 2, "k3"
      exp(d) - 1 - d (Schulman 2020).
    entropy: weight of the policy's entropy, which is added to what is maximised; above 0 it costs a
      second pass over the batch.
  """
  del advantage, length  # `learn` has read them
  minus_log_BT, entropy_BT = scored(forward, batch, temperature)
  log_BT = -minus_log_BT
  weights_BT = following(batch["weights"])
  # Answers of a single update are drawn by the weights that it starts from.
  change_BT = log_BT - batch.get("policy", jax.lax.stop_gradient(log_BT))
  if ratio == "sequence":
    tokens_B1 = jnp.maximum(weights_BT.sum(1, keepdims=True), 1.0)
    change_BT = jnp.broadcast_to(
      (change_BT * weights_BT).sum(1, keepdims=True) / tokens_B1, change_BT.shape
    )
  losses_BT, clipped_BT = clip(change_BT, batch["advantages"], clip_low, clip_high)
  kl_BT = divergence(batch["reference"] - log_BT, estimator)
  losses_BT = losses_BT + kl * kl_BT
  if entropy:
    losses_BT = losses_BT - entropy * entropies(forward, batch, temperature)
  monitored = {"kl": kl_BT, "entropy": entropy_BT, "clipped": clipped_BT}
  return added_up(losses_BT, monitored, batch)


def added_up(
  losses_BT: Float[Array, "B T"], monitored: dict[str, Float[Array, "B T"]], batch: Batch
) -> tuple[Float[Array, " B"], Sums]:
  """Returns the scaled losses of answers, and what is monitored of them as means over tokens."""
  weights_BT = following(batch["weights"])
  tokens_B = jnp.maximum(weights_BT.sum(1), 1.0)
  real_B = (weights_BT.sum(1) > 0).astype(jnp.float32)
  mean = lambda x_BT: (x_BT * weights_BT).sum(1) / tokens_B
  known = {name: x * real_B for name, x in batch.items() if name.startswith(("reward", *COUNTED))}
  sums = {"weight": real_B, "correct": real_B * (batch["reward"] > 0)}
  sums |= {name: mean(x) for name, x in monitored.items()} | known
  return (losses_BT * weights_BT).sum(1) * batch["scale"], sums


def following(weights_BT: Float[Array, "B T"]) -> Float[Array, "B T"]:
  """Moves the weights of tokens to the positions that predict them."""
  return jnp.roll(weights_BT, -1, 1).at[:, -1].set(0.0)


def observe(forward: Forward, batch: Batch, temperature: float, **_: Array) -> Sums:
  """Returns what `learn` needs of answers by the weights that drew them, each (B, T)."""
  losses_BT, _ = scored(forward, batch, temperature)
  return {"policy": -losses_BT * following(batch["weights"])}


def scored(forward: Forward, batch: Batch, temperature: float) -> Any:
  """Scores each position's next token: -log p of it, and the entropy without its gradient."""
  targets_BT = jnp.roll(batch["tokens"], -1, 1)
  return forward(batch, score=partial(_score, temperature=temperature), targets=targets_BT)


def entropies(forward: Forward, batch: Batch, temperature: float) -> Float[Array, "B T"]:
  """Returns the entropy of the next token in nats at each position, with its gradient."""
  targets_BT = jnp.roll(batch["tokens"], -1, 1)
  score = lambda logits, targets: (_entropy(logits / temperature), ())
  return forward(batch, score=score, targets=targets_BT)[0]


def _score(
  logits_BTV: Float[Array, "B T V"], targets_BT: Array, temperature: float
) -> tuple[Array, Array]:
  logits_BTV = logits_BTV / temperature
  classes = jnp.arange(logits_BTV.shape[-1]).reshape(1, 1, -1)
  picked_BT = jnp.where(targets_BT[..., None] == classes, logits_BTV, 0.0).sum(-1)
  losses_BT = jax.nn.logsumexp(logits_BTV, -1) - picked_BT
  return losses_BT, jax.lax.stop_gradient(_entropy(logits_BTV))


def _entropy(logits_BTV: Float[Array, "B T V"]) -> Float[Array, "B T"]:
  log_BTV = jax.nn.log_softmax(logits_BTV)
  return -(jnp.exp(log_BTV) * log_BTV).sum(-1)


def clip(
  change_BT: Float[Array, "B T"], advantages_BT: Float[Array, "B T"], low: float, high: float
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
  """Returns PPO's clipped loss (Schulman et al. 2017, equation 7), and 1 where it is clipped.

  Args:
    change_BT: log(p / p_drawn).
  """
  ratio_BT = jnp.exp(change_BT)
  gain_BT = ratio_BT * advantages_BT
  bound_BT = jnp.clip(ratio_BT, 1.0 - low, 1.0 + high) * advantages_BT
  return -jnp.minimum(gain_BT, bound_BT), (bound_BT < gain_BT).astype(jnp.float32)


def divergence(d: Array, estimator: Estimator) -> Array:
  """Estimates KL(p | p_reference) of tokens drawn from p, by d = log(p_reference / p)."""
  if estimator == "k1":
    return -d
  return 0.5 * d**2 if estimator == "k2" else jnp.exp(d) - 1.0 - d


def learn(sampled: Sampled, advantage: Advantage, length: Length, **_: object) -> dict:
  """Returns what an update reads of each answer: "advantages" (N, T) and "scale" (N,).

  Answers that were not judged have neither, and do not count in the means.
  """
  values_N = advantages(sampled.rewards.reshape(-1, sampled.samples), advantage).ravel()
  judged_N = ~np.isnan(sampled.rewards)
  advantages_NT = np.where(judged_N, values_N, 0.0)[:, None] * sampled.weights
  scale_N = scales(sampled, length) * judged_N
  return {"advantages": advantages_NT.astype(np.float32), "scale": scale_N.astype(np.float32)}


def scales(sampled: Sampled, length: Length) -> np.ndarray:
  """Returns what the sum over each answer's tokens is multiplied by, (N,)."""
  tokens_N = np.maximum(sampled.weights.sum(1), 1.0)
  mean = np.full(len(tokens_N), tokens_N.mean())
  divisors = {"answer": tokens_N, "batch": mean, "fixed": np.full_like(mean, sampled.most)}
  return 1.0 / divisors.get(length, np.ones_like(mean))


def advantages(rewards_PS: Float[np.ndarray, "P S"], kind: Advantage) -> Float[np.ndarray, "P S"]:
  """Returns the advantages of S answers to each of P prompts; see `loss`."""
  judged_PS = ~np.isnan(rewards_PS)
  filled_PS = np.where(judged_PS, rewards_PS, 0.0)
  total = lambda x, axis: x.sum(axis, keepdims=True)
  axis = None if kind.startswith("batch") else 1
  count = total(judged_PS, axis)
  if kind == "leave_one_out":
    others_PS = (total(filled_PS, 1) - filled_PS) / np.maximum(count - 1, 1)
    return np.where(count > 1, rewards_PS - others_PS, 0.0)
  mean = total(filled_PS, axis) / np.maximum(count, 1)
  centred_PS = rewards_PS - mean
  if not kind.endswith("_std"):
    return centred_PS
  squares = total(np.where(judged_PS, centred_PS, 0.0) ** 2, axis)
  return centred_PS / (np.sqrt(squares / np.maximum(count - 1, 1)) + TINY)
