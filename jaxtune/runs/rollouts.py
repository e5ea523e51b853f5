"""Rollouts: a policy answers prompts, its answers are judged, and batches are made of them.

A rollout is a pure function of the trial's seed, the number of the step and the weights of that
moment. So a run that is resumed draws the answers that it would have drawn, and a trial of a group
those that it would draw alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from jaxtune import data, hosts, objectives, peft, sharding
from jaxtune.data import padding
from jaxtune.evaluation import judge, rewards, texts
from jaxtune.evaluation.options import EvaluateOptions
from jaxtune.objectives import grpo
from jaxtune.runs import programs, reference
from jaxtune.runs.trial import Trial
from jaxtune.training.options import RolloutOptions, TrainOptions
from jaxtune.training.step import Program, State


class Rollouts(NamedTuple):
  """What the rollouts of a group of trials share.

  Attributes:
    trials: of the group.
    options, train: the sections `rollout` and `train`.
    policy: completes prompts, and scores answers, with the trials' weights.
    before: scores answers as the model did before training, with the overlays `started`.
    base, frozen: the weights that `policy` and `before` lay the trials' over.
    judges: the rewards.
    width: the tokens of a padded prompt.
  """

  trials: Sequence[Trial]
  options: RolloutOptions
  train: TrainOptions
  policy: judge.Evaluator
  before: judge.Evaluator
  started: peft.Overlay
  base: PyTree
  frozen: PyTree
  judges: rewards.Rewards
  width: int

  @property
  def prompts(self) -> int:
    """The number of prompts of a rollout."""
    return self.options.minibatches * self.train.batch_size // self.options.samples


def begin(
  trials: Sequence[Trial], program: Program, base: PyTree, parallel: sharding.Parallel, chunk: int
) -> Rollouts:
  """Prepares the rollouts of a group of trials."""
  first = trials[0]
  options = RolloutOptions(**first.config["rollout"])
  temperature = first.config["objective"]["temperature"]
  train = TrainOptions(**first.config["train"])
  drawing = EvaluateOptions(
    batch_size=train.batch_size, max_new_tokens=options.max_new_tokens, temperature=temperature,
  )  # fmt: skip

  def evaluator(program: Program, observe: Callable) -> judge.Evaluator:
    score = lambda forward, batch, **own: (
      batch["weights"].sum(1), observe(forward, batch, temperature, **own)
    )  # fmt: skip
    return judge.make(
      program._replace(objective=score), first.objective, drawing, parallel=parallel, chunk=chunk,
      tokenizer=first.pretrained.tokenizer, stop_tokens=first.dataset.stop_tokens,
    )  # fmt: skip

  methods, started, frozen = reference.before(trials, base, parallel)
  longest = max(map(len, (prompt for t in trials for prompt in t.dataset.train.prompts)))
  return Rollouts(
    trials, options, train, evaluator(program, first.objective.observe),
    evaluator(program._replace(methods=methods), grpo.observe), started, base, frozen,
    programs.make_rewards(first), padding.width(longest, None),
  )  # fmt: skip


def needs_policy(trial: Trial) -> bool:
  """Says whether answers are scored by the weights that drew them, before the first update.

  A single update computes these scores itself, unless the objective also needs values.
  """
  name = trial.config["objective"]["name"]
  return RolloutOptions(**trial.config["rollout"]).updates > 1 or bool(objectives.arrays(name, 1))


def batches(rollouts: Rollouts, parallel: sharding.Parallel) -> Callable:
  """Returns (numbers of trials, step of each, state) -> their batches, on the devices."""

  def placed(chosen: np.ndarray, steps: np.ndarray, state: State) -> dict:
    whole = batch(rollouts, chosen, steps, state)
    part = lambda trials, rows: {name: x[trials][:, :, rows] for name, x in whole.items()}
    return parallel.spread(whole["tokens"].shape[:3], part)

  return placed


def batch(
  rollouts: Rollouts, chosen: np.ndarray, steps: np.ndarray, state: State
) -> dict[str, np.ndarray]:
  """Draws, judges and scores answers of some trials at their steps.

  Returns:
    The batches of the next updates, one after another, (E, updates * A, B, ...).
  """
  r, trials = rollouts, [rollouts.trials[e] for e in chosen]
  numbers = steps // r.options.updates
  numbered = list(zip(trials, map(int, numbers), strict=True))
  rows = [_rows(r, *one) for one in numbered]
  own = lambda overlay: jax.tree.map(lambda x: x[chosen], overlay)
  overlays = own(peft.Overlay(state.tuned, state.hyper))
  ids_ENn = _drawn(r, overlays, trials, rows, numbers)
  splits, answers = zip(*map(lambda *one: _answered(r, *one), trials, rows, ids_ENn), strict=True)
  judged = [rewards.score(r.judges, one) for one in answers]
  scored = [{} for _ in splits]
  if needs_policy(trials[0]):
    scored = judge.measure(r.policy, overlays, r.base, splits)
  before = judge.measure(r.before, own(r.started), r.frozen, splits)
  five = zip(trials, splits, judged, scored, before, strict=True)
  learnt = [_learnt(r, *one) for one in five]
  order = [_order(r, (t.config["seed"], n)) for t, n in numbered]
  fold = lambda x: x.reshape(-1, r.train.batch_size // r.train.accumulate, *x.shape[1:])
  return {
    name: np.stack([fold(one[name][at]) for one, at in zip(learnt, order, strict=True)])
    for name in learnt[0]
  }


def _rows(r: Rollouts, trial: Trial, number: int) -> np.ndarray:
  """Returns which rows of the training split a rollout's answers are of, (N,)."""
  rows_P = data.batch(trial.dataset.train, trial.config["seed"], number, r.prompts)["example"]
  return np.repeat(rows_P, r.options.samples)


