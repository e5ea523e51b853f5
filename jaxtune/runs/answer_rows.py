"""The rows that the answers of a rollout stand in, and an imagined batch of their shapes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxtune import objectives
from jaxtune.data import padding
from jaxtune.models.layers import choose_attention
from jaxtune.objectives import grpo
from jaxtune.runs import programs
from jaxtune.runs.trial import Trial
from jaxtune.training.options import RolloutOptions, TrainOptions


def needs_policy(trial: Trial) -> bool:
  """Says whether answers are scored by the weights that drew them, before the first update.

  A single update computes these scores itself, unless the objective also needs values.
  """
  name = trial.config["objective"]["name"]
  return programs.updates(trial) > 1 or bool(objectives.arrays(name, 1))


def shared(trial: Trial, shards: int = 1) -> int:
  """Returns how many answers share a row with their prompt, so that it is computed once for them.

  As many as make the least work (Liu et al. 2025, "Prefix Grouper"): a token of the prompt is
  saved for each further answer, while plain attention also computes the pairs of tokens of
  different answers, which nothing reads. Fused kernels of attention have no rule for such rows, so
  that where they are used every answer has a row of its own.

  Args:
    shards: among which the rows of a batch are divided.
  """
  c, (rollout, train) = trial.pretrained.model.config, options(trial)
  prompt, new = prompt_width(trial), rollout.max_new_tokens
  rows = train.batch_size // train.accumulate
  by_length = any(rope is not None and rope.by_length for rope in (c.rope, c.local_rope))
  if c.window is not None or by_length:  # these go by the places of tokens in a row
    return 1
  heads = c.head_size * c.heads
  weights = c.width * (2 * heads + 2 * c.kv_heads * c.head_size + (2 + c.gated) * c.ffn)

  def work(share: int) -> float:
    tokens = prompt / share + new
    return tokens * weights + 2 * heads * share * tokens**2

  def fits(share: int) -> bool:
    width = prompt + share * new
    plain = (c.attention or choose_attention(c.runs_on, width)) == "plain"
    return plain and rollout.samples % share == 0 == rows % (share * shards)

  return min([1, *filter(fits, range(2, rollout.samples + 1))], key=work)


def layout(trials: Sequence[Trial], shards: int = 1) -> tuple[int, int]:
  """Returns what the rows of a group of trials have in common: `shared`, and tokens of a prompt."""
  return min(shared(t, shards) for t in trials), max(map(prompt_width, trials))


def example(
  trials: Sequence[Trial], prompts: dict[str, np.ndarray], shards: int = 1
) -> dict[str, np.ndarray]:
  """Returns an imagined batch of the shapes that updates read; of other objectives the batch.

  Args:
    trials: of a group.
    prompts: a batch of the training split.
    shards: as for `shared`.
  """
  trial = trials[0]
  if not programs.rolls_out(trial):
    return prompts
  (share, prompt), new = layout(trials, shards), options(trial)[0].max_new_tokens
  count = len(prompts["tokens"])
  rows, width = count // share, prompt + share * new
  zeros_Nn = np.zeros((count, new), np.float32)
  sampled = grpo.Sampled(np.zeros(count), 1, zeros_Nn, zeros_Nn, zeros_Nn, zeros_Nn, new)
  found = trial.objective.learn(sampled, **trial.config["objective"])
  judged = ("reward", *programs.reward_labels(trial), "length", "truncated", "repeated")
  found |= {name: zeros_Nn[:, 0] for name in judged} | {"weights": zeros_Nn, "reference": zeros_Nn}
  found |= {"policy": zeros_Nn} if needs_policy(trial) else {}
  branches = {"branches": np.ones((rows, width), np.int32)} if share > 1 else {}
  return branches | {
    "tokens": np.zeros((rows, width), np.int32), "mask": np.ones((rows, width), bool),
    **{name: np.ones((rows, share, *x.shape[1:]), np.float32) for name, x in found.items()},
  }  # fmt: skip


def options(trial: Trial) -> tuple[RolloutOptions, TrainOptions]:
  """Returns the sections `rollout` and `train` of a trial's config."""
  return RolloutOptions(**trial.config["rollout"]), TrainOptions(**trial.config["train"])


def prompt_width(trial: Trial) -> int:
  """Returns the tokens of a padded prompt."""
  return padding.width(max(map(len, trial.dataset.train.prompts)), None)
