"""The training loop: a group of trials in one compiled program. A single run is a group of one."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from jaxtune import checkpoint, data, programs, runs, sharding, tree, update
from jaxtune.evaluators import compare, evaluate
from jaxtune.schema import Count
from jaxtune.setup import Setup
from jaxtune.sweeps import trials

RISEN = 3  # evaluations without a better validation loss that are called overfitting


class Options(NamedTuple):
  """The `train` section of a config.

  Attributes:
    steps: updates.
    batch_size: examples in an update.
    accumulate: parts that a batch is computed in, one after another.
    log_every: steps between two lines of metrics.jsonl.
    eval_every: steps between two evaluations on the validation split; None for ten in all.
    patience: stop a trial after so many evaluations without a better validation loss.
    keep: "best" (by validation loss) or "last": which weights are the result. The weights of a
      method with a budget (AdaLoRA) are candidates once it is reached.
    checkpoint_every: steps between two checkpoints; None for after every evaluation.
    chunk: trials side by side in one vmap; None for `preflight.choose_chunk`'s choice.
    parallel: "jit" or "pmap".
    mesh: sizes of the axes trial, data, fsdp and tensor, for "jit".
  """

  steps: Count = 300
  batch_size: Count = 8
  accumulate: Count = 1
  log_every: Count = 10
  eval_every: Count | None = None
  patience: Count | None = None
  keep: Literal["best", "last"] = "best"
  checkpoint_every: Count | None = None
  chunk: Count | None = None
  parallel: sharding.Kind = "jit"
  mesh: sharding.Sizes | None = None


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


def run(
  configs: list[dict],
  folders: list[Path],
  setups: list[Setup],
  bases: list[compare.Untuned],
  checkpoints: Path,
  chunk: int = 1,
) -> list[dict]:
  """Trains a group of trials whose configs differ in numbers and data; resumes where it stopped.

  Args:
    configs: completed configs, one a trial.
    folders: where each trial's result goes.
    setups: of each trial; they differ in the data alone, whose shapes are equal.
    bases: what the untuned model scored on each trial's data.
    checkpoints: folder of the group's checkpoints.
    chunk: trials side by side in one vmap.

  Returns:
    Each trial's result, as in its result.json.
  """
  options, began, setup = Options(**configs[0]["train"]), time.perf_counter(), setups[0]
  datasets = [one.dataset for one in setups]
  parallel = sharding.make(options.parallel, options.mesh)
  started = [programs.start(config, setup) for config in configs]
  shapes = [jax.eval_shape(lambda s=s: (s.tuned, s.hyper)) for s, _ in started]
  base = parallel.put_shared(started[0][1])
  states = tree.stack([state for state, _ in started])
  del started
  program = programs.make_program(configs[0], setup, programs.drops(configs))
  evaluator = programs.make_evaluator(configs[0], program, parallel, chunk, setup)
  step = parallel.compile(partial(steps, program, chunk, options.patience), donate=True)
  identities = [data.identity(dataset.report) for dataset in datasets]
  record = {"config": configs, "base": setup.fingerprint, "data set": identities}
  with checkpoint.Checkpoints(checkpoints, record) as saved:
    progress = parallel.put_trials(begin(states, options))
    progress, before = saved.restore(progress) or (progress, 0.0)
    clock = lambda: before + time.perf_counter() - began
    runs.begin(folders, configs)
    logs = runs.Logs(folders, int(progress.state.step[0]))
    validate = partial(
      _validate, evaluator, base, datasets, options.patience, _settled(program, options.steps)
    )
    progress = _loop(
      configs, options, step, validate, base, progress, datasets, saved, logs, parallel, clock
    )
  final = progress.tuned if _keeps_best(options, setup) else progress.state.tuned
  pairs = (final, progress.state.hyper)
  judged = evaluate.test(evaluator, pairs, base, datasets, [c["seed"] for c in configs])
  fits = fitted(evaluator, pairs, base, datasets)
  judged = [one._replace(metrics=fit | one.metrics) for one, fit in zip(judged, fits, strict=True)]
  own = [tree.crop(jax.tree.map(lambda x, e=e: x[e], pairs), shapes[e]) for e in range(len(shapes))]
  return [
    runs.finish(
      folders[e], configs[e], setups[e], tuned=own[e][0], hyper=own[e][1],
      judged=judged[e], untuned=bases[e], evaluator=evaluator,
      steps=_steps(progress, options, e, judged[e].metrics),
      seconds=clock() / len(configs), group=len(configs),
    )
    for e in range(len(configs))
  ]  # fmt: skip


def _steps(progress: Progress, options: Options, e: int, metrics: dict) -> dict[str, int | None]:
  """Gathers the counts of updates that a trial's result has; "diverged_at" is None for never."""
  stopped = int(progress.stopped[e]) or options.steps
  lost = None if np.isfinite([*metrics.values()]).all() else stopped
  return {
    "steps": options.steps,
    "stopped_at": stopped,
    "best_step": int(progress.best_step[e]),
    "diverged_at": int(progress.sums["diverged"][e]) or lost,
  }


def fitted(evaluator: evaluate.Evaluator, pairs, base, datasets: list[data.Data]) -> list[dict]:
  """Measures trials on as many training examples as they are judged on: {"train_loss": ...}.

  Unlike the losses of training itself, without dropout and label smoothing and after the last step:
  the distance to the loss of validation or test is what a trial has learnt by heart.
  """
  held = [dataset.validation or dataset.test for dataset in datasets]
  if held[0] is None or any(not isinstance(dataset.train, data.Split) for dataset in datasets):
    return [{} for _ in datasets]
  chosen = {
    id(dataset.train): data.sample(dataset.train, split.examples)
    for dataset, split in zip(datasets, held, strict=True)
  }
  rows = evaluate.measure(evaluator, pairs, base, [chosen[id(d.train)] for d in datasets])
  return [evaluate.totals(evaluator.objective.MEASURES, one, "train") for one in rows]


def _settled(program: update.Program, steps: int) -> int:
  """Returns the step from which on weights may be kept: that at which budgets are reached."""
  return max((m.settled(steps) for m in program.methods if m.settled is not None), default=0)


def _keeps_best(options: Options, setup: Setup) -> bool:
  return options.keep == "best" and setup.dataset.validation is not None


def begin(states: update.State, options: Options) -> Progress:
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

  return trials.over(one, chunk)(trial, base, batch)


def _first(before, now, step):
  """Keeps the step at which something was first so; 0 is never."""
  return jnp.where((before == 0) & now, step, before)


def intervals(options: Options) -> tuple[int, int]:
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


def make_batch(configs: list[dict], splits: list[data.Split], step: int, options: Options) -> dict:
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
  measured = evaluate.measure(evaluator, pairs, base, [d.validation for d in datasets])
  found = [evaluate.totals(evaluator.objective.MEASURES, rows, "validation") for rows in measured]
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
