"""The memory and the FLOPs of a training step, by XLA's own figures, from shapes alone."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import jax

from jaxtune import data, tree
from jaxtune.models import hf, quantize
from jaxtune.runs import programs
from jaxtune.runs.first_state import first_state
from jaxtune.runs.trial import Trial
from jaxtune.training import loop
from jaxtune.training.options import TrainOptions


def choose_chunk(trials: Sequence[Trial]) -> int:
  """Returns how many trials to compute side by side: `train.chunk`, if it is set.

  By default this is one on a CPU, which needs the least memory (by `experiments/speed`, 2 or 4 are
  a few per cent faster there, and 16 are slower), and on other devices as many as fit their memory
  by XLA's own figures.
  """
  if chosen := trials[0].config["train"]["chunk"]:
    return chosen
  chunk = 1 if jax.default_backend() == "cpu" else len(trials)
  limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", math.inf)
  parts = trials[0].config["train"]["accumulate"]

  def bytes_of(chunk: int) -> int:
    memory = _lower(trials, chunk, parts).compile().memory_analysis()
    return memory.argument_size_in_bytes + memory.temp_size_in_bytes

  return fit_chunk(chunk, 0.9 * limit, bytes_of)


def fit_chunk(chunk: int, limit: float, bytes_of: Callable[[int], int]) -> int:
  """Halves a number of trials until their program takes at most `limit` bytes, or one is left."""
  while chunk > 1 and bytes_of(chunk) > limit:
    chunk = -(-chunk // 2)
  return chunk


def cost(trials: Sequence[Trial]) -> dict:
  """Compiles one step on shapes alone; returns XLA's own memory and FLOP figures for it.

  The trials' `pretrained.params` may be shapes, as `hf.outline` gives them.

  Returns:
    MB of the frozen base, of the trials' state and of the step's working memory, and GFLOP of one
    step of all trials (counted without loops, whose bodies XLA counts once); of a quantised base,
    what a weight of its kernels takes.
  """
  first = trials[0]
  parts, chunk = first.config["train"]["accumulate"], choose_chunk(trials)
  # The program is never run, so it need not be fast. On a CPU it compiles in half the time without
  # optimisation, and takes the same memory.
  quick = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else {}
  compiled = _lower(trials, chunk, parts).compile(compiler_options=quick)
  memory = compiled.memory_analysis()
  frozen = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(_states([first])[1]))
  flat = _lower(trials, len(trials), 1, unroll=first.pretrained.model.config.layers)
  megabytes = lambda count: round(count / 1e6, 2)
  return {
    "trials": len(trials),
    "trials_side_by_side": chunk,
    "frozen_MB": megabytes(frozen),
    "trained_state_MB": megabytes(memory.argument_size_in_bytes - frozen),
    "working_MB": megabytes(memory.temp_size_in_bytes),
    "GFLOP_per_step": round(flat.cost_analysis()["flops"] / 1e9, 3),
    **_quantised(first.pretrained),
  }


def _quantised(pretrained: hf.Pretrained) -> dict:
  """Returns {"quantised_base": form and bits of a weight}; {} for a base that is not quantised."""
  form, bits = pretrained.model.config.quantize, quantize.bits(pretrained.params)
  return {} if bits is None else {"quantised_base": f"{form}, {bits:.3f} bits a weight"}


def _states(trials: Sequence[Trial]):
  """Returns the shapes of the stacked states and of the frozen base."""

  def make(params):
    pretrained = trials[0].pretrained._replace(params=params)
    states, bases = zip(
      *(first_state(t._replace(pretrained=pretrained)) for t in trials), strict=True
    )
    return tree.stack(list(states)), bases[0]

  return jax.eval_shape(make, trials[0].pretrained.params)


def _lower(trials: Sequence[Trial], chunk: int, parts: int, **computation):
  """Lowers one step of a group on shapes alone."""
  first = trials[0]
  options, model = TrainOptions(**first.config["train"]), first.pretrained.model
  model = model.clone(config=dataclasses.replace(model.config, **computation))
  dropout = any(programs.uses_noise(trial.config) for trial in trials)
  program = programs.make_program(first, dropout)._replace(model=model)
  states, base = _states(trials)
  progress = jax.eval_shape(loop.begin, states)
  lead = (len(trials), parts, options.batch_size // parts)
  widest = data.batch(first.dataset.train, 0, 0, options.batch_size)  # batch 0 is the widest
  batch = {
    name: jax.ShapeDtypeStruct((*lead, *array.shape[1:]), array.dtype)
    for name, array in widest.items()
  }
  step = jax.jit(loop.make_step(program, chunk, options.patience), donate_argnums=0)
  return step.lower((states, progress.sums, progress.stale), base, batch)
