"""Rollouts: a policy answers prompts, its answers are judged, and batches are made of them.

A rollout is a pure function of the trial's seed, the number of the step and the weights of that
moment. So a run that is resumed draws the answers that it would have drawn, and a trial of a group
those that it would draw alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from jaxtune import data, hosts, peft, sharding
from jaxtune.data import padding
from jaxtune.evaluation import judge, rewards, texts
from jaxtune.evaluation.answers import completer
from jaxtune.evaluation.options import EvaluateOptions
from jaxtune.objectives import grpo
from jaxtune.runs import answer_rows, programs, reference
from jaxtune.runs.trial import Trial
from jaxtune.training.options import RolloutOptions, TrainOptions
from jaxtune.training.step import Program, State


class Rollouts(NamedTuple):
  """What the rollouts of a group of trials share.

  Attributes:
    trials: of the group.
    options, train: the sections `rollout` and `train`.
    draw: completes prompts with the trials' weights; see `judge.Evaluator.complete`.
    policy: scores answers with the same weights.
    before: scores answers as the model did before training, with the overlays `started`.
    base, frozen: the weights that `policy` and `before` lay the trials' over.
    judges: the rewards.
    width: the tokens of a padded prompt.
    share: how many answers share a row with their prompt; see `answer_rows.shared`.
  """

  trials: Sequence[Trial]
  options: RolloutOptions
  train: TrainOptions
  draw: Callable
  policy: judge.Evaluator
  before: judge.Evaluator
  started: peft.Overlay
  base: PyTree
  frozen: PyTree
  judges: rewards.Rewards
  width: int
  share: int

  @property
  def prompts(self) -> int:
    """The number of prompts of a rollout."""
    return self.trials[0].draws(1)[1]


def begin(
  trials: Sequence[Trial], program: Program, base: PyTree, parallel: sharding.Parallel, chunk: int
) -> Rollouts:
  """Prepares the rollouts of a group of trials."""
  first = trials[0]
  options, train = answer_rows.options(first)
  share, width = answer_rows.layout(trials, parallel.batch_shards)
  drawing = _drawing(first)
  scoring = drawing._replace(batch_size=train.batch_size // train.accumulate // share)
  together = {"parallel": parallel, "chunk": chunk}

  def evaluator(program: Program, observe: Callable) -> judge.Evaluator:
    score = lambda forward, batch, **own: (
      batch["weights"].sum(-1), observe(forward, batch, drawing.temperature, **own)
    )  # fmt: skip
    made = judge.make(
      program._replace(objective=score), first.objective, scoring,
      tokenizer=first.pretrained.tokenizer, stop_tokens=first.dataset.stop_tokens, **together,
    )  # fmt: skip
    return made._replace(chooses=False)  # logits are of answers alone, however long they are

  methods, started, frozen = reference.before(trials, base, parallel)
  return Rollouts(
    trials, options, train, make_draw(first, program, **together),
    evaluator(program, first.objective.observe),
    evaluator(program._replace(methods=methods), grpo.observe), started, base, frozen,
    programs.make_rewards(first), width, share,
  )  # fmt: skip


def make_draw(
  trial: Trial, program: Program, *, parallel: sharding.Parallel, chunk: int
) -> Callable:
  """Makes `Rollouts.draw` of a group, from any one of its trials."""
  return completer(
    program, _drawing(trial), trial.dataset.stop_tokens, parallel=parallel, chunk=chunk,
    share=trial.config["rollout"]["samples"],
  )  # fmt: skip


def _drawing(trial: Trial) -> EvaluateOptions:
  """Returns how answers are drawn: as many at a time as an update learns from."""
  options, train = answer_rows.options(trial)
  return EvaluateOptions(
    batch_size=train.batch_size, max_new_tokens=options.max_new_tokens,
    temperature=trial.config["objective"]["temperature"], merge=trial.config["evaluate"]["merge"],
  )  # fmt: skip


def batches(rollouts: Rollouts, parallel: sharding.Parallel) -> Callable:
  """Returns (numbers of trials, step of each, state) -> their batches, on the devices."""
  return lambda *now: parallel.put_batch(batch(rollouts, *now))


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
  if answer_rows.needs_policy(trials[0]):
    scored = judge.measure(r.policy, overlays, r.base, splits)
  before = judge.measure(r.before, own(r.started), r.frozen, splits)
  weights_E = hosts.fetch(state.hyper["loss"]["objective"]["kl"])[chosen]
  seen = [own | {"reference": x["policy"]} for own, x in zip(scored, before, strict=True)]
  five = zip(trials, splits, judged, seen, map(float, weights_E), strict=True)
  learnt = [_learnt(r, *one) for one in five]
  order = [_order(r, (t.config["seed"], n)) for t, n in numbered]
  rows_of_part = r.train.batch_size // r.train.accumulate // r.share
  fold = lambda x: x.reshape(-1, rows_of_part, *x.shape[1:])
  return {
    name: np.stack([fold(one[name][at]) for one, at in zip(learnt, order, strict=True)])
    for name in learnt[0]
  }


def imagined(trials: Sequence[Trial], count: int, parallel: sharding.Parallel) -> dict:
  """Returns a batch of `count` trials, of the shapes of those that `batches` makes, undrawn."""
  train, updates = answer_rows.options(trials[0])[1], programs.updates(trials[0])
  prompts = data.batch(trials[0].dataset.train, 0, 0, train.batch_size // train.accumulate)
  part_of_one = answer_rows.example(trials, prompts, parallel.batch_shards)
  lead = count, updates * train.accumulate
  spread = lambda x: np.broadcast_to(x, (*lead, *x.shape))
  return parallel.put_batch({name: spread(x) for name, x in part_of_one.items()})


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
  return hosts.fetch(r.draw(overlays, r.base, {
    "tokens": tokens_ENT, "mask": mask_ENT, "seed": np.asarray(seeds, np.int32),
    "numbers": np.tile(np.arange(total), (count, 1)), "count": np.full(count, total),
  }))  # fmt: skip


def seed_of(*numbers: int) -> int:
  """Makes one seed of a trial's seed and a step."""
  return int(np.random.SeedSequence(numbers).generate_state(1)[0] >> 1)


