"""Trains a group of trials in one compiled program, judges them and writes their results."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import jax
import numpy as np

from jaxtune import data, sharding, tree
from jaxtune.evaluation import compare, judge
from jaxtune.runs import folder, programs
from jaxtune.runs.trial import Setup
from jaxtune.training import checkpoint, loop
from jaxtune.training import step as update
from jaxtune.training.options import TrainOptions


def train(
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
  options, began, setup = TrainOptions(**configs[0]["train"]), time.perf_counter(), setups[0]
  datasets = [one.dataset for one in setups]
  parallel = sharding.make(options.parallel, options.mesh)
  started = [programs.start(config, setup) for config in configs]
  shapes = [jax.eval_shape(lambda s=s: (s.tuned, s.hyper)) for s, _ in started]
  base = parallel.put_shared(started[0][1])
  states = tree.stack([state for state, _ in started])
  del started
  program = programs.make_program(configs[0], setup, programs.drops(configs))
  evaluator = programs.make_evaluator(configs[0], program, parallel, chunk, setup)
  step = parallel.compile(partial(loop.steps, program, chunk, options.patience), donate=True)
  identities = [data.identity(dataset.report) for dataset in datasets]
  record = {"config": configs, "base": setup.fingerprint, "data set": identities}
  with checkpoint.Checkpoints(checkpoints, record) as saved:
    progress = parallel.put_trials(loop.begin(states, options))
    progress, before = saved.restore(progress) or (progress, 0.0)
    clock = lambda: before + time.perf_counter() - began
    folder.begin(folders, configs)
    logs = folder.Logs(folders, int(progress.state.step[0]))
    validate = partial(
      loop._validate, evaluator, base, datasets, options.patience, _settled(program, options.steps)
    )
    progress = loop._loop(
      configs, options, step, validate, base, progress, datasets, saved, logs, parallel, clock
    )
  final = progress.tuned if _keeps_best(options, setup) else progress.state.tuned
  pairs = (final, progress.state.hyper)
  judged = judge.test(evaluator, pairs, base, datasets, [c["seed"] for c in configs])
  fits = fitted(evaluator, pairs, base, datasets)
  judged = [one._replace(metrics=fit | one.metrics) for one, fit in zip(judged, fits, strict=True)]
  own = [tree.crop(jax.tree.map(lambda x, e=e: x[e], pairs), shapes[e]) for e in range(len(shapes))]
  return [
    folder.finish(
      folders[e], configs[e], setups[e], tuned=own[e][0], hyper=own[e][1],
      judged=judged[e], untuned=bases[e], evaluator=evaluator,
      steps=_steps(progress, options, e, judged[e].metrics),
      seconds=clock() / len(configs), group=len(configs),
    )
    for e in range(len(configs))
  ]  # fmt: skip


def _steps(progress: loop.Progress, options: TrainOptions, e: int, metrics: dict) -> dict:
  """Gathers the counts of updates that a trial's result has; "diverged_at" is None for never."""
  stopped = int(progress.stopped[e]) or options.steps
  lost = None if np.isfinite([*metrics.values()]).all() else stopped
  return {
    "steps": options.steps,
    "stopped_at": stopped,
    "best_step": int(progress.best_step[e]),
    "diverged_at": int(progress.sums["diverged"][e]) or lost,
  }


def fitted(evaluator: judge.Evaluator, pairs, base, datasets: list[data.Data]) -> list[dict]:
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
  rows = judge.measure(evaluator, pairs, base, [chosen[id(d.train)] for d in datasets])
  return [judge.totals(evaluator.objective.MEASURES, one, "train") for one in rows]


def _settled(program: update.Program, steps: int) -> int:
  """Returns the step from which on weights may be kept: that at which budgets are reached."""
  return max((m.settled(steps) for m in program.methods if m.settled is not None), default=0)


def _keeps_best(options: TrainOptions, setup: Setup) -> bool:
  return options.keep == "best" and setup.dataset.validation is not None
