"""Judges a group of trials: measures their losses, and scores their predictions."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree
from tqdm import tqdm

from jaxtune import data, hosts, metrics, peft, sharding, tree
from jaxtune.evaluation import answers, rewards
from jaxtune.evaluation.options import EvaluateOptions
from jaxtune.metrics.kinds import label
from jaxtune.training.step import Program, chooses, informed, judge

SUMS = ("loss", "weight", "correct")  # of each example, whatever the objective


class Evaluator(NamedTuple):
  """Compiled evaluation of overlays that are stacked over trials.

  Attributes:
    rows: (targets) -> (overlays, base, batch (E, 1, B, ...)) -> {"loss": (E, B), ...}; see
      `step.judge` and `Program.targets`.
    complete: (overlays, base, {"tokens", "mask" (E, N, T), "numbers" (E, N), "count", "seed"
      (E,)}) -> ids (E, N, max_new_tokens); see `generate.generate`.
    objective: the objective's module.
    parallel: the layout of the devices.
    options: the `evaluate` section.
    metrics: names of the metrics of predictions.
    tokenizer: the model's.
    stop_tokens: ids that end a completion.
    rewards: by which the model's own answers are judged, in place of losses.
    chooses: whether logits can be computed where a target is alone; see `step.chooses`.
  """

  rows: Callable
  complete: Callable
  objective: Any
  parallel: sharding.Parallel
  options: EvaluateOptions
  metrics: tuple[str, ...]
  tokenizer: Any
  stop_tokens: tuple[int, ...]
  rewards: rewards.Rewards | None = None
  chooses: bool = False

  def targets(self, splits: Sequence[data.Split]) -> int | None:
    """Returns of how many tokens of a row logits are computed; None: of all."""
    return data.most_targets(splits) if self.chooses else None

  @property
  def measures(self) -> tuple[str, ...]:
    """What is measured of a split; see `objectives`."""
    more = () if self.rewards is None else tuple(rewards.labels(list(self.rewards.functions)))
    return (*self.objective.MEASURES, *more)


class Judged(NamedTuple):
  """What one trial scored.

  Attributes:
    metrics: by name, such as test_loss (nats a target), general_perplexity, test_bleu.
    split: the name of the split that the rest is of: test, or validation where there is no test.
    rows: {"loss", "weight", "correct"} and others, each (X,): sums of each example.
    predictions: of its examples, or of some of them; None where nothing is predicted.
    references: of the same examples.
    examples: their numbers in the split.
    units: what is resampled as a whole, as `Split.units` numbers it.
    untuned: what the untuned base predicted of the same examples.
  """

  metrics: dict[str, float]
  split: str = ""
  rows: dict[str, np.ndarray] = {}
  predictions: list | None = None
  references: list | None = None
  examples: Sequence[int] = ()
  units: dict[str, np.ndarray] = {}
  untuned: list | None = None


def make(
  program: Program,
  objective: Any,
  options: EvaluateOptions,
  *,
  parallel: sharding.Parallel,
  chunk: int,
  tokenizer: Any,
  stop_tokens: tuple[int, ...] = (),
  rewards: rewards.Rewards | None = None,
) -> Evaluator:
  """Makes an evaluator; its functions are compiled at the first call with each shape.

  Args:
    objective: the objective's module.
    chunk: trials that each device computes side by side.
  """

  def rows(overlay, base, batch, targets, axis):
    some = program._replace(targets=targets)
    batch = informed(some, overlay, base, batch, axis)
    judged = judge(some, overlay, base, jax.tree.map(lambda x: x[0], batch))
    gather = lambda x: jax.lax.all_gather(x, axis, tiled=True)
    return judged if axis is None else jax.tree.map(gather, judged)

  @functools.cache
  def compiled(targets):
    def grouped(*arguments, axis=None):
      of_trial = partial(rows, targets=targets, axis=axis)
      return tree.over_trials(of_trial, chunk, parallel.mesh)(*arguments)

    return parallel.compile(grouped)

  complete = answers.completer(program, options, stop_tokens, parallel=parallel, chunk=chunk)
  names = metric_names(options, objective)
  return Evaluator(
    compiled, complete, objective, parallel, options, names, tokenizer, stop_tokens, rewards,
    chooses(program.model.config, parallel.mesh.shape if parallel.mesh else {}),
  )  # fmt: skip


def metric_names(options: EvaluateOptions, objective: Any) -> tuple[str, ...]:
  """Returns the names of the metrics that score predictions; none if nothing is predicted."""
  if not options.generate and not hasattr(objective, "decode"):
    return ()
  return objective.METRICS if options.metrics is None else tuple(options.metrics)


def scoring(names: Sequence[str], split: data.Split) -> tuple[str, ...]:
  """Returns the metrics of a split: none of classes where rows of a task have their own choices."""
  left_out = label.OF_CLASSES if split.own_choices else ()
  return tuple(name for name in names if name not in left_out)


def measure(
  evaluator: Evaluator,
  overlays: peft.Overlay,
  base: PyTree,
  splits: Sequence[data.Split],
  seeds: Sequence[int] = (),
) -> list[dict]:
  """Runs every trial over its own split; returns {"loss": (X,), "weight": (X,), ...} of each.

  Where answers are rewarded, the loss is minus the reward of the model's own, which are drawn by
  the trials' `seeds`; see `answers.completions`.
  """
  if evaluator.rewards is not None:
    return answers.rewarded(evaluator, overlays, base, splits, seeds)
  size, parts = evaluator.options.batch_size, evaluator.parallel.batch_shards
  distinct = {id(split): split for split in splits}
  batches = {key: list(data.batches(split, size, parts)) for key, split in distinct.items()}
  walks = [batches[id(split)] for split in splits]
  measured, run = [], evaluator.rows(evaluator.targets(splits))
  for i in tqdm(range(max(map(len, walks))), "judging", leave=False, disable=hosts.bars()):
    batch = stack([walk[min(i, len(walk) - 1)] for walk in walks])
    out = run(overlays, base, evaluator.parallel.put_batch(batch))
    measured.append(jax.tree.map(lambda x: np.asarray(x)[:, :size], out))
  joined = jax.tree.map(lambda *parts: np.concatenate(parts, 1), *measured)
  return [
    {name: x[e, : split.examples] for name, x in joined.items()} for e, split in enumerate(splits)
  ]


def stack(batches: Sequence[dict]) -> dict:
  """Stacks the trials' batches to (E, 1, B, ...), without a copy where all are the same one."""
  first, count = batches[0], len(batches)
  if all(batch is first for batch in batches):
    return {name: np.broadcast_to(x, (count, 1, *x.shape)) for name, x in first.items()}
  return {name: np.stack([batch[name] for batch in batches])[:, None] for name in first}


