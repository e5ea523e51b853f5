"""Reads a compiled module: the cycles and bytes of its operations, and what devices exchange."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

from jaxtune.preflight import hlo
from jaxtune.preflight.hlo import Instruction, Module, find

COLLECTIVES = (
  "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all",
  "collective-permute",
)  # fmt: skip
KERNEL = r'custom_call_target="(tpu_custom_call|__cudnn\$fmha\w*)"'
# Matrix products of the splash kernels, each over all pairs of a query and a key that they visit.
PRODUCTS = {"splash_mha_fwd": 2, "splash_mha_dq": 3, "splash_mha_dkv": 4}
# What neither reads nor writes arrays, or has them counted in the computations that it calls.
FREE = (
  "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "while", "call",
  "conditional", "partition-id", "replica-id", "optimization-barrier", "iota",
)  # fmt: skip


class Operation(NamedTuple):
  """One operation of a program, as often as its loops run it.

  Attributes:
    name: where it comes from, as jax names it; of what a compiler adds, its own name.
    source: the file and line where it comes from.
    cycles: by a TPU's compiler; 0 elsewhere.
    bytes: what it reads from main memory and writes there.
    collective: its kind, or "".
    moved: bytes of a collective's result on one device.
    kernel: the name of a custom call that the compiler sees as one operation, or "".
    flops: of a kernel for attention; of other operations the compiler knows more.
  """

  name: str
  source: str = ""
  cycles: float = 0.0
  bytes: float = 0.0
  collective: str = ""
  moved: float = 0.0
  kernel: str = ""
  flops: float = 0.0


def operations(module: Module, local: float = 0.5) -> Iterator[Operation]:
  """Lists the operations of a module, each once, with what all rounds of its loops take.

  Args:
    local: the share of layers that are local, where some are: their attention is the second branch
      of a conditional. Of another conditional the dearest branch counts, as if it ran each time.
  """
  return _walk(module, module.entry, 1, set(), local)


def _walk(
  module: Module, name: str, times: float, channels: set[str], local: float, fused: bool = False
) -> Iterator[Operation]:
  """Goes through a computation that runs `times` times, and through those that it calls.

  Args:
    channels: of the collectives that were met. One that overlaps with other work stands in several
      fusions, with one channel in all of them. Elsewhere several may have the same channel.
    fused: whether the computation is a fusion.
  """
  instructions = module.computations.get(name, [])
  named = {one.name: one for one in instructions}
  for one in instructions:
    if one.opcode == "while":
      body, condition = one.attribute("body"), one.attribute("condition")
      trips = _trips(module, one.line, condition)
      yield from _walk(module, body, times * trips, channels, local, fused)
      continue
    where = dict(name=one.where or one.name, source=module.source(one))
    if one.opcode not in FREE and not one.opcode.endswith("-done"):
      cycles = float(find(r'"estimated_cycles":"(\d+)"', one.line) or 0)
      kernel = find(KERNEL, one.line)
      yield Operation(
        **where,
        cycles=0.0 if kernel else times * cycles,
        bytes=times * _traffic(module, named, one),
        kernel=kernel,
        flops=times * _kernel_flops(one) if kernel else 0.0,
      )
    kind, channel = one.opcode.removesuffix("-start"), find(r"channel_id=(\d+)", one.line)
    if kind in COLLECTIVES and not (fused and channel in channels):
      channels |= {channel} - {""}
      moved = sum(array.bytes for array in one.arrays[one.results])
      yield Operation(**where, collective=kind, moved=times * moved)
    if one.opcode in ("call", "conditional", "fusion", "async-start"):
      parts, within = hlo.called(one), one.opcode in ("fusion", "async-start")
      shares, inner = _shares(module, one, parts, local), fused or within
      found = [
        list(_walk(module, part, times * share, channels, local, inner))
        for share, part in zip(shares or [1.0] * len(parts), parts, strict=True)
      ]
      if one.opcode == "conditional" and shares is None:
        found = [max(found, key=_dear)]
      yield from (o for part in found for o in part if o.collective or not within)


def _shares(module: Module, one: Instruction, parts: list[str], local: float) -> list[float] | None:
  """Returns how often each branch runs, in the mean; None unless both are a layer's attention."""
  if one.opcode != "conditional" or len(parts) != 2:
    return None
  branches = [module.computations.get(part, []) for part in parts]
  if not all(any("attend" in other.where for other in branch) for branch in branches):
    return None
  return [local, 1 - local] if "true_computation=" in one.line else [1 - local, local]


