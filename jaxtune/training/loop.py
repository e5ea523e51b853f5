"""The training loop: a group of trials in one compiled program. A single run is a group of one."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from jaxtune import data, sharding
from jaxtune.evaluation import judge
from jaxtune.training import checkpoint
from jaxtune.training import step as update
from jaxtune.training.options import TrainOptions

RISEN = 3  # evaluations without a better validation loss that are called overfitting


class Progress(NamedTuple):
  """A group's state between two steps: all that a checkpoint holds.

  Attributes:
    state: update.State, stacked over trials.
    sums: of the metrics since the last log line; and "diverged", the first step at which a loss,
      a gradient or a weight was not finite, 0 for none.
    tuned: the weights with the best validation loss so far.
    best: that loss, (E,); best_step: its step; stale: evaluations since.
    stopped: the step at which patience was over, (E,); 0 for not yet.
  """

  state: Any
  sums: Any
  tuned: Any
  best: Any
  best_step: Any
  stale: Any
  stopped: Any


def begin(states: update.State, options: TrainOptions) -> Progress:
  count = states.step.shape[0]
  zeros = lambda: jnp.zeros(count, jnp.int32)  # each its own: the step donates its arguments
  sums = {name: jnp.zeros(count) for name in ("loss", "accuracy", "grad_norm", "steps")}
  tuned, never = jax.tree.map(jnp.copy, states.tuned), jnp.full(count, jnp.inf)
  return Progress(states, sums | {"diverged": zeros()}, tuned, never, zeros(), zeros(), zeros())


def steps(program, chunk, patience, trial, base, batch, axis=None):
  """Takes one step of every trial that has not stopped; `trial` is (state, sums, stale)."""

  def one(carry, base, batch):
    state, sums, stale = carry

    def go():
      after, metrics = update.update(program, state, base, batch, axis)
      new = {name: sums[name] + metrics[name] for name in ("loss", "accuracy", "grad_norm")}
      lost = _first(sums["diverged"], ~metrics["finite"], after.step)
      return after, new | {"steps": sums["steps"] + 1, "diverged": lost}, stale

    stopped = lambda: (state._replace(step=state.step + 1), sums, stale)
    return go() if patience is None else jax.lax.cond(stale < patience, go, stopped)

  return sharding.over(one, chunk)(trial, base, batch)


def _first(before, now, step):
  """Keeps the step at which something was first so; 0 is never."""
  return jnp.where((before == 0) & now, step, before)


def intervals(options: TrainOptions) -> tuple[int, int]:
  """Returns the steps between two evaluations, and between two checkpoints."""
  eval_every = options.eval_every or max(options.steps // 10, 1)
  return eval_every, options.checkpoint_every or eval_every


def _loop(configs, options, step, validate, base, progress, datasets, saved, logs, parallel, clock):
  """Runs to the last step; saves, evaluates and logs on the way."""
  eval_every, checkpoint_every = intervals(options)
  first, stop = int(progress.state.step[0]), checkpoint.Interrupt()
  bar = tqdm(total=options.steps, initial=first, desc="training", unit="step", disable=None)
  with stop, bar, logs:
    for i in range(first, options.steps):
      batch = parallel.put_batch(make_batch(configs, [d.train for d in datasets], i, options))
      state, sums, stale = step((progress.state, progress.sums, progress.stale), base, batch)
      progress, done = progress._replace(state=state, sums=sums, stale=stale), i + 1
      last = done == options.steps
      if done % options.log_every == 0 or last:
        progress = _log(progress, done, logs, bar, options, batch)
      if datasets[0].validation is not None and (done % eval_every == 0 or last):
        progress = validate(progress, done, logs)
      bar.update()
      over = options.patience is not None and bool((progress.stale >= options.patience).all())
      if done % checkpoint_every == 0 or last or stop.asked or over:
        saved.save(done, progress, clock())
      if stop.asked:
        raise SystemExit(143)
      if over:
        break
  return progress


def make_batch(
  configs: list[dict], splits: list[data.Split], step: int, options: TrainOptions
) -> dict:
  """Stacks every trial's batch of a step: (E, A, B, ...)."""
  keys = [(id(split), config["seed"]) for split, config in zip(splits, configs, strict=True)]
  chosen = dict(zip(keys, splits, strict=True))
  made = {key: data.batch(split, key[1], step, options.batch_size) for key, split in chosen.items()}
  fold = lambda x: x.reshape(options.accumulate, -1, *x.shape[1:])
  return {name: np.stack([fold(made[key][name]) for key in keys]) for name in made[keys[0]]}


def _log(progress, step, logs, bar, options, batch):
  sums = jax.tree.map(np.asarray, progress.sums)
  steps = np.maximum(sums["steps"], 1)
  rows = [
    {"step": step, "train_loss": float(x), "train_accuracy": 100 * float(y), "grad_norm": float(z)}
    for x, y, z in zip(
      sums["loss"] / steps, sums["accuracy"] / steps, sums["grad_norm"] / steps, strict=True
    )
  ]  # fmt: skip
  logs.write(rows, active=sums["steps"] > 0)
  rate = (bar.format_dict["rate"] or 0) * np.prod(batch["tokens"].shape)
  bar.set_postfix_str(f"loss {np.mean(sums['loss'] / steps):.3f}, {rate:,.0f} tokens/s")
  for e in np.flatnonzero(sums["diverged"] > step - sums["steps"]):
    at = sums["diverged"][e]
    tqdm.write(f"trial {e + 1} diverged: its loss, gradient or weights are not finite at step {at}")
  fresh = {name: jnp.zeros_like(x) for name, x in progress.sums.items() if name != "diverged"}
  return progress._replace(sums=progress.sums | fresh)


def _validate(evaluator, base, datasets, patience, settled, progress, step, logs):
  """Evaluates, and keeps each trial's weights where they are its best.

  Args:
    settled: the first step whose weights may be kept; evaluations before it count for nothing.
  """
  active = None if patience is None else np.asarray(progress.stale) < patience
  pairs = (progress.state.tuned, progress.state.hyper)
  measured = judge.measure(evaluator, pairs, base, [d.validation for d in datasets])
  found = [judge.totals(evaluator.objective.MEASURES, rows, "validation") for rows in measured]
  logs.write([{"step": step, **values} for values in found], active)
  loss = jnp.asarray([values["validation_loss"] for values in found])
  better = (loss < progress.best) & (step >= settled)
  stale = jnp.where(better | (step < settled), 0, progress.stale + 1)
  choose = lambda new, old: jnp.where(better.reshape(-1, *[1] * (new.ndim - 1)), new, old)
  lost = _first(progress.sums["diverged"], ~jnp.isfinite(loss), step)
  if patience is None:
    _warn(np.asarray(stale), np.asarray(lost > 0), progress, step, loss)
  return progress._replace(
    sums=progress.sums | {"diverged": lost},
    tuned=jax.tree.map(choose, progress.state.tuned, progress.tuned),
    best=jnp.where(better, loss, progress.best),
    best_step=jnp.where(better, step, progress.best_step),
    stale=stale,
    stopped=_first(progress.stopped, stale == (patience or -1), step),
  )


def _warn(stale, diverged, progress, step, loss):
  """Says so when a trial's validation loss has risen for the third time in a row."""
  for e in np.flatnonzero((stale == RISEN) & ~diverged):
    tqdm.write(
      f"step {step}: the validation loss of trial {e + 1} has not fallen since step "
      f"{int(progress.best_step[e])} ({float(progress.best[e]):.4g}, now {float(loss[e]):.4g}): it "
      "overfits. train.patience would stop it; regularize, or a smaller method, may help"
    )
