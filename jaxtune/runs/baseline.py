"""What the untuned base scores on the examples that trials are judged by."""

from __future__ import annotations

import jax.numpy as jnp

from jaxtune import data, sharding
from jaxtune.evaluation import compare, judge
from jaxtune.runs.programs import make_evaluator, make_program
from jaxtune.runs.trial import Setup


def evaluate_base(
  config: dict, setup: Setup, parallel: sharding.Parallel | None = None
) -> compare.Untuned:
  """Judges the untuned model on the same examples as the trials, also with demonstrations."""
  return evaluate_bases([config], [setup], parallel)[0]


def evaluate_bases(
  configs: list[dict], setups: list[Setup], parallel: sharding.Parallel | None = None
) -> list[compare.Untuned]:
  """Judges the untuned model on several data sets, whose examples have equal shapes.

  Of configs that differ in their seed alone, each has its own demonstrations.
  """
  config, setup = configs[0], setups[0]
  layout = config["train"]
  parallel = parallel or sharding.make(layout["parallel"], layout["mesh"])
  program = make_program(config, setup, False)._replace(methods=())
  evaluator = make_evaluator(config, program, parallel, 1, setup)
  base, datasets = parallel.put_shared(setup.pretrained.params), [one.dataset for one in setups]
  distinct = {id(dataset): dataset for dataset in datasets}
  found = judge.test(evaluator, _untuned(len(distinct)), base, list(distinct.values()))
  judged = [dict(zip(distinct, found, strict=True))[id(dataset)] for dataset in datasets]
  if not evaluator.options.shots:
    return [compare.Untuned(one) for one in judged]
  tokenizer, config_ = setup.pretrained.tokenizer, setup.pretrained.model.config
  shown, drawn = [], []
  for config, dataset in zip(configs, datasets, strict=True):
    split, draws = data.shots(
      getattr(dataset, judged[0].split), dataset.train, tokenizer,
      evaluator.options.shots, positions=config_.positions,
      new_tokens=evaluator.options.max_new_tokens * evaluator.options.generate, seed=config["seed"],
    )  # fmt: skip
    data.ids.check_split(tokenizer, split, config_.vocabulary)
    rest = dataset._replace(general=None, validation=None, test=None)
    shown.append(rest._replace(**{judged[0].split: split}))
    drawn.append(draws)
  shots = judge.test(evaluator, _untuned(len(setups)), base, data.align(shown))
  return [compare.Untuned(*three) for three in zip(judged, shots, drawn, strict=True)]


def _untuned(count: int) -> tuple[dict, dict]:
  """Makes (tuned, hyper) of trials that lay nothing over the base."""
  return {"params": {}, "peft": {}}, {"untuned": jnp.zeros(count)}
