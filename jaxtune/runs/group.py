"""Trains a group of trials in one compiled program, judges them and writes their results."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import jax
import numpy as np
from jaxtyping import PyTree

from jaxtune import config, data, hosts, peft, sharding, tree
from jaxtune.evaluation import compare, judge
from jaxtune.runs import folder, programs
from jaxtune.runs.first_state import first_state
from jaxtune.runs.trial import Trial
from jaxtune.training import checkpoint, loop
from jaxtune.training.options import TrainOptions
from jaxtune.training.step import State


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
    chunk: trials side by side in one vmap.

  Returns:
    Each trial's result, as in its result.json.
  """
  first, began, versions = trials[0], time.perf_counter(), folder.versions()
  options = TrainOptions(**first.config["train"])
  parallel = sharding.make(options.parallel, options.mesh)
  states, shapes, base = _started(trials, parallel)
  noise = any(programs.uses_noise(trial.config) for trial in trials)
  program = programs.make_program(first, noise, chunk)
  evaluator = programs.make_evaluator(first, parallel, chunk)
  with checkpoint.Checkpoints(checkpoints, _identity(trials)) as saved:
    progress = parallel.put(loop.begin(states), "trial")
    progress, before = saved.restore(progress) or (progress, 0.0)
    clock = lambda: before + time.perf_counter() - began
    folder.begin(folders, [trial.config for trial in trials])
    group = loop.Group(
      options,
      parallel.compile(loop.make_step(program, chunk, options.patience), donate=True),
      base,
      _batches(trials, options, parallel),
      _validation(evaluator, base, trials),
      max((m.keep_from(options.steps) for m in program.methods), default=0),
      folder.Logs(folders, int(hosts.fetch(progress.state.step)[0])),
      lambda step, progress: saved.save(step, progress, clock()),
    )
    progress = loop.run(group, progress)
  overlays, judged = _judged(evaluator, base, trials, progress, options)
  overlays, counts = hosts.fetch((overlays, progress._replace(state=None, tuned=None)))
  seconds, results = round(clock() / len(trials), 2), []
  for e, trial in enumerate(trials):
    facts = compare.record(judged[e], untuned[e], evaluator, trial.dataset)
    facts |= step_counts(counts, options, e, judged[e].metrics)
    facts |= {"seconds": seconds, "trials_in_program": len(trials), "versions": versions}
    overlay = tree.crop(jax.tree.map(lambda x, e=e: x[e], overlays), shapes[e])
    results.append(folder.finish(folders[e], trial, overlay, judged[e], facts))
  return results


def _started(
  trials: Sequence[Trial], parallel: sharding.Parallel
) -> tuple[State, list[peft.Overlay], PyTree]:
  """Returns the trials' first states, stacked; the shapes of their overlays; the frozen base."""
  states, bases = zip(*map(first_state, trials), strict=True)
  shapes = [jax.eval_shape(lambda s=s: peft.Overlay(s.tuned, s.hyper)) for s in states]
  return tree.stack(list(states)), shapes, parallel.put(bases[0])


def _batches(
  trials: Sequence[Trial], options: TrainOptions, parallel: sharding.Parallel
) -> Callable[[int], dict]:
  """Returns (number of a step) -> its batch, on the devices."""
  splits, seeds = [t.dataset.train for t in trials], [t.config["seed"] for t in trials]
  shape = len(trials), options.accumulate, options.batch_size // options.accumulate
  return lambda step: parallel.spread(shape, partial(loop.make_batch, splits, seeds, step, options))


def check_same(trials: Sequence[Trial]) -> None:
  """Raises UserError unless all processes of a run have the same configs, base and data."""
  for what, value in _identity(trials).items():
    hosts.check_same(what, json.dumps(value, default=str))


def _identity(trials: Sequence[Trial]) -> dict:
  """Returns what a checkpoint must have in common with its group: configs, base and data."""
  return {
    "config": [config.unplaced(trial.config) for trial in trials],
    "base": trials[0].fingerprint,
    "data set": [data.identity(trial.dataset.report) for trial in trials],
  }


def _validation(evaluator: judge.Evaluator, base: PyTree, trials: Sequence[Trial]):
  """Returns (overlays) -> each trial's metrics on its validation split; None without one."""
  splits, measures = [t.dataset.validation for t in trials], evaluator.objective.MEASURES
  if splits[0] is None:
    return None
  return lambda overlays: [
    judge.summarise(measures, rows, "validation")
    for rows in judge.measure(evaluator, overlays, base, splits)
  ]


def _judged(
  evaluator: judge.Evaluator,
  base: PyTree,
  trials: Sequence[Trial],
  progress: loop.Progress,
  options: TrainOptions,
) -> tuple[peft.Overlay, list[judge.Judged]]:
  """Returns the overlays that the trials keep, stacked, and what each of them scores."""
  datasets, seeds = [t.dataset for t in trials], [t.config["seed"] for t in trials]
  best = options.keep == "best" and datasets[0].validation is not None
  overlays = peft.Overlay(progress.tuned if best else progress.state.tuned, progress.state.hyper)
  judged = judge.judge_splits(evaluator, overlays, base, datasets, seeds)
  fits = train_metrics(evaluator, overlays, base, datasets)
  pairs = zip(fits, judged, strict=True)
  return overlays, [scores._replace(metrics=fit | scores.metrics) for fit, scores in pairs]


def step_counts(progress: loop.Progress, options: TrainOptions, e: int, metrics: dict) -> dict:
  """Gathers the counts of updates that a trial's result has; "diverged_at" is None for never."""
  stopped = int(progress.stopped[e]) or options.steps
  lost = None if np.isfinite([*metrics.values()]).all() else stopped
  return {
    "steps": options.steps,
    "stopped_at": stopped,
    "best_step": int(progress.best_step[e]),
    "diverged_at": int(progress.sums["diverged"][e]) or lost,
  }


def train_metrics(
  evaluator: judge.Evaluator, overlays: peft.Overlay, base: PyTree, datasets: list[data.Data]
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
  rows = judge.measure(evaluator, overlays, base, [chosen[id(d.train)] for d in datasets])
  return [judge.summarise(evaluator.objective.MEASURES, one, "train") for one in rows]