def _dear(branch: list[Operation]) -> tuple[float, ...]:
  """Returns what makes a branch the dearest: the work of its kernels, its cycles, its traffic."""
  return tuple(sum(getattr(o, what) for o in branch) for what in ("flops", "cycles", "bytes"))


def _traffic(module: Module, named: dict[str, Instruction], one: Instruction) -> float:
  """Returns the bytes that an instruction reads from main memory and writes there.

  Of an array of which only slices are read, or only a slice is replaced, the slices count.
  """
  sizes = [named[name].taken if name in named else 0.0 for name in one.operands]
  if one.opcode.endswith("-start"):
    return sum(sizes[:1])
  if one.opcode == "fusion":
    inner = module.computations[one.attribute("calls")]
    names, updates = _parameters(inner), _updates(module, inner)
  else:  # as a fusion of this instruction alone
    inner, names = [one], one.operands
    updates = _updates(module, [*named.values()]) if one.opcode == "dynamic-update-slice" else {}
  read = sum(_read(module, inner, names[i], size) for i, size in enumerate(sizes))
  return read + sum(min(array.taken, updates.get(array.dims, array.taken)) for array in one.arrays)


def _read(module: Module, inner: list[Instruction], name: str, whole: float) -> float:
  """Returns the bytes that are read of an operand of `whole` bytes, called `name` in a fusion."""
  total = 0.0
  for user in inner:
    for i in [i for i, operand in enumerate(user.operands) if operand == name]:
      if user.opcode in ("dynamic-slice", "slice", "gather") and i == 0:
        total += sum(array.bytes for array in user.arrays)
      elif user.opcode == "bitcast":
        total += _read(module, inner, user.name, whole)
      elif user.opcode == "fusion":
        deeper = module.computations[user.attribute("calls")]
        total += _read(module, deeper, _parameters(deeper)[i], whole)
      elif user.opcode != "dynamic-update-slice" or i > 0:
        return whole
  return min(total, whole)


def _updates(module: Module, inner: list[Instruction]) -> dict[tuple, float]:
  """Returns the bytes of the slices that updates in a computation replace, by the array's sizes."""
  inside, updates = {one.name: one for one in inner}, {}
  for one in inner:
    if one.opcode == "dynamic-update-slice" and one.operands[1] in inside:
      updates[one.arrays[0].dims] = sum(x.bytes for x in inside[one.operands[1]].arrays)
    elif one.opcode == "fusion":
      updates |= _updates(module, module.computations[one.attribute("calls")])
  return updates


def _parameters(inner: list[Instruction]) -> dict[int, str]:
  """Returns the names of a computation's parameters by their number."""
  return {
    int(find(r"parameter\((\d+)\)", one.line)): one.name
    for one in inner
    if one.opcode == "parameter"
  }


def _kernel_flops(one: Instruction) -> float:
  """Returns the FLOP of a splash kernel, in the tiles that its mask lets it visit; see `splash`."""
  products = next((n for name, n in PRODUCTS.items() if f"%{name}" in one.line), 0)
  if not products:
    return 0.0
  operands = find(r"operand_layout_constraints=\{(.*?)\}\}", one.line)
  shapes = [dims for kind, dims in re.findall(r"(\w+)\[([\d,]*)\]", operands) if kind[0] != "s"]
  queries, keys, *_ = [[int(size) for size in dims.split(",")] for dims in shapes]
  visited = float(find(r"visits_([\d.]+)", one.where) or 1)
  return 2 * products * math.prod(queries) * keys[-2] * visited


def _trips(module: Module, line: str, condition: str) -> int:
  """Returns how often a loop runs: as the compiler states it, or the bound in its condition.

  A loop with an open end, whose condition is more than a count below a bound, runs once.
  """
  if known := find(r'"known_trip_count":\{"n":"(\d+)"\}', line):
    return int(known)
  instructions = module.computations.get(condition, [])
  parts = [condition] + [name for one in instructions for name in hlo.called(one)]
  inner = [one for part in parts for one in module.computations.get(part, [])]
  if {one.opcode for one in inner} & {"and", "or", "not", "reduce"}:
    return 1
  bounds = re.findall(r"s32\[\]\S* constant\((\d+)\)", "\n".join(one.line for one in inner))
  return max(map(int, bounds), default=1)
