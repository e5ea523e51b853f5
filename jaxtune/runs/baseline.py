"""What the untuned base scores on the examples that trials are judged by."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp

from jaxtune import data, peft, sharding
from jaxtune.evaluation import compare, judge
from jaxtune.runs.programs import make_evaluator
from jaxtune.runs.trial import Trial


def evaluate_base(trial: Trial, parallel: sharding.Parallel | None = None) -> compare.Untuned:
  """Judges the untuned model on the same examples as the trials, also with demonstrations."""
  return evaluate_bases([trial], parallel)[0]


def evaluate_bases(
  trials: Sequence[Trial], parallel: sharding.Parallel | None = None
) -> list[compare.Untuned]:
  """Judges the untuned model on several data sets, whose examples have equal shapes.

  Of trials that differ in their seed alone, each has its own demonstrations.
  """
  first, layout = trials[0], trials[0].config["train"]
  parallel = parallel or sharding.make(layout["parallel"], layout["mesh"])
  evaluator = make_evaluator(first, parallel, methods=())
  base = parallel.put(first.pretrained.params)
  datasets = [trial.dataset for trial in trials]
  distinct = {id(dataset): dataset for dataset in datasets}
  scores = judge.judge_splits(evaluator, _nothing(len(distinct)), base, list(distinct.values()))
  scores_by_data = dict(zip(distinct, scores, strict=True))
  judged = [scores_by_data[id(dataset)] for dataset in datasets]
  if not evaluator.options.shots:
    return [compare.Untuned(one) for one in judged]
  shown, drawn = [], []
  for trial in trials:
    dataset, draws = _with_shots(trial, evaluator.options, judged[0].split)
    shown.append(dataset)
    drawn.append(draws)
  shots = judge.judge_splits(evaluator, _nothing(len(trials)), base, data.align(shown))
  return [compare.Untuned(*three) for three in zip(judged, shots, drawn, strict=True)]


def _with_shots(trial: Trial, options: judge.EvaluateOptions, name: str) -> tuple[data.Data, dict]:
  """Returns a data set whose split `name` alone is left, its prompts with demonstrations."""
  dataset, tokenizer = trial.dataset, trial.pretrained.tokenizer
  c = trial.pretrained.model.config
  split, draws = data.shots(
    getattr(dataset, name), dataset.train, tokenizer, options.shots, positions=c.positions,
    new_tokens=options.max_new_tokens * options.generate, seed=trial.config["seed"],
  )  # fmt: skip
  data.ids.check_split(tokenizer, split, c.vocabulary)
  rest = dataset._replace(general=None, validation=None, test=None)
  return rest._replace(**{name: split}), draws


def _nothing(count: int) -> peft.Overlay:
  """Makes the overlays of trials that lay nothing over the base."""
  return peft.Overlay({"params": {}, "peft": {}}, {"untuned": jnp.zeros(count)})
