"""What a step takes: memory and FLOPs, by XLA's own figures, on shapes alone."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial

import jax

from jaxtune import data, tree
from jaxtune.models import quantize
from jaxtune.runs import programs
from jaxtune.runs.trial import Setup
from jaxtune.training import loop
from jaxtune.training.options import TrainOptions


def choose_chunk(configs: list[dict], setup: Setup) -> int:
  """Says how many trials to run side by side.

  One on a CPU, which needs the least memory (`experiments/speed` measured 2 or 4 a few per cent
  faster there, and 16 slower); elsewhere as many as its memory holds, by XLA's own figures.
  """
  if chosen := configs[0]["train"]["chunk"]:
    return chosen
  chunk = 1 if jax.default_backend() == "cpu" else len(configs)
  limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", math.inf)
  return fit_chunk(chunk, 0.9 * limit, lambda n: _bytes(configs, setup, n))


def fit_chunk(chunk: int, limit: float, bytes_of: Callable[[int], int]) -> int:
  """Halves a chunk until the program that runs it fits, or one trial is left."""
  while chunk > 1 and bytes_of(chunk) > limit:
    chunk = -(-chunk // 2)
  return chunk


def _bytes(configs: list[dict], setup: Setup, chunk: int) -> int:
  parts = configs[0]["train"]["accumulate"]
  memory = _lower(configs, setup, chunk, parts).compile().memory_analysis()
  return memory.argument_size_in_bytes + memory.temp_size_in_bytes


def cost(configs: list[dict], setup: Setup) -> dict:
  """Compiles one step on shapes alone; returns XLA's own memory and FLOP figures for it.

  `setup.pretrained.params` may be shapes, as `hf.outline` gives them.

  Returns:
    MB of the frozen base, of the trials' state and of the step's working memory, and GFLOP of one
    step of all trials (counted without loops, whose bodies XLA counts once); of a quantised base,
    what a weight of its kernels takes.
  """
  options = TrainOptions(**configs[0]["train"])
  chunk = choose_chunk(configs, setup)
  # Of code that is not run, a CPU's need not be fast: the memory is the same, in half the time.
  quick = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else {}
  compiled = _lower(configs, setup, chunk, options.accumulate).compile(compiler_options=quick)
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
    **_quantised(setup.pretrained),
  }


def _quantised(pretrained) -> dict:
  form, bits = pretrained.model.config.quantize, quantize.bits(pretrained.params)
  return {} if bits is None else {"quantised_base": f"{form}, {bits:.3f} bits a weight"}


def _states(configs: list[dict], setup: Setup):
  """Returns the shapes of the stacked states and of the frozen base."""

  def make(params):
    with_params = setup._replace(pretrained=setup.pretrained._replace(params=params))
    started = [programs.start(config, with_params) for config in configs]
    return tree.stack([state for state, _ in started]), started[0][1]

  return jax.eval_shape(make, setup.pretrained.params)


def _frozen(config: dict, setup: Setup) -> int:
  _, base = _states([config], setup)
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(base))


def _lower(configs: list[dict], setup: Setup, chunk: int, parts: int, **computation):
  """Lowers one step of a group on shapes alone."""
  options = TrainOptions(**configs[0]["train"])
  model = setup.pretrained.model
  model = model.clone(config=dataclasses.replace(model.config, **computation))
  program = programs.make_program(configs[0], setup, programs.drops(configs))._replace(model=model)
  states, base = _states(configs, setup)
  progress = jax.eval_shape(lambda s: loop.begin(s, options), states)
  lead = (len(configs), parts, options.batch_size // parts)
  widest = data.batch(setup.dataset.train, 0, 0, options.batch_size)  # the first batch is that
  batch = {
    name: jax.ShapeDtypeStruct((*lead, *array.shape[1:]), array.dtype)
    for name, array in widest.items()
  }
  step = jax.jit(partial(loop.steps, program, chunk, options.patience), donate_argnums=0)
  return step.lower((states, progress.sums, progress.stale), base, batch)
