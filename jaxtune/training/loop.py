"""Trains a group of trials in one compiled program; a single run is a group of one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree
from tqdm import tqdm

from jaxtune import data, hosts, peft, tree
from jaxtune.training import checkpoint, turns
from jaxtune.training.options import TrainOptions, intervals
from jaxtune.training.progress import COUNTS, METRICS, Evaluation, Progress, evaluated, first
from jaxtune.training.step import Program, State, update


def make_step(
  program: Program, chunk: int, turns: bool = False, mesh: Mesh | None = None
) -> Callable:
  """Returns ((state, sums), base, batch, axis=None) -> the same pair after the program's updates.

  Args:
    chunk, mesh: see `tree.over_trials`.
    turns: whether only some of the N trials take the step. Then (base, places) stands in place of
      the base, places (E,) are their numbers, N for a place that stays empty, and the batch is that
      of E trials.
  """

  def one_trial(carry, base, batch, axis):
    state, sums, *taken = carry

    def one_update(carry, batch):
      state, sums = carry
      after, metrics = update(program, state, base, batch, axis)
      counts = metrics["tokens"] > 0
      more = {name: jnp.where(counts, metrics[name], 0.0) for name in (*METRICS, *program.logged)}
      new = {name: sums[name] + x for name, x in (more | {"steps": counts}).items()}
      diverged = first(sums["diverged"], ~metrics["finite"], after.step)
      return (after, new | {"diverged": diverged}), None

    def train():
      if program.updates == 1:
        return one_update((state, sums), batch)[0]
      batches = jax.tree.map(lambda x: x.reshape(program.updates, -1, *x.shape[1:]), batch)
      return jax.lax.scan(one_update, (state, sums), batches)[0]

    return jax.lax.cond(taken[0], train, lambda: (state, sums)) if taken else train()

  mapped = lambda axis: tree.over_trials(partial(one_trial, axis=axis), chunk, mesh)

  def step(trials, shared, batch, axis=None):
    if not turns:
      return mapped(axis)(trials, shared, batch)
    base, places_E = shared
    count = trials[1]["steps"].shape[0]
    chosen = jax.tree.map(lambda x: x.at[places_E].get(mode="clip"), trials)
    after = mapped(axis)((*chosen, places_E < count), base, batch)
    return jax.tree.map(lambda x, y: x.at[places_E].set(y, mode="drop"), trials, after)

  return step


class Group(NamedTuple):
  """Holds what the loop needs of a group of N trials.

  Attributes:
    options: the `train` section.
    step: what `make_step` returns, compiled.
    base: the frozen weights.
    batch: (trials, step of each, state) -> their batch (E, A, B, ...), on the devices; for several
      updates, their parts one after another in A. Only rollouts read the state.
    validate: (overlays, trials) -> metrics of these trials on their validation splits; None without
      one.
    keep_from: the first step whose weights may be kept; evaluations before it are only logged.
    logs: writes each trial's metrics.jsonl.
    save: (number of updates of all trials, progress) -> None; writes a checkpoint.
    places: how many trials are trained side by side; None for all of them, at every step.
    chunk: how many of them each device computes together.
    shards: the size of the mesh axis "trial".
    rule: says which leave early; see `turns`.
    updates: of the program.
  """

  options: TrainOptions
  step: Callable
  base: PyTree
  batch: Callable[[np.ndarray, np.ndarray, State], dict]
  validate: Callable[[peft.Overlay, np.ndarray], list[dict]] | None
  keep_from: int
  logs: Any
  save: Callable[[int, Progress], None]
  places: int | None = None
  chunk: int = 1
  shards: int = 1
  rule: turns.Rule | None = None
  updates: int = 1


def run(group: Group, progress: Progress) -> Progress:
  """Trains a group to the last step of every trial; validates, logs and saves meanwhile.

  A trial ends early once its patience has ended, or if the rule says so. A step's batch is put on
  the devices while they take the step before it.

  Raises:
    SystemExit: after SIGTERM, once the current step is done and saved.
  """
  options, (eval_every, checkpoint_every) = group.options, intervals(group.options)
  steps = np.array(hosts.fetch(progress.state.step))
  progress, places = _turn(group, progress, steps)
  bar = tqdm(total=options.steps * len(steps), initial=int(steps.sum()), desc="training",
             unit="step", disable=hosts.bars())  # fmt: skip
  batch, may_end = _batch(group, places, steps, progress), options.patience or group.rule
  with checkpoint.interrupts() as interrupted, bar:
    while places.size:
      carry, taken = (progress.state, progress.sums), places[places < len(steps)]
      shared = group.base if group.places is None else (group.base, places)
      state, sums = group.step(carry, shared, batch)
      progress, shape = progress._replace(state=state, sums=sums), batch["tokens"].shape
      tokens = np.prod(shape[1:]) // group.updates
      steps[taken] += group.updates
      passed = lambda n, at: at // n > (at - group.updates) // n
      last, every = steps[taken] == options.steps, partial(passed, at=steps[taken])
      judged = taken[every(eval_every) | last] if group.validate is not None else taken[:0]
      changes = last.any() or (may_end and judged.size)
      batch = None if changes else _batch(group, places, steps, progress)
      if (logged := taken[every(options.log_every) | last]).size:
        progress = _log(group, progress, logged, steps, bar, tokens)
      if group.validate is not None and judged.size:
        progress = _keep_best(group, group.validate, progress, judged, steps)
      if changes:
        progress, places = _turn(group, progress, steps)
        batch = _batch(group, places, steps, progress)
      bar.update(len(taken) * group.updates)
      stop = interrupted()
      if every(checkpoint_every).any() or last.any() or stop or not places.size:
        group.save(int(steps.sum()), progress)
      if stop:
        raise SystemExit(143)
  return progress


def _turn(group: Group, progress: Progress, steps: np.ndarray) -> tuple[Progress, np.ndarray]:
  """Returns the progress with who leaves now, and the numbers of the trials in each place.

  A place that stays empty has the number of trials. Empty ones cost time where one vmap, or one
  program of several devices, computes several, so that there are then half as many places, and so
  on: each number of them is a program.
  """
  ended = hosts.fetch((progress.stopped, progress.exited, progress.losses))
  now = turns.Standing(steps, *map(np.asarray, ended))
  waits = np.zeros(len(steps), bool)
  if group.rule is not None:
    exited, waits = turns.leave(group.rule, intervals(group.options)[0], now)
    for e in np.flatnonzero(exited != now.exited):
      tqdm.write(f"trial {e + 1} leaves at step {exited[e]}, by {group.rule.name}")
    now = now._replace(exited=exited)
    progress = progress._replace(exited=jax.device_put(exited, progress.exited.sharding))
  width = group.places or len(steps)
  chosen = turns.next_trials(now, waits, group.options.steps, width)
  if group.places is None or not chosen.size:
    return progress, chosen
  costly, least = group.chunk * group.shards > 1, max(chosen.size, group.shards)
  while costly and width // 2 >= least:
    width = width // 2
  return progress, np.concatenate([chosen, np.full(width - chosen.size, len(steps))])


def _batch(group: Group, places: np.ndarray, steps: np.ndarray, progress: Progress) -> dict | None:
  """Returns the batch of the next step; an empty place has that of the first one."""
  if not places.size:
    return None
  trials = np.where(places < len(steps), places, places[0])
  return group.batch(trials, steps[trials], progress.state)


def make_batch(
  splits: Sequence[data.Split],
  seeds: Sequence[int],
  steps: Sequence[int],
  options: TrainOptions,
  trials: slice = slice(None),
  rows: slice = slice(None),
) -> dict[str, np.ndarray]:
  """Returns every trial's batch of its step, stacked to (E, A, B, ...) with B examples in a part.

  Args:
    trials, rows: make this part of E and of B alone.
  """
  keys = [(id(split), *pair) for split, *pair in zip(splits, seeds, steps, strict=True)]
  distinct = dict(zip(keys[trials], splits[trials], strict=True))
  draws_AB = np.arange(options.batch_size).reshape(options.accumulate, -1)[:, rows]
  batches = {
    key: data.batch(split, *key[1:], options.batch_size, draws_AB.ravel())
    for key, split in distinct.items()
  }
  fold = lambda x: x.reshape(*draws_AB.shape, *x.shape[1:])
  names = batches[keys[trials][0]]
  return {name: np.stack([fold(batches[key][name]) for key in keys[trials]]) for name in names}


def _log(
  group: Group, progress: Progress, trials: np.ndarray, steps: np.ndarray, bar: tqdm, tokens: int
) -> Progress:
  """Writes the means of the metrics since the last log line, and sets their sums to zero.

  They are over the updates that had a target; a line without one has its step alone.
  Prints a warning for each trial that has diverged since then.

  Args:
    trials: whose line is due.
    tokens: number of tokens of a trial's update, padding included, for the rate that the bar shows.
  """
  sums, best = hosts.fetch((progress.sums, progress.best.min()))
  means = {n: x / np.maximum(sums["steps"], 1) for n, x in sums.items() if n not in COUNTS}
  of = lambda e: dict(
    train_loss=float(means["loss"][e]), train_accuracy=100 * float(means["accuracy"][e]),
    grad_norm=float(means["grad_norm"][e]),
    **{f"train_{n}": float(means[n][e]) for n in means if n not in METRICS},
  )  # fmt: skip
  group.logs.write({
    e: {"step": int(steps[e])} | (of(e) if sums["steps"][e] else {}) for e in trials
  })  # fmt: skip
  rate = (bar.format_dict["rate"] or 0) * tokens
  said = f", best {best:.3f}" if np.isfinite(best) else ""
  bar.set_postfix_str(f"loss {means['loss'][trials].mean():.3f}{said}, {rate:,.0f} tokens/s")
  before = (steps[trials] - group.updates) // group.options.log_every * group.options.log_every
  before = -(-before // group.updates) * group.updates  # the step of the last log line
  for e in trials[sums["diverged"][trials] > before]:
    at = sums["diverged"][e]
    tqdm.write(f"trial {e + 1} diverged: its loss, gradient or weights are not finite at step {at}")
  due = np.isin(np.arange(len(steps)), trials)
  fresh = {n: jnp.where(due, 0, x) for n, x in progress.sums.items() if n != "diverged"}
  return progress._replace(sums=progress.sums | fresh)


def _keep_best(
  group: Group, validate: Callable, progress: Progress, trials: np.ndarray, steps: np.ndarray
) -> Progress:
  """Logs an evaluation, keeps the weights of trials that improved, and counts for the others."""
  patience, count = group.options.patience, len(steps)
  overlays = peft.Overlay(progress.state.tuned, progress.state.hyper)
  found = dict(zip(trials.tolist(), validate(overlays, trials), strict=True))
  group.logs.write({e: {"step": int(steps[e]), **values} for e, values in found.items()})
  name = "validation_loss"  # which a trial lacks where no example has a weight
  judged = {e: values[name] for e, values in found.items() if name in values}
  loss, due = np.zeros(count, np.float32), np.isin(np.arange(count), [*judged])
  loss[[*judged]] = [*judged.values()]
  number = turns.number(steps, intervals(group.options)[0])
  evaluation = Evaluation(due, loss, steps, number)
  after = evaluated(progress, evaluation, group.keep_from, patience or -1)
  if patience is None:
    stale, diverged = hosts.fetch((after.stale, after.sums["diverged"]))
    _warn(np.where(due, stale, 0), diverged > 0, after, steps, loss)
  return after


def _warn(
  stale: np.ndarray, diverged: np.ndarray, progress: Progress, steps: np.ndarray, loss: np.ndarray
) -> None:
  """Prints a warning for trials whose third evaluation in a row was not better than their best."""
  for e in np.flatnonzero((stale == 3) & ~diverged):
    best_step, best = hosts.fetch((progress.best_step, progress.best))
    tqdm.write(
      f"step {steps[e]}: the validation loss of trial {e + 1} has not fallen since step "
      f"{int(best_step[e])} ({float(best[e]):.4g}, now {float(loss[e]):.4g}): it "
      "overfits. train.patience would stop it; regularize, or a smaller method, may help"
    )