def summarise(measures: Sequence[str], rows: dict, prefix: str, chosen: Any = slice(None)) -> dict:
  """Returns measures of a split by name, such as {"test_loss": ..., "test_accuracy": ...}.

  Args:
    measures: some of "loss" (nats a target), "perplexity" and "accuracy" (of targets, in %), or
      the names of other sums.
    rows: sums of each example, "loss", "correct", "weight" and others.
    chosen: the examples that count; default all. A measure is left out where none has a weight.
  """
  total = lambda name: float(rows[name][chosen].sum(dtype=np.float64))
  mean = lambda name: total(name) / total(weights_of(name, rows))
  known = {
    "perplexity": lambda: math.exp(loss) if (loss := mean("loss")) < 700 else math.inf,
    "accuracy": lambda: 100 * mean("correct"),
  }
  value = lambda name: known[name]() if name in known else mean(name)
  seen = [name for name in measures if total(weights_of(name, rows))]
  return {f"{prefix}_{name}": value(name) for name in seen}


def weights_of(name: str, rows: dict) -> str:
  """Returns the name of the weights by which a sum is divided: its own, or those of all sums."""
  return f"weight_{name}" if f"weight_{name}" in rows else "weight"


def judge_splits(
  evaluator: Evaluator,
  overlays: peft.Overlay,
  base: PyTree,
  datasets: Sequence[data.Data],
  seeds: Sequence[int] = (),
) -> list[Judged]:
  """Judges every trial on general text, validation and test; predicts on test, or on validation.

  Args:
    seeds: one for each trial, by which text is drawn; default 0, as for the untuned base.
  """
  judgements = [Judged({}) for _ in datasets]
  for name in ("general", "validation", "test"):
    splits = [getattr(dataset, name) for dataset in datasets]
    if splits[0] is None:
      continue
    measured = measure(evaluator, overlays, base, splits, seeds)
    for e, (rows, split) in enumerate(zip(measured, splits, strict=True)):
      scores = by_task(partial(summarise, evaluator.measures, rows), split.tasks, name)
      judgements[e] = Judged(judgements[e].metrics | scores, name, rows, units=split.units())
  if judgements[0].split not in ("validation", "test") or not evaluator.metrics:
    return judgements
  return _predicted(evaluator, overlays, base, datasets, judgements, seeds)


