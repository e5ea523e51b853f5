"""Judges the untuned base on the examples that trials are judged on."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp

from jaxtune import data, peft, sharding
from jaxtune.evaluation import compare, judge
from jaxtune.runs.programs import make_evaluator
from jaxtune.runs.trial import Trial


def evaluate_bases(
  trials: Sequence[Trial], parallel: sharding.Parallel | None = None
) -> list[compare.Untuned]:
  """Judges the untuned model on each trial's examples; with `evaluate.shots`, twice.

  The second time there are demonstrations in the prompts.

  Args:
    trials: whose data have equal shapes. Where they differ in their seed alone, each has its own
      demonstrations.
  """
  layout = trials[0].config["train"]
  parallel = parallel or sharding.make(layout["parallel"], layout["mesh"])
  evaluator = make_evaluator(trials[0], parallel, methods=())
  base = parallel.put(trials[0].pretrained.params)
  tuned = {"params": {}, "peft": {}}
  nothing = lambda n: parallel.put(peft.Overlay(tuned, {"untuned": jnp.zeros(n)}), "trial")
  distinct = {id(trial.dataset): trial.dataset for trial in trials}
  scores = judge.judge_splits(evaluator, nothing(len(distinct)), base, list(distinct.values()))
  scores_of = dict(zip(distinct, scores, strict=True))
  judged = [scores_of[id(trial.dataset)] for trial in trials]
  if not evaluator.options.shots:
    return [compare.Untuned(score) for score in judged]
  split = judged[0].split
  shown, drawn = zip(*(_with_shots(t, evaluator.options, split) for t in trials), strict=True)
  shots = judge.judge_splits(evaluator, nothing(len(trials)), base, data.align(list(shown)))
  return [compare.Untuned(*parts) for parts in zip(judged, shots, drawn, strict=True)]


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
