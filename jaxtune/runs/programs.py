"""Makes the programs by which the trials of a group are trained and judged."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial

from jaxtune import objectives, sharding, tree
from jaxtune.data import Split, most_targets
from jaxtune.evaluation import judge, rewards
from jaxtune.evaluation.options import EvaluateOptions
from jaxtune.runs import reward_model
from jaxtune.runs.trial import Trial
from jaxtune.training import optim
from jaxtune.training.options import RolloutOptions
from jaxtune.training.step import Program, chooses


def make_program(
  trial: Trial, dropout: bool = False, chunk: int = 1, targets: int | None = None
) -> Program:
  """Makes the program that is compiled for a group, from any one of its trials.

  Args:
    dropout: whether any trial of the group is trained with noise; see `uses_noise`.
    chunk: trials side by side in one vmap, which share the room for logits.
    targets: of the group, for training; see `count_targets`.
  """
  model = trial.pretrained.model
  tokens = max(model.config.scored_together // chunk, 1)
  model = model.clone(config=dataclasses.replace(model.config, scored_tokens=tokens))
  steps, options = trial.config["train"]["steps"], trial.config["optim"]
  return Program(
    model,
    trial.methods,
    partial(trial.objective.loss, **_static_options(trial)),
    lambda numbers: optim.make(numbers, steps, **options),
    steps,
    dropout,
    logged=logged(trial),
    updates=updates(trial),
    adapt=getattr(trial.objective, "adapt", None),
    targets=targets,
    common=getattr(trial.objective, "common", None),
  )


def of_group(trials: Sequence[Trial], chunk: int = 1) -> Program:
  """Makes the program that trains a group; `chunk` as for `make_program`."""
  noise = any(uses_noise(trial.config) for trial in trials)
  return make_program(trials[0], noise, chunk, count_targets(trials))


def count_targets(trials: Sequence[Trial]) -> int | None:
  """Returns of how many tokens of a row the training of a group computes logits; None: of all.

  As many as the row with the most targets has, so that none are computed of prompts.
  """
  splits = [trial.dataset and trial.dataset.train for trial in trials]  # or shapes alone
  known = all(isinstance(split, Split) for split in splits)  # of a stream they are not
  mesh = trials[0].config["train"]["mesh"] or {}
  if not known or rolls_out(trials[0]) or not chooses(trials[0].pretrained.model.config, mesh):
    return None
  return most_targets(splits)


def rolls_out(trial: Trial) -> bool:
  """Says whether a trial learns from answers that it draws itself; see `rollouts`."""
  return objectives.rolls_out(trial.objective)


def updates(trial: Trial) -> int:
  """Returns how many updates a call of a trial's training step makes."""
  return RolloutOptions(**trial.config["rollout"]).updates if rolls_out(trial) else 1


def logged(trial: Trial) -> tuple[str, ...]:
  """Returns the names of the sums of a step that are logged beside its loss."""
  return (*getattr(trial.objective, "LOGGED", ()), *reward_labels(trial))


def reward_labels(trial: Trial) -> tuple[str, ...]:
  """Returns the names by which a trial's rewards are reported."""
  return tuple(rewards.labels(trial.config["rollout"]["rewards"])) if rolls_out(trial) else ()


def make_rewards(trial: Trial) -> rewards.Rewards:
  """Finds the rewards of a trial's config."""
  o = RolloutOptions(**trial.config["rollout"])
  models = reward_model.find(o.rewards)
  return rewards.make(o.rewards, o.weights, models, timeout=o.timeout, on_error=o.on_error)


def judging(trial: Trial) -> EvaluateOptions:
  """Returns the section `evaluate`, of a policy with answers as long as those of training."""
  options = EvaluateOptions(**trial.config["evaluate"])
  most = trial.config["rollout"]["max_new_tokens"]
  return options._replace(max_new_tokens=most) if rolls_out(trial) else options


def make_evaluator(
  trial: Trial, parallel: sharding.Parallel, chunk: int = 1, methods: tuple | None = None
) -> judge.Evaluator:
  """Makes the evaluator of a group, without label smoothing, so that losses can be compared.

  Args:
    chunk: trials side by side in one vmap.
    methods: methods in place of the trial's, such as () for the untuned base.
  """
  objective, options = trial.objective, _static_options(trial)
  options.pop("label_smoothing", None)
  program = make_program(trial, chunk=chunk)._replace(
    objective=partial(objective.loss, **options),
    methods=trial.methods if methods is None else methods,
  )
  if hasattr(objective, "predict"):
    program = program._replace(predict=partial(objective.predict, **options))
  return judge.make(
    program,
    objective,
    judging(trial),
    parallel=parallel,
    chunk=chunk,
    tokenizer=trial.pretrained.tokenizer,
    stop_tokens=trial.dataset.stop_tokens,
    rewards=make_rewards(trial) if rolls_out(trial) else None,
  )


def _static_options(trial: Trial) -> dict:
  """Returns the options of the objective that are no arrays of `Overlay.hyper`."""
  options = objectives.static(trial.config["objective"])
  return {key: value for key, value in options.items() if key != "name"}


def uses_noise(config: dict) -> bool:
  """Says whether a trial is trained with noise: a rate of dropout, or NEFTune's, above zero."""
  sections = tree.flatten({name: config[name] for name in ("method", "regularize")})
  noise = ("dropout", "token_dropout", "neftune")
  return any(path.rpartition("/")[2] in noise and rate for path, rate in sections.items())
