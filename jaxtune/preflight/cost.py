"""The memory and the FLOPs of a training step, by XLA's own figures, from shapes alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import jax

from jaxtune import sharding
from jaxtune.models import hf, quantize
from jaxtune.models.layers import choose_attention
from jaxtune.preflight import compiled, devices
from jaxtune.runs.trial import Trial

WHOLE = 2**31  # tokens: all of a batch's, so that no loop hides the FLOPs of logits


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
  batch = compiled.outline_batch(trials)

  def bytes_of(chunk: int) -> int:
    memory = compiled.lower_step(trials, batch, chunk).compile().memory_analysis()
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
  chunk = choose_chunk(trials)
  # The program is never run, so it need not be fast. On a CPU it compiles in half the time without
  # optimisation, and takes the same memory.
  quick = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else {}
  lowered = compiled.lower_step(trials, compiled.outline_batch(trials), chunk)
  memory = lowered.compile(compiler_options=quick).memory_analysis()
  base = compiled.outline_states(trials[:1])[1]
  frozen = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(base))
  megabytes = lambda count: round(count / 1e6, 2)
  return {
    "trials": len(trials),
    "trials_side_by_side": chunk,
    "frozen_MB": megabytes(frozen),
    "trained_state_MB": megabytes(memory.argument_size_in_bytes - frozen),
    "working_MB": megabytes(memory.temp_size_in_bytes),
    "GFLOP_per_step": round(flops(trials) / 1e9, 3),
    **_quantised(trials[0].pretrained),
  }


def flops(trials: Sequence[Trial]) -> float:
  """Returns the FLOP of one step of all trials, which nothing computes twice."""
  layers = trials[0].pretrained.model.config.layers
  batch = compiled.outline_batch(trials, parts=1)
  whole = dict(unroll=layers, scored_tokens=WHOLE)
  return compiled.lower_step(trials, batch, len(trials), **whole).cost_analysis()["flops"]


def cost_on(trials: Sequence[Trial], name: str) -> dict:
  """Compiles one step for a device that need not be here; returns its compiler's figures.

  Args:
    name: of the device, as `devices.describe` takes it. `train.mesh` spreads the step over it.

  Returns:
    "device"; "memory_GB" and "TFLOP_per_s" of each of the "devices"; "trials". Of a step, on each:
    "base_GB", "state_GB" (trained weights and moments), "working_GB", "peak_GB"; "floor_ms", which
    its FLOPs would take at the peak; "ms", which a TPU's compiler estimates, of which "kernels_ms"
    are fused kernels, counted at half of the peak; "exchanged_GB" by kind of collective; "kernels",
    their number by name; and "dearest", the (ms, name) of ten operations. A step that does not fit
    has only "does_not_fit", what the compiler says, and "would_fit", settings by which it would.
  """
  device, found = devices.describe(name)
  train = trials[0].config["train"]
  parallel = sharding.make(train["parallel"], train["mesh"], found)
  chunk = train["chunk"] or len(trials)
  batch = compiled.outline_batch(trials)
  chosen = trials[0].pretrained.model.config.attention
  attention = chosen or choose_attention(device.platform, batch["tokens"].shape[-1])
  lower = partial(compiled.lower_step, trials, device=device, devices=found, attention=attention)
  build = lambda batch, **more: _compile(device, lambda: lower(batch, chunk, **more))
  head = {"device": name, "memory_GB": device.memory / 1e9, "trials": len(trials)}
  try:
    figures = compiled.read(build(batch), device)
  except MemoryError as error:
    fitting = _fitting(trials, build, parallel.batch_shards)
    return head | {"does_not_fit": str(error), "would_fit": fitting}
  base = compiled.bytes_of_base(trials, parallel) / 1e9
  milliseconds = lambda mega: 1e9 * mega / device.clock if device.clock else None
  return head | {
    "TFLOP_per_s": device.flops / 1e12,
    "devices": parallel.devices,
    "base_GB": base,
    "state_GB": figures["arguments_GB"] - base,
    "working_GB": figures["peak_GB"] - figures["arguments_GB"],
    "peak_GB": figures["peak_GB"],
    "floor_ms": 1e3 * flops(trials) / parallel.devices / device.flops,
    "ms": milliseconds(figures["Mcycles"]),
    "kernels_ms": milliseconds(figures["Mcycles_of_kernels"]),
    "exchanged_GB": figures["moved_GB"],
    "kernels": figures["kernels"],
    "dearest": [(milliseconds(mega), where) for mega, where in figures["dearest"][:10]],
  }


def _compile(device: devices.Device, lower: Callable) -> jax.stages.Compiled:
  """Lowers and compiles a step.

  Raises:
    MemoryError: if it does not fit. A GPU's compiler does not say so.
  """
  try:
    built = lower().compile()
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    raise MemoryError(str(error).splitlines()[0].partition(": ")[2]) from error
  peak = built.memory_analysis().peak_memory_in_bytes
  if peak > device.memory:
    raise MemoryError(f"its peak is {peak / 1e9:.1f} GB of {device.memory / 1e9:g}")
  return built


def _fitting(trials: Sequence[Trial], build: Callable, shards: int) -> str | None:
  """Returns the first settings with which a step fits: smaller parts of a batch, then remat."""
  train = trials[0].config["train"]
  rows = train["batch_size"] // shards
  parts = [n for n in range(train["accumulate"] + 1, rows + 1) if rows % n == 0]
  tries: list[tuple[str, int, dict]] = [(f"train.accumulate = {n}", n, {}) for n in parts]
  for remat in ("linear", True):
    said = f"model.remat = {remat!r}"
    tries.append((said, train["accumulate"], {"remat": remat}))
    tries += [(f"{said} and train.accumulate = {n}", n, {"remat": remat}) for n in parts[-1:]]
  for said, count, more in tries:
    try:
      build(compiled.outline_batch(trials, count), **more)
    except MemoryError:
      continue
    return said
  return None


def _quantised(pretrained: hf.Pretrained) -> dict:
  """Returns {"quantised_base": form and bits of a weight}; {} for a base that is not quantised."""
  form, bits = pretrained.model.config.quantize, quantize.bits(pretrained.params)
  return {} if bits is None else {"quantised_base": f"{form}, {bits:.3f} bits a weight"}
