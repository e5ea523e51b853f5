"""Trains a group of trials in one compiled program; a single run is a group of one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree
from tqdm import tqdm

from jaxtune import data, hosts, peft, tree
from jaxtune.training import checkpoint
from jaxtune.training.options import TrainOptions
from jaxtune.training.step import Program, State, update

METRICS = ("loss", "accuracy", "grad_norm")  # of a step; each log line has their means


class Progress(NamedTuple):
  """Holds a group's state between two steps, which a checkpoint saves.

  Attributes:
    state: `step.State`, stacked over trials.
    sums: {name: (E,)}: sums of METRICS and the number of "steps" since the last log line, and
      "diverged", the first step at which a loss, a gradient or a weight was not finite, or 0.
    tuned: the trained weights with the best validation loss so far.
    best, best_step: that loss and its step, (E,).
    stale: number of evaluations since then, (E,).
    stopped: the step at which the patience ended, (E,); 0 if it has not.
  """

  state: State
  sums: dict[str, Array]
  tuned: PyTree
  best: Array
  best_step: Array
  stale: Array
  stopped: Array


@jax.jit
def begin(states: State) -> Progress:
  """Returns the progress of a group before its first step."""
  count = states.step.shape[0]
  zeros = lambda: jnp.zeros(count, jnp.int32)  # not shared, because the step donates its arguments
  sums = {name: jnp.zeros(count) for name in (*METRICS, "steps")}
  tuned, best = jax.tree.map(jnp.copy, states.tuned), jnp.full(count, jnp.inf)
  return Progress(states, sums | {"diverged": zeros()}, tuned, best, zeros(), zeros(), zeros())


def make_step(program: Program, chunk: int, patience: int | None = None) -> Callable:
  """Returns ((state, sums, stale), base, batch, axis=None) -> the same three after one step.

  Trials that have been `stale` for `patience` evaluations only count the step.

  Args:
    chunk: number of trials that one vmap computes together.
  """

  def one_trial(carry, base, batch, axis):
    state, sums, stale = carry

    def train():
      after, metrics = update(program, state, base, batch, axis)
      new = {name: sums[name] + metrics[name] for name in METRICS}
      diverged = _first(sums["diverged"], ~metrics["finite"], after.step)
      return after, new | {"steps": sums["steps"] + 1, "diverged": diverged}, stale

    skip = lambda: (state._replace(step=state.step + 1), sums, stale)
    return train() if patience is None else jax.lax.cond(stale < patience, train, skip)

  mapped = lambda axis: tree.over_trials(partial(one_trial, axis=axis), chunk)
  return lambda trials, base, batch, axis=None: mapped(axis)(trials, base, batch)


def _first(before: Array, now: Array, step: Array | int) -> Array:
  """Returns the first step at which a condition held: `before`, or this one; 0 stands for never."""
  return jnp.where((before == 0) & now, step, before)


def intervals(options: TrainOptions) -> tuple[int, int]:
  """Returns the steps between two evaluations, and between two checkpoints."""
  eval_every = options.eval_every or max(options.steps // 10, 1)
  return eval_every, options.checkpoint_every or eval_every


class Group(NamedTuple):
  """Holds what the loop needs of a group of trials.

  Attributes:
    options: the `train` section.
    step: what `make_step` returns, compiled.
    base: the frozen weights.
    batch: (number of a step) -> its batch (E, A, B, ...), on the devices.
    validate: (overlays) -> each trial's metrics on its validation split; None without a split.
    keep_from: the first step whose weights may be kept; evaluations before it are only logged.
    logs: writes each trial's metrics.jsonl.
    save: (steps done, progress) -> None; writes a checkpoint.
  """

  options: TrainOptions
  step: Callable
  base: PyTree
  batch: Callable[[int], dict]
  validate: Callable[[peft.Overlay], list[dict]] | None
  keep_from: int
  logs: Any
  save: Callable[[int, Progress], None]


def run(group: Group, progress: Progress) -> Progress:
  """Trains a group from its next step to its last one, and validates, logs and saves meanwhile.

  It ends early once the patience of every trial has ended. A step's batch is put on the devices
  while they take the step before it.

  Raises:
    SystemExit: after SIGTERM, once the current step is done and saved.
  """
  options = group.options
  eval_every, checkpoint_every = intervals(options)
  first = int(hosts.fetch(progress.state.step)[0])
  bar = tqdm(total=options.steps, initial=first, desc="training", unit="step", disable=hosts.bars())
  batch, over = group.batch(min(first, options.steps - 1)), _over(options, progress)
  with checkpoint.interrupts() as interrupted, bar:
    for done in range(first + 1, options.steps + 1):
      if over:
        break
      carry = (progress.state, progress.sums, progress.stale)
      state, sums, stale = group.step(carry, group.base, batch)
      progress = progress._replace(state=state, sums=sums, stale=stale)
      tokens, last = np.prod(batch["tokens"].shape), done == options.steps
      batch = batch if last else group.batch(done)
      if done % options.log_every == 0 or last:
        progress = _log(group, progress, done, bar, tokens)
      if group.validate is not None and (done % eval_every == 0 or last):
        overlays = peft.Overlay(progress.state.tuned, progress.state.hyper)
        progress = _keep_best(group, progress, done, group.validate(overlays))
        over = _over(options, progress)
      bar.update()
      stop = interrupted(done)
      if done % checkpoint_every == 0 or last or stop or over:
        group.save(done, progress)
      if stop:
        raise SystemExit(143)
  return progress


def _over(options: TrainOptions, progress: Progress) -> bool:
  """Says whether the patience of every trial has ended."""
  patience = options.patience
  return patience is not None and bool((hosts.fetch(progress.stale) >= patience).all())


def make_batch(
  splits: Sequence[data.Split],
  seeds: Sequence[int],
  step: int,
  options: TrainOptions,
  trials: slice = slice(None),
  rows: slice = slice(None),
) -> dict[str, np.ndarray]:
  """Returns every trial's batch of a step, stacked to (E, A, B, ...) with B examples in a part.

  Args:
    trials, rows: make this part of E and of B alone.
  """
  keys = [(id(split), seed) for split, seed in zip(splits, seeds, strict=True)]
  distinct = dict(zip(keys[trials], splits[trials], strict=True))
  draws_AB = np.arange(options.batch_size).reshape(options.accumulate, -1)[:, rows]
  batches = {
    key: data.batch(split, key[1], step, options.batch_size, draws_AB.ravel())
    for key, split in distinct.items()
  }
  fold = lambda x: x.reshape(*draws_AB.shape, *x.shape[1:])
  names = batches[keys[trials][0]]
  return {name: np.stack([fold(batches[key][name]) for key in keys[trials]]) for name in names}


def _log(group: Group, progress: Progress, step: int, bar: tqdm, tokens: int) -> Progress:
  """Writes the means of the metrics since the last log line, and sets their sums to zero.

  Prints a warning for each trial that has diverged since then.

  Args:
    tokens: number of tokens in a step, padding included, for the rate that the bar shows.
  """
  sums = hosts.fetch(progress.sums)
  means = {name: sums[name] / np.maximum(sums["steps"], 1) for name in METRICS}
  rows = [
    dict(
      step=step, train_loss=float(loss), train_accuracy=100 * float(accuracy), grad_norm=float(norm)
    )
    for loss, accuracy, norm in zip(*means.values(), strict=True)
  ]
  group.logs.write(rows, active=sums["steps"] > 0)
  rate = (bar.format_dict["rate"] or 0) * tokens
  bar.set_postfix_str(f"loss {np.mean(means['loss']):.3f}, {rate:,.0f} tokens/s")
  for e in np.flatnonzero(sums["diverged"] > step - sums["steps"]):
    at = sums["diverged"][e]
    tqdm.write(f"trial {e + 1} diverged: its loss, gradient or weights are not finite at step {at}")
  fresh = {name: jnp.zeros_like(x) for name, x in progress.sums.items() if name != "diverged"}
  return progress._replace(sums=progress.sums | fresh)


def _keep_best(group: Group, progress: Progress, step: int, metrics: list[dict]) -> Progress:
  """Logs an evaluation, keeps the weights of trials that improved, and counts for the others."""
  patience, keep_from = group.options.patience, group.keep_from
  active = None if patience is None else hosts.fetch(progress.stale) < patience
  group.logs.write([{"step": step, **values} for values in metrics], active)
  loss = np.asarray([values["validation_loss"] for values in metrics], np.float32)
  after = _updated(progress, loss, step, keep_from, patience or -1)
  if patience is None:
    stale, diverged = hosts.fetch((after.stale, after.sums["diverged"]))
    _warn(stale, diverged > 0, progress, step, loss)
  return after


@jax.jit
def _updated(progress: Progress, loss: Array, step: int, keep_from: int, patience: int) -> Progress:
  """Returns the progress after an evaluation with these losses (E,); patience -1 is no limit."""
  better = (loss < progress.best) & (step >= keep_from)
  stale = jnp.where(better | (step < keep_from), 0, progress.stale + 1)
  column = lambda x: better.reshape(-1, *[1] * (x.ndim - 1))
  choose = lambda new, old: jax.tree.map(lambda x, y: jnp.where(column(x), x, y), new, old)
  return progress._replace(
    sums=progress.sums | {"diverged": _first(progress.sums["diverged"], ~jnp.isfinite(loss), step)},
    tuned=choose(progress.state.tuned, progress.tuned),
    best=choose(loss, progress.best),
    best_step=jnp.where(better, step, progress.best_step),
    stale=stale,
    stopped=_first(progress.stopped, stale == patience, step),
  )


def _warn(
  stale: np.ndarray, diverged: np.ndarray, progress: Progress, step: int, loss: np.ndarray
) -> None:
  """Prints a warning for trials whose third evaluation in a row was not better than their best."""
  for e in np.flatnonzero((stale == 3) & ~diverged):
    best_step, best = hosts.fetch((progress.best_step, progress.best))
    tqdm.write(
      f"step {step}: the validation loss of trial {e + 1} has not fallen since step "
      f"{int(best_step[e])} ({float(best[e]):.4g}, now {float(loss[e]):.4g}): it "
      "overfits. train.patience would stop it; regularize, or a smaller method, may help"
    )
