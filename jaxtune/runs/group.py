"""Trains a group of trials in one compiled program, judges them and writes their results."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxtune import data, hosts, peft, sharding, tree
from jaxtune.evaluation import compare, judge
from jaxtune.runs import costs, folder, identity, programs, rollouts
from jaxtune.runs.first_state import first_state
from jaxtune.runs.trial import Trial
from jaxtune.training import checkpoint, loop, turns
from jaxtune.training.options import SearchOptions, TrainOptions
from jaxtune.training.progress import Progress, begin
from jaxtune.training.step import Program, State


def train(
  trials: Sequence[Trial],
  folders: Sequence[Path],
  untuned: Sequence[compare.Untuned],
  checkpoints: Path,
  chunk: int = 1,
) -> list[dict]:
  """Trains trials that differ in numbers and data alone; resumes where it stopped.

  Args:
    trials: their data have equal shapes.
    folders: where each trial's result goes.
    untuned: what the untuned model scored on each trial's data.
    checkpoints: folder of the group's checkpoints.
    chunk: trials that each device computes side by side.

  Returns:
    Each trial's result, as in its result.json.
  """
  first, began, versions = trials[0], time.perf_counter(), folder.versions()
  options = TrainOptions(**first.config["train"])
  parallel = sharding.make(options.parallel, options.mesh)
  states, shapes, base = _started(trials, parallel)
  program = programs.of_group(trials, chunk)
  evaluator = programs.make_evaluator(first, parallel, chunk)
  rule, places = turns_of(trials, options)
  with checkpoint.Checkpoints(checkpoints, identity.of(trials)) as saved:
    start = partial(begin, states, rule.rungs[-1] if rule else 1, program.logged)
    progress, before = saved.restore(parallel.put(start(), "trial"), identity.as_now)
    steps, places = _resumed(progress, places)
    clock = lambda: before + time.perf_counter() - began
    folder.begin(folders, [t.config for t in trials])
    group = loop.Group(
      options,
      parallel.compile(loop.make_step(program, chunk, bool(places), parallel.mesh), donate=True),
      base,
      batches(trials, program, base, parallel, chunk),
      _validation(evaluator, base, trials, chunk * parallel.trial_shards),
      _keep_from(trials[0], options),
      folder.Logs(folders, steps),
      lambda updates, progress: saved.save(updates, progress, clock()),
      *(places, chunk, parallel.trial_shards, rule, program.updates),
    )
    progress = loop.run(group, progress)
  overlays, judged = _judged(evaluator, base, trials, progress, untuned)
  overlays, counts = hosts.fetch((overlays, progress._replace(state=None, tuned=None)))
  seconds = round(clock() / len(trials), 2)
  shared = {"seconds": seconds, "trials_in_program": len(trials), "versions": versions}
  known = [shared | step_counts(counts, options, e, j.metrics) for e, j in enumerate(judged)]
  four = zip(judged, untuned, trials, _spent(trials, shapes, group, progress, known), strict=True)
  facts = [compare.record(one, base, evaluator, t.dataset) | more for one, base, t, more in four]
  return _write(trials, folders, shapes, overlays, judged, facts)


def _spent(
  trials: Sequence[Trial],
  shapes: Sequence[State],
  group: loop.Group,
  progress: Progress,
  known: Sequence[dict],
) -> list[dict]:
  """Adds to what is known of each trial, as its count of updates, what it has cost; see `costs`."""
  spent = []
  counters = costs.counters(trials, shapes, group.base)
  for trial, flops, one in zip(trials, counters, known, strict=True):
    spent.append(one | costs.of_training(trial, flops, one["stopped_at"]))
  if group.options.parallel == "pmap":  # whose memory jax does not tell
    return spent
  chosen, turns = np.arange(group.places or len(trials)), group.places is not None
  shared = (group.base, chosen) if turns else group.base
  if programs.rolls_out(trials[0]):  # no answers are drawn for this
    parallel = sharding.make(group.options.parallel, group.options.mesh)
    batch = rollouts.imagined(trials, len(chosen), parallel)
  else:
    batch = group.batch(chosen, np.zeros_like(chosen), progress.state)
  arguments = (progress.state, progress.sums), shared, batch
  memory = costs.memory(group.step, arguments, shapes, group.chunk, group.shards, turns)
  return [one | {"memory": taken} for one, taken in zip(spent, memory, strict=True)]


def _write(
  trials: Sequence[Trial],
  folders: Sequence[Path],
  shapes: Sequence[State],
  overlays: peft.Overlay,
  judged: Sequence[judge.Judged],
  facts: Sequence[dict],
) -> list[dict]:
  """Writes each trial's weights, predictions and result; returns the results.

  Args:
    shapes: of each trial's state without the padding of its group.
    overlays: those that the trials keep, stacked.
    facts: what else each result says.
  """
  results = []
  for e, (trial, one) in enumerate(zip(trials, judged, strict=True)):
    own = peft.Overlay(shapes[e].tuned, shapes[e].hyper)
    overlay = tree.crop(jax.tree.map(lambda x, e=e: x[e], overlays), own)
    results.append(folder.finish(folders[e], trial, overlay, one, facts[e]))
  return results


def turns_of(
  trials: Sequence[Trial], options: TrainOptions
) -> tuple[turns.Rule | None, int | None]:
  """Returns the rule by which trials leave early, and how many are trained side by side.

  The second is None where all take every step.
  """
  search = SearchOptions(**trials[0].config["search"])
  written = lambda config: json.dumps(config | {"seed": 0}, sort_keys=True, default=str)
  configurations = [written(trial.config) for trial in trials]
  rule = turns.rule(search, options, [configurations.index(one) for one in configurations])
  places = min(search.places or len(trials), len(trials))
  alike = rule is None and options.patience is None and places == len(trials)
  return rule, None if alike or len(trials) == 1 else places


def _resumed(progress: Progress, places: int | None) -> tuple[list[int], int | None]:
  """Returns the step of each trial, and how many are trained side by side.

  Where they are at several steps, as some had waited for a place, they take turns to the end.
  """
  steps = hosts.fetch(progress.state.step).tolist()
  return steps, places or (len(steps) if len({*steps}) > 1 else None)


def _started(
  trials: Sequence[Trial], parallel: sharding.Parallel
) -> tuple[State, list[State], PyTree]:
  """Returns the trials' first states, stacked; the shapes of each alone; the frozen base."""
  states, bases = zip(*map(first_state, trials), strict=True)
  shapes = [jax.eval_shape(lambda s=s: s) for s in states]
  return tree.stack(list(states)), shapes, parallel.put(bases[0])


