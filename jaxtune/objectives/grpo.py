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

from collections.abc import Callable
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
NUMBERS = ("clip_low", "clip_high", "kl", "kl_target", "kl_rate")
ROLLOUT = True
COUNTED = ("length", "truncated", "repeated")
LOGGED = ("reward", "kl", "kl_weight", "entropy", "clipped", *COUNTED)
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
    weights: (N, n), 1 at the tokens of the answer.
    policy, reference: (N, n), log p of each token by the policy that drew it, and before training.
    values: (N, n), what a value function expects before each token; None without one.
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
  kl_target: NonNegative = 0.0,
  kl_rate: NonNegative = 0.1,
  estimator: Literal["k2", "k3"] = "k3",
  entropy: Rate = 0.0,
) -> tuple[Float[Array, "R S"], Sums]:
  """Returns each answer's clipped loss: the sum over its tokens, times its `scale`.

  Args:
    forward: as for `sft.loss`.
    batch: tokens and mask (R, P + S n): in each row a prompt, padded on the left to P tokens, and S
      answers to it, each padded on the right to n. "branches" says which is which, as `Decoder`
      reads it, where S is not 1. "weights" (R, S, n), 1 at an answer's tokens; "reference"
      (R, S, n), log p of these before training; "reward" (R, S), and what `learn` returns;
      "policy" (R, S, n), log p when they were drawn, where several updates follow.
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
    kl_target, kl_rate: the divergence, in nats a token, that `adapt` brings the policy to by moving
      that weight, and how fast it moves; with a target of 0 the weight stays.
    estimator: of that divergence, from d = log(p_reference / p): "k2" d^2 / 2, "k3" exp(d) - 1 - d
      (Schulman 2020). The gradient of "k1", -d, is 0 on average: it is for `ppo` alone.
    entropy: weight of the policy's entropy, which is added to what is maximised; above 0 it costs a
      second pass over the batch.
  """
  del advantage, length, kl_target, kl_rate  # `learn` and `adapt` read them
  minus_log_RSn, entropy_RSn = scored(forward, batch, temperature)
  log_RSn, weights_RSn = of_answers(-minus_log_RSn, batch), batch["weights"]
  # Answers of a single update are drawn by the weights that it starts from.
  change_RSn = log_RSn - batch.get("policy", jax.lax.stop_gradient(log_RSn))
  if ratio == "sequence":
    mean_RS = (change_RSn * weights_RSn).sum(-1) / jnp.maximum(weights_RSn.sum(-1), 1.0)
    change_RSn = jnp.broadcast_to(mean_RS[..., None], change_RSn.shape)
  losses_RSn, clipped_RSn = clip(change_RSn, batch["advantages"], clip_low, clip_high)
  kl_RSn = divergence(batch["reference"] - log_RSn, estimator)
  losses_RSn = losses_RSn + kl * kl_RSn
  if entropy:
    losses_RSn = losses_RSn - entropy * entropies(forward, batch, temperature)
  monitored = {"kl": kl_RSn, "entropy": entropy_RSn, "clipped": clipped_RSn}
  monitored["kl_weight"] = jnp.full_like(kl_RSn, kl)
  return added_up(losses_RSn, monitored, batch)


def added_up(
  losses_RSn: Float[Array, "R S n"], monitored: dict[str, Float[Array, "R S n"]], batch: Batch
) -> tuple[Float[Array, "R S"], Sums]:
  """Returns the scaled losses of answers, and what is monitored of them as means over tokens."""
  weights_RSn = batch["weights"]
  tokens_RS = weights_RSn.sum(-1)
  real_RS = (tokens_RS > 0).astype(jnp.float32)
  mean = lambda x_RSn: (x_RSn * weights_RSn).sum(-1) / jnp.maximum(tokens_RS, 1.0)
  known = {name: x * real_RS for name, x in batch.items() if name.startswith(("reward", *COUNTED))}
  sums = {"weight": real_RS, "correct": real_RS * (batch["reward"] > 0)}
  sums |= {name: mean(x) for name, x in monitored.items()} | known
  return (losses_RSn * weights_RSn).sum(-1) * batch["scale"], sums


def observe(forward: Forward, batch: Batch, temperature: float, **_: Array) -> Sums:
  """Returns what `learn` needs of answers by the weights that drew them, each (R, S, n)."""
  losses_RSn, _ = scored(forward, batch, temperature)
  return {"policy": of_answers(-losses_RSn, batch)}


