"""Judges the untuned base on the examples that trials are judged on."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp

from jaxtune import data, objectives, peft, sharding
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
  nothing = lambda trials: parallel.put(_overlay(trials), "trial")
  key = lambda trial: (id(trial.dataset), *objectives.judged_by(trial.config["objective"]).values())
  distinct = {key(trial): trial for trial in trials}
  asked = list(distinct.values())
  scores = judge.judge_splits(evaluator, nothing(asked), base, [trial.dataset for trial in asked])
  scores_of = dict(zip(distinct, scores, strict=True))
  judged = [scores_of[key(trial)] for trial in trials]
  if not evaluator.options.shots:
    return [compare.Untuned(score) for score in judged]
  split = judged[0].split
  shown, drawn = zip(*(_with_shots(t, evaluator.options, split) for t in trials), strict=True)
  shots = judge.judge_splits(evaluator, nothing(trials), base, data.align(list(shown)))
  return [compare.Untuned(*parts) for parts in zip(judged, shots, drawn, strict=True)]


def _overlay(trials: Sequence[Trial]) -> peft.Overlay:
  """Returns overlays that change nothing and hold the numbers by which trials are judged."""
  sections = [objectives.judged_by(trial.config["objective"]) for trial in trials]
  numbers = {
    name: jnp.array([section[name] for section in sections], jnp.float32) for name in sections[0]
  }
  fixed = {"untuned": jnp.zeros(len(trials)), "loss": {"objective": numbers}}
  return peft.Overlay({"params": {}, "peft": {}}, fixed)


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
