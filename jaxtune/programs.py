"""What a trial is compiled from and starts with, and what the base scores without it."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxtune import data, optim, peft, sharding, starting, tree, update
from jaxtune.evaluators import compare, evaluate
from jaxtune.setup import Setup, find_objective, make_methods, tokenizing


def start(config: dict, setup: Setup) -> tuple[update.State, Any]:
  """Makes a trial's first state, and the base that stays frozen."""
  methods = make_methods(config, setup.pretrained.fresh)
  key = jax.random.key(config["seed"])
  tuned, hyper, base = peft.init(
    key, methods, setup.sites, setup.pretrained.params, tokenizing(setup.pretrained)
  )
  tuned = tuned | {"params": redraw(key, tuned["params"], setup.pretrained.fresh)}
  tuned, hyper = starting.continued(methods, setup, tuned, hyper)
  numbers = {name: jnp.asarray(config["optim"][name], jnp.float32) for name in optim.NUMBERS}
  optimizer = optim.make(numbers, config["train"]["steps"], **config["optim"]).init(tuned)
  zero = jnp.zeros((), jnp.int32)
  seed = jnp.asarray(config["seed"] % 2**31, jnp.int32)
  return update.State(zero, seed, tuned, hyper, numbers, optimizer), base


def redraw(key, params: Any, fresh: tuple[str, ...]) -> Any:
  """Draws the kernels of a new head anew, so that a trial's seed decides them too."""
  flat = tree.flatten(params)
  for path in fresh:
    if path in flat and path.endswith("kernel"):
      noise = jax.random.normal(peft.site_key(key, path), flat[path].shape)
      flat[path] = noise * jnp.std(flat[path])
  return tree.unflatten(flat)


def make_program(config: dict, setup: Setup, dropout: bool) -> update.Program:
  """Gathers what is compiled, from any one trial of a group."""
  objective, options = find_objective(config)
  return update.Program(
    setup.pretrained.model,
    make_methods(config, setup.pretrained.fresh),
    partial(objective.loss, **options),
    lambda numbers: optim.make(numbers, config["train"]["steps"], **config["optim"]),
    config["train"]["steps"],
    dropout,
  )


def make_evaluator(config: dict, program: update.Program, parallel, chunk: int, setup: Setup):
  """Compiles the judgement of trials: without label smoothing, so that losses can be compared."""
  objective, options = find_objective(config)
  options = {name: value for name, value in options.items() if name != "label_smoothing"}
  program = program._replace(objective=partial(objective.loss, **options), dropout=False)
  if hasattr(objective, "predict"):
    program = program._replace(predict=partial(objective.predict, **options))
  tokenizer = setup.pretrained.tokenizer
  stops = setup.dataset.stop_tokens
  return evaluate.make(program, parallel, chunk, config["evaluate"], objective, tokenizer, stops)


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
  found = evaluate.test(evaluator, _untuned(len(distinct)), base, list(distinct.values()))
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
  shots = evaluate.test(evaluator, _untuned(len(setups)), base, data.align(shown))
  return [compare.Untuned(*three) for three in zip(judged, shots, drawn, strict=True)]


def _untuned(count: int) -> tuple[dict, dict]:
  """Makes (tuned, hyper) of trials that lay nothing over the base."""
  return {"params": {}, "peft": {}}, {"untuned": jnp.zeros(count)}


def drops(configs: list[dict]) -> bool:
  """Says whether any trial is trained with noise: a rate of dropout, or NEFTune's, above zero."""
  noise = ("dropout", "token_dropout", "neftune")
  rates = lambda section: [
    rate
    for key, value in section.items()
    for rate in (rates(value) if isinstance(value, dict) else [value] * (key in noise))
  ]
  sections = [config[name] for config in configs for name in ("method", "regularize")]
  return any(rate > 0 for section in sections for rate in rates(section))
