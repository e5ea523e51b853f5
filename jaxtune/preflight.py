"""What can be known before a run: whether it can work at all, and what a step will cost."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from jaxtune import optim, peft, train, tree
from jaxtune.errors import UserError
from jaxtune.evaluators import evaluate


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
  evaluation = evaluate.train.Options(**config["evaluate"])
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
  """
  options = train.Options(**configs[0]["train"])
  chunk = options.chunk or (1 if jax.default_backend() == "cpu" else len(configs))
  states, base = [], None
  for config in configs:
    make = lambda params, c=config: train.start(
      c, setup._replace(pretrained=setup.pretrained._replace(params=params))
    )
    state, base = jax.eval_shape(make, setup.pretrained.params)
    states.append(state)
  states = jax.eval_shape(lambda s: tree.stack(s), states)
  progress = jax.eval_shape(lambda s: train.begin(s, options), states)
  length = setup.dataset.train.tokens_NT.shape[1]
  shape = (len(configs), options.accumulate, options.batch_size // options.accumulate, length)
  types = {"tokens": jnp.int32, "mask": jnp.bool_, "weights": jnp.float32}
  batch = {name: jax.ShapeDtypeStruct(shape, kind) for name, kind in types.items()}
  program = train.make_program(configs[0], setup, train.drops(configs))
  step = jax.jit(partial(train.steps, program, chunk, options.patience), donate_argnums=0)
  compiled = step.lower((states, progress.sums, progress.stale), base, batch).compile()
  memory, flops = compiled.memory_analysis(), compiled.cost_analysis()
  return {
    "trials": len(configs),
    "trials_side_by_side": chunk,
    "frozen_MB": round(sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(base)) / 1e6, 2),
    "arguments_MB": round(memory.argument_size_in_bytes / 1e6, 2),
    "working_MB": round(memory.temp_size_in_bytes / 1e6, 2),
    "GFLOP_per_step": round((flops or {}).get("flops", float("nan")) / 1e9, 3),
  }
