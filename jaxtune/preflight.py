"""What can be known before a run: whether it can work at all, and what a step will cost."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp

from jaxtune import optim, peft, train, tree
from jaxtune.errors import UserError
from jaxtune.evaluators import evaluate
from jaxtune.models.decoder import Decoder


def check(config: dict, setup: train.Setup) -> None:
  """Finds what cannot work before anything expensive starts."""
  options, c = train.Options(**config["train"]), setup.pretrained.model.config
  for name in ("steps", "batch_size", "accumulate", "log_every"):
    if getattr(options, name) < 1:
      raise UserError(f"train.{name} is {getattr(options, name)}, expected at least 1")
  if options.batch_size % options.accumulate:
    raise UserError(
      f"train.batch_size {options.batch_size} does not divide into "
      f"train.accumulate {options.accumulate} parts"
    )
  if options.keep not in ("best", "last"):
    raise UserError(f"train.keep is {options.keep!r}, expected 'best' or 'last'")
  if options.patience is not None and setup.dataset.validation is None:
    raise UserError("train.patience needs a validation split: give data.validation")
  optim.make(**config["optim"])
  methods = peft.build(config["method"])
  splits = [s for s in setup.dataset[:3] if s is not None]
  longest = max(s.tokens_NT.shape[1] for s in splits)
  prefix = sum(m.positions for m in methods)
  evaluation = evaluate.Options(**config["evaluate"])
  if evaluation.generate:
    prompts = max((len(p) for s in splits[1:] for p in s.prompts), default=0)
    longest = max(longest, prompts + evaluation.max_new_tokens)
  if prefix + longest > c.positions:
    raise UserError(
      f"sequences of {longest} tokens and a prefix of {prefix} exceed the model's {c.positions} "
      "positions; lower data.max_length, evaluate.max_new_tokens or method.length"
    )
  make = lambda params: peft.init(jax.random.key(0), methods, setup.sites, params)
  jax.eval_shape(make, setup.pretrained.params)


def cost(configs: list[dict], setup: train.Setup) -> dict:
  """Compiles one step on shapes alone; returns XLA's own memory and FLOP figures for it.

  `setup.pretrained.params` may be shapes, as `hf.outline` gives them.

  Returns:
    MB of the frozen base, of the trials' state and of the step's working memory, and GFLOP of one
    step of all trials (counted without loops, whose bodies XLA counts once).
  """
  options = train.Options(**configs[0]["train"])
  chunk = options.chunk or train.default_chunk(len(configs))
  compiled = _lower(configs, setup, chunk, options.accumulate).compile()
  memory, frozen = compiled.memory_analysis(), _frozen(configs[0], setup)
  flat = _lower(configs, setup, len(configs), 1, unroll=setup.pretrained.model.config.layers)
  megabytes = lambda count: round(count / 1e6, 2)
  return {
    "trials": len(configs),
    "trials_side_by_side": chunk,
    "frozen_MB": megabytes(frozen),
    "trained_state_MB": megabytes(memory.argument_size_in_bytes - frozen),
    "working_MB": megabytes(memory.temp_size_in_bytes),
    "GFLOP_per_step": round(flat.cost_analysis()["flops"] / 1e9, 3),
  }


def _states(configs: list[dict], setup: train.Setup):
  """Returns the shapes of the stacked states and of the frozen base."""

  def make(params):
    with_params = setup._replace(pretrained=setup.pretrained._replace(params=params))
    started = [train.start(config, with_params) for config in configs]
    return tree.stack([state for state, _ in started]), started[0][1]

  return jax.eval_shape(make, setup.pretrained.params)


def _frozen(config: dict, setup: train.Setup) -> int:
  _, base = _states([config], setup)
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(base))


def _lower(configs: list[dict], setup: train.Setup, chunk: int, parts: int, **computation):
  """Lowers one step of a group on shapes alone."""
  options = train.Options(**configs[0]["train"])
  model = Decoder(dataclasses.replace(setup.pretrained.model.config, **computation))
  program = train.make_program(configs[0], setup, train.drops(configs))._replace(model=model)
  states, base = _states(configs, setup)
  progress = jax.eval_shape(lambda s: train.begin(s, options), states)
  length = setup.dataset.train.tokens_NT.shape[1]
  shape = (len(configs), parts, options.batch_size // parts, length)
  types = {"tokens": jnp.int32, "mask": jnp.bool_, "weights": jnp.float32}
  batch = {name: jax.ShapeDtypeStruct(shape, kind) for name, kind in types.items()}
  step = jax.jit(partial(train.steps, program, chunk, options.patience), donate_argnums=0)
  return step.lower((states, progress.sums, progress.stale), base, batch)
