"""Compiles a group's training step from shapes alone, for devices that need not be here."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import SingleDeviceSharding

from jaxtune import data, sharding, tree
from jaxtune.errors import UserError
from jaxtune.models import cudnn
from jaxtune.preflight import modules
from jaxtune.preflight.devices import Device
from jaxtune.runs import programs
from jaxtune.runs.first_state import first_state
from jaxtune.runs.trial import Trial
from jaxtune.training import loop
from jaxtune.training.options import TrainOptions


def outline_states(trials: Sequence[Trial]) -> tuple[Any, Any]:
  """Returns the shapes of the trials' stacked states and of the frozen base."""

  def make(params):
    pretrained = trials[0].pretrained._replace(params=params)
    states, bases = zip(
      *(first_state(t._replace(pretrained=pretrained)) for t in trials), strict=True
    )
    return tree.stack(list(states)), bases[0]

  return jax.eval_shape(make, trials[0].pretrained.params)


def outline_batch(trials: Sequence[Trial], parts: int | None = None) -> dict:
  """Returns the shapes (E, A, B, ...) of the trials' batches, in A = `train.accumulate` parts."""
  train = trials[0].config["train"]
  parts = parts or train["accumulate"]
  widest = data.batch(trials[0].dataset.train, 0, 0, train["batch_size"])  # batch 0 is the widest
  lead = (len(trials), parts, train["batch_size"] // parts)
  outline = lambda x: jax.ShapeDtypeStruct((*lead, *x.shape[1:]), x.dtype)
  return {name: outline(x) for name, x in widest.items()}


def lower_step(
  trials: Sequence[Trial],
  batch: dict,
  chunk: int,
  device: Device | None = None,
  devices: Sequence[Any] | None = None,
  **computation: Any,
) -> jax.stages.Lowered:
  """Lowers one training step of a group.

  Args:
    batch: the shapes of the batch, each (E, A, B, ...).
    chunk: trials side by side in one vmap.
    device, devices: what `devices.describe` returns; default the devices of this process.
    computation: fields of the model's `Config` that are to be changed.
  """
  first, options = trials[0], TrainOptions(**trials[0].config["train"])
  model = first.pretrained.model
  config = dataclasses.replace(model.config, **computation)
  if config.encoder is not None:
    encoder = dataclasses.replace(config.encoder, **computation)
    config = dataclasses.replace(config, encoder=encoder)
  model = model.clone(config=config)
  first = first._replace(pretrained=first.pretrained._replace(model=model))
  noise = any(programs.uses_noise(trial.config) for trial in trials)
  program = programs.make_program(first, noise, chunk)
  states, base = outline_states(trials)
  progress = jax.eval_shape(loop.begin, states)
  step = loop.make_step(program, chunk, options.patience)
  carry = (states, progress.sums, progress.stale)
  if device is None:
    return jax.jit(step, donate_argnums=0).lower(carry, base, batch)
  if options.parallel == "pmap":
    raise UserError("train.parallel is 'pmap', expected 'jit' to compile for another device")
  parallel = sharding.make(options.parallel, options.mesh, devices)
  if parallel.mesh is None:
    at = SingleDeviceSharding(devices[0])
    carry, base = jax.tree.map(lambda x: _placed(x, at), (carry, base))
  else:
    at = parallel.batch_sharding(len(trials))
    named = parallel.outline({"sums": progress.sums, "stale": progress.stale}, "trial")
    carry = (parallel.outline(states, "trial"), named["sums"], named["stale"])
    base = parallel.outline(base)
  batch = {name: _placed(x, at) for name, x in batch.items()}
  compiled: Any = parallel.compile(step, donate=True)
  with cudnn.on(device.gpu[0] if device.gpu else ()):
    return compiled.trace(carry, base, batch).lower(lowering_platforms=(device.platform,))


def bytes_of_base(trials: Sequence[Trial], parallel: sharding.Parallel) -> int:
  """Returns the bytes of the frozen base on each device."""
  base = outline_states(trials[:1])[1]
  if parallel.mesh is not None:
    base = parallel.outline(base)
  here = lambda x: x.shape if parallel.mesh is None else x.sharding.shard_shape(x.shape)
  return sum(math.prod(here(x)) * x.dtype.itemsize for x in jax.tree.leaves(base))


def _placed(x: Any, at: Any) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at)


def read(compiled: jax.stages.Compiled, device: Device, text: str | None = None) -> dict:
  """Returns what the compiler says of a program on each device: GB, Mcycles, exchanged GB.

  A TPU's compiler does not know how long kernels take: they are counted at half of the peak FLOP/s.
  """
  memory = compiled.memory_analysis()
  found = list(modules.operations(text or compiled.as_text()))
  moved: dict[str, float] = {}
  kernels: dict[str, int] = {}
  for one in found:
    if one.collective:
      moved[one.collective] = moved.get(one.collective, 0.0) + one.moved / 1e9
    if one.kernel:
      kernels[one.kernel] = kernels.get(one.kernel, 0) + 1
  of_kernels = 2 * sum(one.flops for one in found) / device.flops * device.clock
  return {
    "peak_GB": memory.peak_memory_in_bytes / 1e9,
    "arguments_GB": memory.argument_size_in_bytes / 1e9,
    "Mcycles": (sum(one.cycles for one in found) + of_kernels) / 1e6,
    "Mcycles_of_kernels": of_kernels / 1e6,
    "moved_GB": moved,
    "kernels": kernels,
    "dearest": sorted(((one.cycles / 1e6, one.name) for one in found if one.cycles), reverse=True),
  }
