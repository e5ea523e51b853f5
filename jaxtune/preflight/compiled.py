"""Compiles lowered programs, keeps what the compiler says of them, and reads it."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxtune import libraries
from jaxtune.errors import UserError
from jaxtune.files import write_atomically
from jaxtune.preflight import hlo, memory, modules
from jaxtune.preflight.devices import Device

LIBRARIES = ("jaxtune", "jax", "jaxlib", "libtpu", "jax-cuda12-plugin")
Mark = Callable[[tuple[int, ...]], bool]
FLAGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")
TRITON = "xla_gpu_enable_triton_gemm"
QUICK = {"optimization_level": 9}  # which XLA calls EFFORT_O0


class Built(NamedTuple):
  """What a compiler says of a program.

  Attributes:
    text: of the compiled module; "" where the compiler refused it.
    peak, arguments: bytes on each device.
    refused: the compiler's words for a program that does not fit its device's memory, or "".
  """

  text: str
  peak: int = 0
  arguments: int = 0
  refused: str = ""


def build(
  lowered: Iterable[jax.stages.Lowered], device: str, folder: Path | None, quick: bool = False
) -> list[Built]:
  """Compiles programs, as many side by side as there are cores.

  jax's own cache cannot read programs for devices that are not here, so results are kept by this.

  Args:
    lowered: a program is compiled while those behind it are lowered, if they are generated.
    device: its name.
    folder: where results are kept, by the program, the device and the compilers' versions; or None.
    quick: leaves optimisation out. The memory stays about the same, the time of the program not.
  """
  made = [device, quick, libraries.versions(*LIBRARIES), libraries.commit()]
  made += [os.environ.get(flag) for flag in FLAGS]
  keys, built = [], {}
  with ThreadPoolExecutor(os.cpu_count()) as pool:
    for one in lowered:
      key = hashlib.sha256(json.dumps([one.as_text(), *made]).encode()).hexdigest()
      if key not in built:
        built[key] = pool.submit(_kept, one, folder and folder / key, QUICK if quick else {})
      keys.append(key)
  return [built[key].result() for key in keys]


def _kept(lowered: jax.stages.Lowered, path: Path | None, options: dict[str, Any]) -> Built:
  """Returns what a file holds, or else compiles a program and writes the file."""
  if path is not None and path.exists():
    with contextlib.suppress(OSError, EOFError, ValueError, TypeError, zlib.error):  # it is damaged
      return Built(**json.loads(gzip.decompress(path.read_bytes())))
  built = _compile(lowered, options)
  if path is not None:
    with contextlib.suppress(UserError):  # a folder that cannot be written
      write_atomically(path, gzip.compress(json.dumps(built._asdict()).encode()))
  return built


def _compile(lowered: jax.stages.Lowered, options: dict[str, Any]) -> Built:
  try:
    compiled = lowered.compile(compiler_options=options)
  except jax.errors.JaxRuntimeError as error:
    if "output tile sizes" in str(error) and TRITON not in options:
      # XLA finds no tiles for some products on a GPU that it cannot try them on.
      return _compile(lowered, options | {TRITON: False})
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    return Built("", refused=str(error).splitlines()[0].partition(": ")[2].rstrip("."))
  taken: Any = compiled.memory_analysis()
  peak, arguments = taken.peak_memory_in_bytes, taken.argument_size_in_bytes
  (device, *_) = jax.tree.leaves(compiled.input_shardings)[0].device_set
  if device.platform == "cpu":  # whose peak leaves out all that is neither argument nor result
    outputs = taken.output_size_in_bytes - taken.alias_size_in_bytes
    peak = arguments + outputs + taken.temp_size_in_bytes
  return Built(compiled.as_text(), peak, arguments)


def read(
  built: Built, device: Device, base: float = 0.0, marks: Mapping[str, Mark] = {},
  local: float = 0.5,
) -> dict:  # fmt: skip
  """Returns what the compiler says of a program on each device.

  A TPU's compiler does not know how long kernels take: they are counted at half of the peak FLOP/s.

  Args:
    base: bytes of the arguments that are the frozen base.
    marks: {part of the memory: whether an array of these sizes belongs to it}.
    local: as for `modules.operations`.

  Returns:
    "peak_GB", of which "parts_GB" are those of `marks`, the "base", "trained" (the other
    arguments) and "activations" (all else); "Mcycles", of which "Mcycles_of_kernels";
    "traffic_GB" of main memory; "moved_GB" by kind of collective; "kernels", their number by name;
    and "dearest", {"Mcycles", "GB", "name", "source"} of operations, the dearest first.
  """
  module = hlo.parse(built.text)
  found = list(modules.operations(module, local))
  moved: dict[str, float] = {}
  kernels: dict[str, int] = {}
  for one in found:
    if one.collective:
      moved[one.collective] = moved.get(one.collective, 0.0) + one.moved / 1e9
    if one.kernel:
      kernels[one.kernel] = kernels.get(one.kernel, 0) + 1
  rate = 2 / device.flops * device.clock if device.clock else 0.0  # cycles for a FLOP of a kernel
  cost = lambda one: (one.cycles + one.flops * rate, one.bytes)
  return {
    "peak_GB": built.peak / 1e9,
    "parts_GB": _parts(module, built, base, marks),
    "Mcycles": sum(one.cycles + one.flops * rate for one in found) / 1e6,
    "Mcycles_of_kernels": sum(one.flops * rate for one in found) / 1e6,
    "traffic_GB": sum(one.bytes for one in found) / 1e9,
    "moved_GB": moved,
    "kernels": kernels,
    "dearest": [
      {"Mcycles": cost(one)[0] / 1e6, "GB": one.bytes / 1e9, "name": one.name, "source": one.source}
      for one in sorted(found, key=cost, reverse=True)
      if any(cost(one))
    ],
  }


def _parts(module: hlo.Module, built: Built, base: float, marks: Mapping[str, Mark]) -> dict:
  """Divides the peak, in GB: what is beside the arguments as the schedule shows it."""
  working = max(built.peak - built.arguments, 0)
  found, taken = memory.peak(module, working), dict.fromkeys((*marks, "activations"), 0.0)
  for buffer in found.buffers:
    fits = (part for part, mark in marks.items() if mark(buffer.array.dims))
    taken[next(fits, "activations")] += buffer.array.padded
  scale = working / found.bytes if found.bytes else 0.0
  parts = {"base": base, "trained": built.peak - working - base}
  parts |= {part: size * scale for part, size in taken.items()}
  parts["activations"] += built.peak - sum(parts.values())
  return {part: size / 1e9 for part, size in parts.items()}
