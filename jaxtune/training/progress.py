"""The state of a group of trials between two steps, and how an evaluation changes it."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from jaxtune.training.step import State

METRICS = ("loss", "accuracy", "grad_norm")  # of a step; each log line has their means
COUNTS = ("steps", "diverged")  # kept beside their sums


class Progress(NamedTuple):
  """Holds a group's state between two steps, which a checkpoint saves.

  Attributes:
    state: `step.State`, stacked over the N trials.
    sums: {name: (N,)}: sums of METRICS and the number of "steps" with a target since the last log
      line, and "diverged", the first step at which a loss, gradient or weight was not finite, or 0.
    tuned: the trained weights with the best validation loss so far.
    best, best_step: that loss and its step, (N,).
    stale: number of evaluations since then, (N,).
    stopped: the step at which the patience ended, (N,); 0 if it has not.
    exited: the step at which a trial left early, (N,); 0 if it has not.
    losses: (N, V), the validation losses of the evaluations that an early exit compares, infinite
      where a trial diverged; NaN for those to come, and where nothing could be judged. V is 1
      without a rule for it.
  """

  state: State
  sums: dict[str, Array]
  tuned: PyTree
  best: Array
  best_step: Array
  stale: Array
  stopped: Array
  exited: Array
  losses: Array


@partial(jax.jit, static_argnums=(1, 2), donate_argnums=0)
def begin(states: State, compared: int = 1, logged: tuple[str, ...] = ()) -> Progress:
  """Returns the progress of a group before its first step.

  Args:
    states: donated, so that the weights and moments are on the devices once.
    compared: V, the number of evaluations that an early exit compares, at least 1.
    logged: of the program.
  """
  count = states.step.shape[0]
  zeros = lambda: jnp.zeros(count, jnp.int32)  # not shared, because the step donates its arguments
  sums = {name: jnp.zeros(count) for name in (*METRICS, *logged, "steps")} | {"diverged": zeros()}
  tuned, best = jax.tree.map(jnp.copy, states.tuned), jnp.full(count, jnp.inf)
  losses = jnp.full((count, compared), jnp.nan)
  return Progress(states, sums, tuned, best, zeros(), zeros(), zeros(), zeros(), losses)


def first(before: Array, now: Array, step: Array | int) -> Array:
  """Returns the first step at which a condition held: `before`, or this one; 0 stands for never."""
  return jnp.where((before == 0) & now, step, before)


class Evaluation(NamedTuple):
  """What an evaluation has found; arrays of all N trials of a group.

  Attributes:
    due: mask of the trials that were judged; the entries of others are meaningless.
    loss: their validation losses.
    steps: updates done.
    number: the number of the evaluation, from 0.
  """

  due: Array
  loss: Array
  steps: Array
  number: Array


@partial(jax.jit, donate_argnums=0)
def evaluated(progress: Progress, found: Evaluation, keep_from: int, patience: int) -> Progress:
  """Returns the progress after an evaluation.

  Args:
    progress: donated, as by a step.
    keep_from: the first step whose weights may be kept.
    patience: -1 for no limit.
  """
  due, loss, steps, number = found
  better = due & (loss < progress.best) & (steps >= keep_from)
  fresh = better | (steps < keep_from)
  stale = jnp.where(due, jnp.where(fresh, 0, progress.stale + 1), progress.stale)
  column = lambda x: better.reshape(-1, *[1] * (x.ndim - 1))
  choose = lambda new, old: jax.tree.map(lambda x, y: jnp.where(column(x), x, y), new, old)
  lost = due & ~jnp.isfinite(loss)
  at = due[:, None] & (jnp.arange(progress.losses.shape[1])[None] == number[:, None])
  known = jnp.where(lost, jnp.inf, loss)
  return progress._replace(
    sums=progress.sums | {"diverged": first(progress.sums["diverged"], lost, steps)},
    tuned=choose(progress.state.tuned, progress.tuned),
    best=choose(loss, progress.best),
    best_step=jnp.where(better, steps, progress.best_step),
    stale=stale,
    stopped=first(progress.stopped, due & (stale == patience), steps),
    losses=jnp.where(at, known[:, None], progress.losses),
  )
