"""What a trial is compiled from and starts with, and what the base scores without it."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxtune import peft, tree
from jaxtune.evaluation import judge
from jaxtune.runs import start_from
from jaxtune.runs.trial import Setup, find_objective, make_methods, tokenizing
from jaxtune.training import optim, step


def start(config: dict, setup: Setup) -> tuple[step.State, Any]:
  """Makes a trial's first state, and the base that stays frozen."""
  methods = make_methods(config, setup.pretrained.fresh)
  key = jax.random.key(config["seed"])
  tuned, hyper, base = peft.init(
    key, methods, setup.sites, setup.pretrained.params, tokenizing(setup.pretrained)
  )
  tuned = tuned | {"params": redraw(key, tuned["params"], setup.pretrained.fresh)}
  tuned, hyper = start_from.continued(methods, setup, tuned, hyper)
  numbers = {name: jnp.asarray(config["optim"][name], jnp.float32) for name in optim.NUMBERS}
  optimizer = optim.make(numbers, config["train"]["steps"], **config["optim"]).init(tuned)
  zero = jnp.zeros((), jnp.int32)
  seed = jnp.asarray(config["seed"] % 2**31, jnp.int32)
  return step.State(zero, seed, tuned, hyper, numbers, optimizer), base


def redraw(key, params: Any, fresh: tuple[str, ...]) -> Any:
  """Draws the kernels of a new head anew, so that a trial's seed decides them too."""
  flat = tree.flatten(params)
  for path in fresh:
    if path in flat and path.endswith("kernel"):
      noise = jax.random.normal(peft.site_key(key, path), flat[path].shape)
      flat[path] = noise * jnp.std(flat[path])
  return tree.unflatten(flat)


def make_program(config: dict, setup: Setup, dropout: bool) -> step.Program:
  """Gathers what is compiled, from any one trial of a group."""
  objective, options = find_objective(config)
  return step.Program(
    setup.pretrained.model,
    make_methods(config, setup.pretrained.fresh),
    partial(objective.loss, **options),
    lambda numbers: optim.make(numbers, config["train"]["steps"], **config["optim"]),
    config["train"]["steps"],
    dropout,
  )


def make_evaluator(config: dict, program: step.Program, parallel, chunk: int, setup: Setup):
  """Compiles the judgement of trials: without label smoothing, so that losses can be compared."""
  objective, options = find_objective(config)
  options = {name: value for name, value in options.items() if name != "label_smoothing"}
  program = program._replace(objective=partial(objective.loss, **options), dropout=False)
  if hasattr(objective, "predict"):
    program = program._replace(predict=partial(objective.predict, **options))
  tokenizer = setup.pretrained.tokenizer
  stops = setup.dataset.stop_tokens
  return judge.make(program, parallel, chunk, config["evaluate"], objective, tokenizer, stops)


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