def _predicted(evaluator, overlays, base, datasets, judgements: list[Judged], seeds):
  """Adds to each judgement of a split its predictions and their metrics."""
  name, objective = judgements[0].split, evaluator.objective
  splits = [getattr(dataset, name) for dataset in datasets]
  predicts = hasattr(objective, "decode")
  limit = None if predicts else evaluator.options.limit
  numbers = [answers.completed(split, limit) for split in splits]
  if predicts:
    rows = [judged.rows for judged in judgements]
    predictions = [objective.decode(*three) for three in zip(datasets, splits, rows, strict=True)]
  else:
    pairs = zip(splits, numbers, strict=True)
    prompts = [[split.prompts[n] for n in chosen] for split, chosen in pairs]
    predictions = answers.completions(evaluator, overlays, base, prompts, seeds)
  predicted = []
  for e, (judged, split, chosen) in enumerate(zip(judgements, splits, numbers, strict=True)):
    true, tasks = objective.references(datasets[e], split), _tasks(split)
    true, own = [true[n] for n in chosen], tasks and [tasks[n] for n in chosen]
    scores = partial(_scores, scoring(evaluator.metrics, split), predictions[e], true)
    scored = judged.metrics | by_task(scores, own, name, tasks)
    kept = (*SUMS, *evaluator.measures)
    sums = {key: x for key, x in judged.rows.items() if key.removeprefix("weight_") in kept}
    predicted.append(Judged(scored, name, sums, predictions[e], true, chosen, split.units(chosen)))
  return predicted


def _scores(names: Sequence[str], predictions: list, references: list, prefix: str, chosen=None):
  """Scores predictions, or those of the chosen examples."""
  chosen = range(len(predictions)) if chosen is None else chosen
  pick = lambda values: [values[i] for i in chosen]
  scores = metrics.score(pick(predictions), pick(references), names)
  return {f"{prefix}_{name}": value for name, value in scores.items()}


def _tasks(split: data.Split) -> list[str] | None:
  """Returns the task of each example; of one with several windows, that of the first."""
  if split.tasks is None or "example" not in split.arrays:
    return split.tasks
  _, first = np.unique(split.arrays["example"], return_index=True)
  return [split.tasks[row] for row in first]


def by_task(
  scores: Callable, tasks: Sequence[str] | None, prefix: str, among: Sequence[str] | None = None
) -> dict:
  """Scores all examples and, of a mixture, each task and the plain mean over tasks.

  Args:
    scores: (prefix[, indices of examples]) -> {metric: value}.
    tasks: of every example; None where there is no mixture.
    among: all tasks of the split, where examples are some of its examples.

  Returns:
    {"test_loss": ..., "test_loss/mean": ..., "test_loss/TASK": ...}; no mean of a metric that a
    task does not have.
  """
  whole = scores(prefix)
  if tasks is None:
    return whole
  of_rows = np.asarray(tasks)
  by_name = {task: scores(prefix, np.flatnonzero(of_rows == task)) for task in dict.fromkeys(tasks)}
  every = {task: by_name.get(task, {}) for task in among or tasks}
  shared = [metric for metric in whole if all(metric in values for values in every.values())]
  mean = lambda metric: float(np.mean([values[metric] for values in by_name.values()]))
  return (
    whole
    | {f"{metric}/mean": mean(metric) for metric in shared}
    | {f"{metric}/{task}": x for task, values in by_name.items() for metric, x in values.items()}
  )