def _drawn(
  r: Rollouts,
  overlays: peft.Overlay,
  trials: Sequence[Trial],
  rows: Sequence[np.ndarray],
  numbers: np.ndarray,
) -> np.ndarray:
  """Returns the ids of the answers, (E, N, new); every answer has a key of its own."""
  stop = r.policy.stop_tokens[0]
  padded = [
    texts.pad_left([t.dataset.train.prompts[row] for row in rows_N], stop, r.width)
    for t, rows_N in zip(trials, rows, strict=True)
  ]
  tokens_ENT, mask_ENT = map(np.stack, zip(*padded, strict=True))
  seeds = [seed_of(t.config["seed"], int(n)) for t, n in zip(trials, numbers, strict=True)]
  count, total = len(trials), tokens_ENT.shape[1]
  return hosts.fetch(r.policy.complete(overlays, r.base, {
    "tokens": tokens_ENT, "mask": mask_ENT, "seed": np.asarray(seeds, np.int32),
    "numbers": np.tile(np.arange(total), (count, 1)), "count": np.full(count, total),
  }))  # fmt: skip


def seed_of(*numbers: int) -> int:
  """Makes one seed of a trial's seed and a step."""
  return int(np.random.SeedSequence(numbers).generate_state(1)[0] >> 1)


def _answered(
  r: Rollouts, trial: Trial, rows_N: np.ndarray, ids_Nn: np.ndarray
) -> tuple[data.Split, rewards.Answers]:
  """Puts prompts and answers together, padded on the right, as the trainer reads them."""
  split, tokenizer = trial.dataset.train, trial.pretrained.tokenizer
  prompts = [split.prompts[row] for row in rows_N]
  answers = [texts.until_stop(ids_n, r.policy.stop_tokens) for ids_n in ids_Nn]
  stopped = [
    ids_n[: len(answer) + 1].tolist() for answer, ids_n in zip(answers, ids_Nn, strict=True)
  ]
  width = r.width + r.options.max_new_tokens
  whole = [prompt + ids for prompt, ids in zip(prompts, stopped, strict=True)]
  lengths_N = np.array(list(map(len, whole)))
  before_N = np.array(list(map(len, prompts)))
  places_T = np.arange(width)
  mask_NT = places_T < lengths_N[:, None]
  arrays = {
    "tokens": padding.pad(whole, width, padding.pad_token(tokenizer)),
    "mask": mask_NT,
    "weights": (mask_NT & (places_T >= before_N[:, None])).astype(np.float32),
  }
  decode = lambda ids: tokenizer.decode(ids, skip_special_tokens=True)
  completions = [decode(ids).strip() for ids in answers]
  references = [split.references[row] for row in rows_N]
  source = [split.rows[row] for row in rows_N]
  asked = rewards.Answers(list(map(decode, prompts)), completions, references, source)
  return data.Split(arrays, prompts, references, source, [""] * len(rows_N)), asked