def _answered(
  r: Rollouts, trial: Trial, rows_N: np.ndarray, ids_Nn: np.ndarray
) -> tuple[data.Split, rewards.Answers]:
  """Puts prompts and answers together, as the trainer reads them; see `grpo.loss`."""
  split, tokenizer = trial.dataset.train, trial.pretrained.tokenizer
  prompts = [split.prompts[row] for row in rows_N]
  answers = [texts.until_stop(ids_n, r.policy.stop_tokens) for ids_n in ids_Nn]
  lengths_N = np.minimum(np.array(list(map(len, answers))) + 1, ids_Nn.shape[1])
  real_Nn = np.arange(ids_Nn.shape[1]) < lengths_N[:, None]
  pad = padding.pad_token(tokenizer)
  tokens_RP, mask_RP = texts.pad_left(prompts[:: r.share], pad, r.width)
  behind = lambda x_RP, x_Nn: np.concatenate([x_RP, x_Nn.reshape(len(x_RP), -1)], 1)
  arrays = {
    "tokens": behind(tokens_RP, np.where(real_Nn, ids_Nn, pad)),
    "mask": behind(mask_RP, real_Nn),
    "weights": real_Nn.reshape(len(tokens_RP), r.share, -1).astype(np.float32),
  }
  if r.share > 1:
    branch_N1 = 1 + np.arange(len(prompts))[:, None] % r.share
    arrays["branches"] = behind(np.zeros_like(tokens_RP), branch_N1 * np.ones_like(ids_Nn))
  references = [split.references[row] for row in rows_N]
  source = [split.rows[row] for row in rows_N]
  asked = rewards.answers_of(tokenizer, prompts, answers, references, source)
  return data.Split(arrays, prompts, references, source, [""] * len(rows_N)), asked


def _learnt(
  r: Rollouts, trial: Trial, split: data.Split, judged: dict, seen: dict, kl: float
) -> dict[str, np.ndarray]:
  """Returns the arrays of a rollout's answers that updates read, (R, ...).

  Args:
    seen: what `observe` returns of the policy, as far as it was asked, and "reference".
    kl: the weight of the divergence by now.
  """
  shape = split.arrays["weights"].shape
  flat = lambda x_RSn: x_RSn.reshape(-1, shape[-1])
  known_N = np.isfinite(judged["reward"])
  weights_Nn = flat(split.arrays["weights"]) * known_N[:, None]
  seen = {name: flat(x) * weights_Nn for name, x in seen.items() if np.ndim(x) == len(shape)}
  reference_Nn = seen["reference"]
  sampled = grpo.Sampled(
    judged["reward"], r.options.samples, weights_Nn, seen.get("policy", reference_Nn), reference_Nn,
    seen.get("values"), shape[-1],
  )  # fmt: skip
  found = {name: _filled(values_N, known_N) for name, values_N in judged.items()}
  found |= {"weights": weights_Nn, "reference": reference_Nn} | _counted(r, split)
  found |= {"policy": seen["policy"]} if "policy" in seen else {}
  found |= trial.objective.learn(sampled, **trial.config["objective"] | {"kl": kl})
  return split.arrays | {name: x.reshape(*shape[:2], *x.shape[1:]) for name, x in found.items()}


def _filled(values_N: np.ndarray, known_N: np.ndarray) -> np.ndarray:
  """Returns a reward as it is logged: 0 for answers that count in no mean, which `known_N` are not.

  A reward that is only reported has the mean of the rollout where it failed; NaN if it always did.
  """
  seen_N = known_N & np.isfinite(values_N)
  mean = values_N[seen_N].mean() if seen_N.any() else np.nan
  return np.where(known_N, np.where(seen_N, values_N, mean), 0.0).astype(np.float32)


def _counted(r: Rollouts, split: data.Split) -> dict[str, np.ndarray]:
  """Returns the length of each answer, whether it was cut off, and whether it is a repetition."""
  new = split.arrays["weights"].shape[-1]
  weights = split.arrays["weights"].reshape(-1, new)
  tokens = split.arrays["tokens"][:, r.width :].reshape(-1, new)
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
  """Returns the numbers of the rows in the order in which updates read them.

  Whole prompts change places, or as many answers of one as every update has whole: parts whose size
  `share` divides, and which do not depend on it.
  """
  part = math.gcd(r.options.samples, r.train.batch_size)
  rows = np.arange(r.prompts * r.options.samples // r.share).reshape(-1, part // r.share)
  if r.options.minibatches == 1:
    return np.tile(rows.ravel(), r.options.epochs)
  draw = np.random.default_rng(np.random.SeedSequence((*seed, 1)))
  orders = [rows[draw.permutation(len(rows))] for _ in range(r.options.epochs)]
  return np.concatenate(orders, None)