def batches(
  trials: Sequence[Trial], program: Program, base: PyTree, parallel: sharding.Parallel, chunk: int
) -> Callable[[np.ndarray, np.ndarray, State], dict]:
  """Returns (numbers of trials, step of each, state) -> their batch, on the devices."""
  options = TrainOptions(**trials[0].config["train"])
  if programs.rolls_out(trials[0]):
    return rollouts.batches(rollouts.begin(trials, program, base, parallel, chunk), parallel)

  def batch(chosen: np.ndarray, steps: np.ndarray, _: State) -> dict:
    splits = [trials[e].dataset.train for e in chosen]
    seeds = [trials[e].config["seed"] for e in chosen]
    shape = len(chosen), options.accumulate, options.batch_size // options.accumulate
    make = partial(loop.make_batch, splits, seeds, steps.tolist(), options)
    return parallel.spread(shape, make)

  return batch


def _keep_from(trial: Trial, options: TrainOptions) -> int:
  """Returns the first step whose weights a trial may keep."""
  return max((method.keep_from(options.steps) for method in trial.methods), default=0)


def _validation(
  evaluator: judge.Evaluator, base: PyTree, trials: Sequence[Trial], together: int
) -> Callable | None:
  """Returns (overlays, numbers of trials) -> their metrics on validation; None without a split.

  All are judged by one program, and fewer of them `together` at a time, by another.
  """
  splits, measures = [t.dataset.validation for t in trials], evaluator.measures
  seeds = [t.config["seed"] for t in trials]
  if splits[0] is None:
    return None

  def validate(overlays: peft.Overlay, chosen: np.ndarray) -> list[dict]:
    if len(chosen) == len(trials):
      found = judge.measure(evaluator, overlays, base, splits, seeds)
    else:
      found = []
      for part in np.split(chosen, range(together, len(chosen), together)):
        full = np.pad(part, (0, together - len(part)), mode="edge")
        some = jax.tree.map(lambda x, full=full: x[full], overlays)
        own = [splits[e] for e in full], [seeds[e] for e in full]
        found += judge.measure(evaluator, some, base, *own)[: len(part)]
    answered = lambda rows: {"answers": rows["shown"]} if "shown" in rows else {}
    return [judge.summarise(measures, rows, "validation") | answered(rows) for rows in found]

  return validate