def _learnt(
  r: Rollouts, trial: Trial, split: data.Split, judged: dict, scored: dict, before: dict
) -> dict[str, np.ndarray]:
  """Returns the arrays of a rollout's answers that updates read, (N, ...)."""
  judged_N = np.isfinite(judged["reward"])
  weights_NT = split.arrays["weights"] * judged_N[:, None]
  following_NT = np.roll(weights_NT, -1, 1)
  sampled = grpo.Sampled(
    judged["reward"], r.options.samples, following_NT, scored.get("policy", before["policy"]),
    before["policy"], scored.get("values"), r.options.max_new_tokens,
  )  # fmt: skip
  learnt = trial.objective.learn(sampled, **trial.config["objective"])
  known = {name: np.nan_to_num(values).astype(np.float32) for name, values in judged.items()}
  arrays = split.arrays | {"weights": weights_NT}
  arrays |= {"reference": before["policy"]}
  arrays |= {"policy": scored["policy"]} if "policy" in scored else {}
  return arrays | known | _counted(r, split) | learnt


def _counted(r: Rollouts, split: data.Split) -> dict[str, np.ndarray]:
  """Returns the length of each answer, whether it was cut off, and whether it is a repetition."""
  weights, tokens = split.arrays["weights"], split.arrays["tokens"]
  answers = [tuple(row[own > 0]) for row, own in zip(tokens, weights, strict=True)]
  stops = r.policy.stop_tokens
  repeated = []
  for n, answer in enumerate(answers):
    first = n - n % r.options.samples
    repeated.append(answer in answers[first:n])
  counted = {
    "length": weights.sum(1),
    "truncated": [answer[-1] not in stops for answer in answers],
    "repeated": repeated,
  }
  return {name: np.asarray(values, np.float32) for name, values in counted.items()}


def _order(r: Rollouts, seed: tuple[int, int]) -> np.ndarray:
  """Returns the numbers of the answers in the order in which updates read them."""
  total = r.prompts * r.options.samples
  if r.options.minibatches == 1:
    return np.tile(np.arange(total), r.options.epochs)
  draw = np.random.default_rng(np.random.SeedSequence((*seed, 1)))
  return np.concatenate([draw.permutation(total) for _ in range(r.options.epochs)])


def example(trial: Trial, prompts: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Returns an imagined batch of the shapes that updates read; of other objectives the batch.

  Args:
    prompts: a batch of the training split.
  """
  if not programs.rolls_out(trial):
    return prompts
  options = RolloutOptions(**trial.config["rollout"])
  rows, longest = len(prompts["tokens"]), max(map(len, trial.dataset.train.prompts))
  width = padding.width(longest, None) + options.max_new_tokens
  zeros_NT = np.zeros((rows, width), np.float32)
  sampled = grpo.Sampled(
    np.zeros(rows), 1, zeros_NT, zeros_NT, zeros_NT, zeros_NT, options.max_new_tokens
  )
  learnt = trial.objective.learn(sampled, **trial.config["objective"])
  judged = ("reward", *programs.reward_labels(trial), "length", "truncated", "repeated")
  policy = {"policy": zeros_NT} if needs_policy(trial) else {}
  return policy | {
    "tokens": np.zeros((rows, width), np.int32), "mask": np.ones((rows, width), bool),
    "weights": np.ones((rows, width), np.float32), "reference": zeros_NT,
    **{name: np.zeros(rows, np.float32) for name in judged},
    **{name: np.ones_like(x) for name, x in learnt.items()},
  }  # fmt: skip
