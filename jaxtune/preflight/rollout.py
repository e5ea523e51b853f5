"""Checks of runs that learn from answers which they draw themselves."""

from __future__ import annotations

from jaxtune import objectives
from jaxtune.errors import UserError
from jaxtune.evaluation import rewards
from jaxtune.evaluation.options import EvaluateOptions
from jaxtune.runs import programs
from jaxtune.runs.trial import Trial
from jaxtune.training.options import RolloutOptions, TrainOptions, intervals


def check_options(config: dict) -> None:
  """Checks the section `rollout` of a config, and what of the others depends on it.

  Raises:
    UserError: for numbers of answers, prompts and updates that do not fit together, and for rewards
      that cannot be found; reward models are not looked for, and no file is run.
  """
  name, rollout = config["objective"]["name"], RolloutOptions(**config["rollout"])
  if not objectives.rolls_out(objectives.module(name)):
    if rollout.rewards:
      raise UserError(
        f"rollout.rewards are for objectives such as 'grpo'; {name!r} draws no answers"
      )
    return
  is_there = lambda name: (path := rewards.file_of(name)) is not None and path.is_file()
  later = [one for one in rollout.rewards if one.startswith(rewards.MODEL) or is_there(one)]
  rewards.make(rollout.rewards, rollout.weights, dict.fromkeys(later, lambda _: ()))
  if config["objective"]["kl_target"] and not config["objective"]["kl"]:
    raise UserError(
      "objective.kl_target moves objective.kl by a share of itself, and that is 0; "
      "expected a weight to begin with, such as objective.kl=0.05"
    )
  _check_counts(TrainOptions(**config["train"]), rollout, config)
  most, default = rollout.max_new_tokens, EvaluateOptions().max_new_tokens
  if (given := config["evaluate"]["max_new_tokens"]) not in (most, default):
    raise UserError(
      f"evaluate.max_new_tokens is {given}, expected none, or rollout.max_new_tokens, {most}: "
      "held-out answers of a policy are as long as those that it learns from"
    )
  if (limit := config["evaluate"]["limit"]) is not None and not config["evaluate"]["generate"]:
    raise UserError(
      f"evaluate.limit is {limit}, expected None without evaluate.generate: a policy answers all "
      f"held-out prompts for their rewards; fewer are held out by data.eval_limit={limit}"
    )


def check(trial: Trial) -> int:
  """Checks the rewards of a trial; returns the longest prompt with its answer, or 0.

  Raises:
    UserError: for reward models that cannot be found, and for models and data that answers cannot
      be learnt with.
  """
  if not programs.rolls_out(trial):
    return 0
  programs.make_rewards(trial)
  _check_references(trial)
  if trial.pretrained.model.config.encoder is not None:
    name = trial.config["objective"]["name"]
    raise UserError(f"objective {name!r} is for decoders, not for encoder-decoders")
  asked = [prompt for split in trial.dataset.splits.values() for prompt in split.prompts]
  return max(map(len, asked)) + trial.config["rollout"]["max_new_tokens"]


def _check_references(trial: Trial) -> None:
  """Raises UserError for a reward that compares with answers which the data do not have."""
  names = [name for name in trial.config["rollout"]["rewards"] if rewards.compares(name)]
  for split in trial.dataset.splits.values() if names else ():
    for references, where in zip(split.references, split.where, strict=True):
      if not any(map(str.strip, references)):
        raise UserError(
          f"{where} has no answer, which reward {names[0]!r} compares with: give the rows a column "
          "`output` or `completion`, or use another reward"
        )


def _check_counts(train: TrainOptions, rollout: RolloutOptions, config: dict) -> None:
  """Raises UserError unless answers fill batches, and updates fill rollouts."""
  answers = rollout.minibatches * train.batch_size
  if answers % rollout.samples:
    raise UserError(
      f"a rollout has train.batch_size * rollout.minibatches = {answers} answers, which is no "
      f"multiple of rollout.samples, {rollout.samples}: use a train.batch_size that is, such as "
      f"{-(-train.batch_size // rollout.samples) * rollout.samples}"
    )
  advantage = config["objective"].get("advantage", "batch")
  if rollout.samples == 1 and not advantage.startswith("batch"):
    raise UserError(
      "rollout.samples is 1, but objective.advantage compares the answers to one prompt; expected "
      "2 or more, or objective.advantage='batch'"
    )
  eval_every, checkpoint_every = intervals(train)
  early = config["search"]["early_exit"] is not None
  for key, steps in (("train.steps", train.steps), ("train.eval_every", early and eval_every)):
    if steps and steps % rollout.updates:
      raise UserError(
        f"{key} is {steps}, expected a multiple of the updates of a rollout, "
        f"rollout.minibatches * rollout.epochs = {rollout.updates}"
      )