def _judged(
  evaluator: judge.Evaluator,
  base: PyTree,
  trials: Sequence[Trial],
  progress: Progress,
  untuned: Sequence[compare.Untuned],
) -> tuple[peft.Overlay, list[judge.Judged]]:
  """Returns the overlays that the trials keep, stacked, and what each of them scores.

  Of trials that left early that is their last validation loss.
  """
  options = TrainOptions(**trials[0].config["train"])
  best = options.keep == "best" and trials[0].dataset.validation is not None
  ended = (progress.exited, progress.losses, progress.best_step, progress.sums["diverged"])
  exited, losses, best_step, lost = hosts.fetch(ended)
  tuned = progress.tuned if best else progress.state.tuned
  none = (best_step == 0) & (lost == 0)  # left before a step may be kept, or was never judged
  if best and none.any():
    of_trial = lambda x: none.reshape(-1, *[1] * (x.ndim - 1))
    tuned = jax.tree.map(lambda b, now: jnp.where(of_trial(b), now, b), tuned, progress.state.tuned)
  overlays = peft.Overlay(tuned, progress.state.hyper)
  last = lambda row: {"validation_loss": float(row[~np.isnan(row)][-1])}
  judged = [judge.Judged(last(losses[e]) if exited[e] else {}) for e in range(len(trials))]
  left = np.flatnonzero(exited == 0)
  kept = overlays if left.size == len(trials) else jax.tree.map(lambda x: x[left], overlays)
  datasets, seeds = zip(*((trials[e].dataset, trials[e].config["seed"]) for e in left), strict=True)
  scores = judge.judge_splits(evaluator, kept, base, datasets, seeds)
  fits = train_metrics(evaluator, kept, base, datasets, seeds)
  for e, fit, score in zip(left, fits, scores, strict=True):
    before = untuned[e].base.predictions
    judged[e] = score._replace(metrics=fit | score.metrics, untuned=before)
  return overlays, judged


def step_counts(progress: Progress, options: TrainOptions, e: int, metrics: dict) -> dict:
  """Gathers the counts of updates that a trial's result has; None stands for never."""
  exited = int(progress.exited[e])
  stopped = int(progress.stopped[e]) or exited or options.steps
  lost = None if np.isfinite([*metrics.values()]).all() else stopped
  return {
    "steps": options.steps,
    "stopped_at": stopped,
    "exited_at": exited or None,
    "best_step": int(progress.best_step[e]),
    "diverged_at": int(progress.sums["diverged"][e]) or lost,
  }


def train_metrics(
  evaluator: judge.Evaluator,
  overlays: peft.Overlay,
  base: PyTree,
  datasets: Sequence[data.Data],
  seeds: Sequence[int],
) -> list[dict]:
  """Measures trials on as many training examples as they are judged on: {"train_loss": ...}.

  Unlike the losses that training logs, this one is measured after the last step, without dropout
  and label smoothing. The loss of validation or test is larger by what a trial has learnt by heart.
  """
  held = [dataset.validation or dataset.test for dataset in datasets]
  if held[0] is None or any(not isinstance(dataset.train, data.Split) for dataset in datasets):
    return [{} for _ in datasets]
  chosen = {
    id(dataset.train): data.sample(dataset.train, split.examples)
    for dataset, split in zip(datasets, held, strict=True)
  }
  rows = judge.measure(evaluator, overlays, base, [chosen[id(d.train)] for d in datasets], seeds)
  return [judge.summarise(evaluator.measures, one, "train") for one in rows]