def scored(forward: Forward, batch: Batch, temperature: float) -> Any:
  """Scores the tokens of answers: -log p of each, and the entropy without its gradient."""
  return read_answers(forward, batch, partial(_score, temperature=temperature))


def of_answers(log_RSn: Float[Array, "R S n"], batch: Batch) -> Float[Array, "R S n"]:
  """Returns log p of the tokens of answers, and 0 behind them.

  There p may be so small that a ratio of it is infinite.
  """
  return jnp.where(batch["weights"] > 0, log_RSn, 0.0)


def entropies(forward: Forward, batch: Batch, temperature: float) -> Float[Array, "R S n"]:
  """Returns the entropy in nats of what each token of an answer is drawn from."""
  score = lambda logits, targets: (_entropy(logits / temperature), ())
  return read_answers(forward, batch, score)[0]


def read_answers(forward: Forward, batch: Batch, score: Callable) -> Any:
  """Returns what `forward` does of the tokens of answers alone, each array (R, S, n, ...)."""
  rows, samples, new = batch["weights"].shape
  first = batch["tokens"].shape[1] - samples * new
  # Where an answer's tokens are predicted: at the end of the prompt, and at its own tokens.
  own_Sn = first + np.arange(samples * new).reshape(samples, new)
  places_Sn = np.concatenate([np.full((samples, 1), first - 1), own_Sn[:, :-1]], 1)
  targets = batch["tokens"][:, first:]
  found = forward(batch, score=score, targets=targets, places=places_Sn.ravel())
  return jax.tree.map(lambda x: x.reshape(rows, samples, new, *x.shape[2:]), found)


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
  change_RSn: Float[Array, "R S n"], advantages_RSn: Float[Array, "R S n"], low: float, high: float
) -> tuple[Float[Array, "R S n"], Float[Array, "R S n"]]:
  """Returns PPO's clipped loss (Schulman et al. 2017, equation 7), and 1 where it is clipped.

  Args:
    change_RSn: log(p / p_drawn).
  """
  ratio_RSn = jnp.exp(change_RSn)
  gain_RSn = ratio_RSn * advantages_RSn
  bound_RSn = jnp.clip(ratio_RSn, 1.0 - low, 1.0 + high) * advantages_RSn
  return -jnp.minimum(gain_RSn, bound_RSn), (bound_RSn < gain_RSn).astype(jnp.float32)


def divergence(d: Array, estimator: Estimator) -> Array:
  """Estimates KL(p | p_reference) of tokens drawn from p, by d = log(p_reference / p).

  "k1" is -d, the others are in `loss`.
  """
  if estimator == "k1":
    return -d
  return 0.5 * d**2 if estimator == "k2" else jnp.exp(d) - 1.0 - d


def adapt(numbers: dict[str, Array], metrics: dict[str, Array]) -> dict[str, Array]:
  """Returns the numbers of the next update, with a weight `kl` nearer to what keeps the target.

  It grows by the share `kl_rate` of the divergence's relative error, which is clipped to 0.2
  (Ziegler et al. 2019, section 2.2), and shrinks where the policy is nearer than the target. An
  update without a judged answer does not move it.
  """
  target = numbers["kl_target"]
  moves = (target > 0) & (metrics["tokens"] > 0)
  error = jnp.clip(metrics["kl"] / jnp.maximum(target, 1e-12) - 1.0, -0.2, 0.2)
  moved = numbers["kl"] * (1.0 + numbers["kl_rate"] * error)
  return numbers | {"kl": jnp.where(moves, moved, numbers["kl"])}


def learn(sampled: Sampled, advantage: Advantage, length: Length, **_: object) -> dict:
  """Returns what an update reads of each answer: "advantages" (N, n) and "scale" (N,).

  Answers that were not judged have neither, and do not count in the means.
  """
  values_N = advantages(sampled.rewards.reshape(-1, sampled.samples), advantage).ravel()
  judged_N = ~np.isnan(sampled.rewards)
  advantages_Nn = np.where(judged_N, values_N, 0.0)[:, None] * sampled.weights
  scale_N = scales(sampled, length) * judged_N
  return {"advantages": advantages_Nn.astype(np.float32), "scale": scale_N.astype(np.float32)}


def scales(sampled: Sampled, length: Length) -> np.ndarray:
  """Returns what the sum over each answer's tokens is multiplied by, (N,)."""
  tokens_N = np.maximum(sampled.weights.sum(1), 1.0)
  judged_N = sampled.weights.any(1)
  mean = np.full(len(tokens_N), tokens_N[judged_N].mean() if judged_N.any() else 1.0)
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
