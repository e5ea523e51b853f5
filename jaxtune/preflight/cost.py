"""The memory and the FLOPs of a training step, by XLA's own figures, from shapes alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax

from jaxtune import hosts, sharding
from jaxtune.models import hf, quantize
from jaxtune.preflight import compiled, fit, lowered
from jaxtune.runs import compilations
from jaxtune.runs.trial import Trial


def choose_chunk(trials: Sequence[Trial], parallel: sharding.Parallel | None = None) -> int:
  """Returns how many trials each device computes side by side: `train.chunk`, if it is set.

  By default this is one on a CPU, which needs the least memory (by `experiments/speed`, 2 or 4 are
  a few per cent faster there, and 16 are slower), and on other devices as many as fit their memory
  by XLA's own figures.

  Args:
    parallel: the layout of the devices; default that of `train.mesh`.
  """
  if chosen := trials[0].config["train"]["chunk"]:
    return chosen
  if jax.default_backend() == "cpu":
    return 1
  group = lowered.outline(trials, parallel=parallel)
  return fit_chunk(
    fit.side_by_side(group), fit.room(), partial(_peak, group, lowered.batches(group))
  )


def with_remat(trials: Sequence[Trial]) -> list[Trial]:
  """Returns trials whose model computes as little twice as the memory of this device allows.

  Where `model.remat` is "auto", it becomes the first of `lowered.POLICIES` with which a training
  step of one trial fits by XLA's own figures, which generation does not depend on; on a CPU it
  becomes "linear" (see `experiments/speed`).
  """
  if trials[0].pretrained.model.config.remat != "auto":
    return list(trials)
  if jax.default_backend() == "cpu":
    return lowered.changed(trials, remat="linear")
  group = lowered.outline(trials[:1])
  step = {"training step": lowered.step_batch(group)}
  fits = lambda policy: _peak(group, step, 1, remat=policy) <= fit.room()
  number = next((i for i, policy in enumerate(lowered.POLICIES) if fits(policy)), -1)
  return lowered.changed(trials, remat=lowered.POLICIES[hosts.of_first(number)])


def _peak(group: lowered.Outline, batches: dict, chunk: int, **computation: Any) -> float:
  """Returns the largest peak of programs on this device; infinite if one does not fit.

  Args:
    batches: of the programs, by a key of `lowered.LOWER`.
  """
  folder = compilations.plans(group.options.compilation_cache)
  programs = [lowered.LOWER[kind](group, x, chunk, **computation) for kind, x in batches.items()]
  built = compiled.build(programs, jax.local_devices()[0].device_kind, folder)
  held = [fit.held(group, kind, len(group.trials)) for kind in batches]
  pairs = zip(built, held, strict=True)
  return max(math.inf if one.refused else one.peak + more for one, more in pairs)


def fit_chunk(chunk: int, limit: float, bytes_of: Callable[[int], float]) -> int:
  """Halves a number of trials until their program takes at most `limit` bytes, or one is left."""
  while chunk > 1 and bytes_of(chunk) > limit:
    chunk = -(-chunk // 2)
  return chunk


def cost(trials: Sequence[Trial]) -> dict:
  """Compiles one step on shapes alone; returns XLA's own memory and FLOP figures for it.

  The step is that of one device, as `train.mesh` may need more than are here. The trials'
  `pretrained.params` may be shapes, as `hf.outline` gives them.

  Returns:
    MB of the frozen base, of the trials' state and of the step's working memory, and GFLOP of one
    step of all trials, of its matrix products and without what rematerialisation computes again; of
    a quantised base, what a weight of its kernels takes.
  """
  group = lowered.outline(trials, parallel=sharding.ALONE)
  batch = lowered.step_batch(group)
  chunk = min(choose_chunk(trials, group.parallel), fit.side_by_side(group))
  # The program is never run, so it need not be fast. On a CPU it compiles in half the time without
  # optimisation, and takes the same memory.
  quick = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else {}
  program = lowered.lower_step(group, batch, chunk)
  memory = program.compile(compiler_options=quick).memory_analysis()
  frozen = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(group.base))
  megabytes = lambda count: round(count / 1e6, 2)
  return {
    "trials": len(trials),
    "trials_side_by_side": chunk,
    "frozen_MB": megabytes(frozen),
    "trained_state_MB": megabytes(memory.argument_size_in_bytes - frozen),
    "working_MB": megabytes(memory.temp_size_in_bytes),
    "GFLOP_per_step": float(f"{lowered.flops(group, batch) / 1e9:.4g}"),
    **_quantised(trials[0].pretrained),
  }


def _quantised(pretrained: hf.Pretrained) -> dict:
  """Returns {"quantised_base": form and bits of a weight}; {} for a base that is not quantised."""
  form, bits = pretrained.model.config.quantize, quantize.bits(pretrained.params)
  return {} if bits is None else {"quantised_base": f"{form}, {bits:.3f} bits a weight"}
