"""Decides which trials of a group take the next step, which wait, and which leave early.

Every decision is a function of what a checkpoint holds, so that a resumed group decides alike. A
rule compares configurations, which are trials that differ in the seed alone: all seeds of one stay
or leave together, as the mean over the seeds that are left would be too good.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxtune.errors import UserError
from jaxtune.training.options import SearchOptions, TrainOptions, intervals


class Rule(NamedTuple):
  """Says when configurations leave.

  Attributes:
    name: "halving" or "median"; see `SearchOptions`.
    rungs: the numbers of the evaluations, from 1, at which they are compared.
    keep: the share that "halving" keeps.
    teams: the number of each trial's configuration.
  """

  name: str
  rungs: tuple[int, ...]
  keep: float
  teams: tuple[int, ...]


class Standing(NamedTuple):
  """What decisions are made from; arrays of all N trials of a group.

  Attributes:
    steps: updates done.
    stopped, exited: the step at which the patience, or a rule, has ended a trial; 0 for neither.
    losses: (N, V), validation losses by evaluation; NaN where there is none.
  """

  steps: np.ndarray
  stopped: np.ndarray
  exited: np.ndarray
  losses: np.ndarray


def rule(search: SearchOptions, train: TrainOptions, teams: Sequence[int]) -> Rule | None:
  """Returns the rule of a config; None where no trial leaves early.

  Raises:
    UserError: a rung at which no evaluation is before the end.
  """
  if search.early_exit is None:
    return None
  every, _ = intervals(train)
  rungs = sorted({_upwards(share * train.steps / every) for share in search.rungs})
  if not rungs or not 0 < rungs[0] * every <= rungs[-1] * every < train.steps:
    raise UserError(
      f"search.rungs {search.rungs}: with train.eval_every {every} these are the evaluations "
      f"{rungs}, expected shares of the {train.steps} steps with an evaluation before the last one"
    )
  return Rule(search.early_exit, tuple(rungs), search.keep, tuple(teams))


def number(steps: np.ndarray, every: int) -> np.ndarray:
  """Returns the number, from 0, of the evaluation after so many updates.

  The last evaluation may be between two others, and has a number of its own.
  """
  return np.maximum(-(-steps // every) - 1, 0)


def _upwards(number: float) -> int:
  """Rounds upwards, but for what a product of floats is too large: 0.55 * 100 is 55."""
  return math.ceil(number - 1e-9)


def leave(rule: Rule, every: int, now: Standing) -> tuple[np.ndarray, np.ndarray]:
  """Returns `exited` with those trials that leave now, and which trials wait for others.

  At a rung all configurations are compared that have come so far. Who comes first waits for the
  others, so that it does not matter how many trials are trained side by side.

  Args:
    every: steps between two evaluations.
  """
  exited, waits = now.exited.copy(), np.zeros(len(now.steps), bool)
  for number in rule.rungs:
    step = number * every
    there = (now.exited == 0) | (now.exited >= step)
    if not (now.stopped[there].astype(bool) | (now.steps[there] >= step)).all():
      waits |= there & (now.steps == step) & (exited == 0)
      break
    teams = np.asarray(rule.teams)
    losers = _losers(rule, {t: now.losses[there & (teams == t), :number] for t in teams[there]})
    lost = np.isin(teams, losers) & (exited == 0)
    leaving = lost & (now.steps == step)
    # With them go seeds that the patience has ended: else these alone would stand for the others.
    leaving |= lost & (now.stopped > 0) & np.isin(teams, teams[leaving])
    exited[leaving] = step
  return exited, waits & (exited == 0)


def _losers(rule: Rule, losses: dict[int, np.ndarray]) -> list[int]:
  """Returns the configurations that leave, given the losses of each (seeds, evaluations).

  One with a seed that was never judged is not compared, and stays.
  """
  known = {team: _filled(one) for team, one in losses.items()}
  means = {team: one.mean(0) for team, one in known.items() if not np.isnan(one).any()}
  if rule.name == "halving":
    order = sorted(means, key=lambda team: (means[team][-1], team))
    return order[max(_upwards(rule.keep * len(order)), 1) :]
  averages = {team: mean.mean() for team, mean in means.items()}
  others = lambda team: [average for name, average in averages.items() if name != team]
  return [t for t in means if others(t) and means[t].min() > np.median(others(t))]


def _filled(losses: np.ndarray) -> np.ndarray:
  """Puts the last evaluation of each seed, or else its first, in place of missing ones.

  The patience may have ended a trial before, or an evaluation have judged nothing.
  """
  known = ~np.isnan(losses)
  last = np.maximum.accumulate(np.where(known, np.arange(losses.shape[1]), -1), 1)
  return np.take_along_axis(losses, np.where(last < 0, known.argmax(1)[:, None], last), 1)


def next_trials(now: Standing, waits: np.ndarray, steps: int, places: int) -> np.ndarray:
  """Returns the trials that take the next step: those under way first, then in their order."""
  ready = (now.steps < steps) & (now.stopped == 0) & (now.exited == 0) & ~waits
  order = np.lexsort((np.arange(len(ready)), now.steps == 0))
  return np.sort(order[ready[order]][:places])
