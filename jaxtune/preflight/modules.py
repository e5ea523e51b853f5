"""Reads a compiled module's text: the cycles of its operations, and what devices exchange."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

BYTES = dict(
  pred=1, s4=0.5, u4=0.5, s8=1, u8=1, f8e4m3fn=1, f8e5m2=1, s16=2, u16=2, bf16=2, f16=2, s32=4,
  u32=4, f32=4, s64=8, u64=8, f64=8, c64=8,
)  # fmt: skip
COLLECTIVE = re.compile(
  r"= (\(?.*?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(-start)?\("
)
KERNEL = re.compile(r'custom_call_target="(tpu_custom_call|__cudnn\$fmha\w*)"')
# Matrix products of the splash kernels, each over all pairs of a query and a key that they visit.
PRODUCTS = {"splash_mha_fwd": 2, "splash_mha_dq": 3, "splash_mha_dkv": 4}


class Operation(NamedTuple):
  """One operation of a program, as often as its loops run it.

  Attributes:
    name: where it comes from, as jax names it.
    cycles: by a TPU's compiler; 0 elsewhere.
    collective: its kind, or "".
    moved: bytes of a collective's result on one device.
    kernel: the name of a custom call that the compiler sees as one operation, or "".
    flops: of a kernel for attention; of other operations the compiler knows more.
  """

  name: str
  cycles: float = 0.0
  collective: str = ""
  moved: float = 0.0
  kernel: str = ""
  flops: float = 0.0


def operations(text: str) -> Iterator[Operation]:
  """Lists the operations of a module's text that cost cycles or exchange arrays."""
  computations, entry = _computations(text)
  return _walk(computations, entry, 1, set())


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
  """Returns the lines of each computation by its name, and the name of the first to run."""
  computations: dict[str, list[str]] = {}
  name = entry = ""
  for line in text.splitlines():
    if line[:1].strip() and line.rstrip().endswith("{"):
      name = re.match(r"(?:ENTRY )?%?([\w.\-]+)", line).group(1)
      entry = name if line.startswith("ENTRY") else entry
      computations[name] = []
    elif name:
      computations[name].append(line)
  return computations, entry


def _walk(
  computations: dict[str, list[str]], name: str, times: float, channels: set[str]
) -> Iterator[Operation]:
  """Goes through a computation that runs `times` times, and through those that it calls.

  The branches of a conditional count as if each ran equally often.

  Args:
    channels: of the collectives that were met. One that overlaps with other work stands in several
      fusions, with one channel in all of them.
  """
  for line in computations.get(name, []):
    where = _find(r'op_name="([^"]*)"', line)
    kernel = match.group(1) if (match := KERNEL.search(line)) else ""
    cycles = float(_find(r'"estimated_cycles":"(\d+)"', line) or 0)
    if kernel:
      yield Operation(where, kernel=kernel, flops=times * _kernel_flops(line))
    elif cycles:
      yield Operation(where, times * cycles)
    channel = _find(r"channel_id=(\d+)", line)
    if (match := COLLECTIVE.search(line)) and channel not in channels:
      channels |= {channel} - {""}
      shapes, kind, start = match.groups()
      halves = 2 if start and kind != "all-reduce" else 1  # its result has the operand beside it
      yield Operation(where, 0.0, kind, times * _bytes(shapes) / halves)
    if " while(" in line:
      body, condition = (_find(rf"{part}=%?([\w.\-]+)", line) for part in ("body", "condition"))
      trips = _trips(line, computations.get(condition, []))
      yield from _walk(computations, body, times * trips, channels)
    elif " conditional(" in line:
      called = line.partition("computation")[2].partition(", metadata")[0]
      branches = re.findall(r"%([\w.\-]+)", called)
      for branch in branches:
        yield from _walk(computations, branch, times / len(branches), channels)
    elif re.search(r" (call|fusion)\(", line):
      for called in re.findall(r"(?:to_apply|calls)=%?([\w.\-]+)", line):
        found = _walk(computations, called, times, channels)
        yield from (one for one in found if one.collective or " fusion(" not in line)


def _kernel_flops(line: str) -> float:
  """Returns the FLOP of a splash kernel with a causal mask, of which it skips the tiles above."""
  products = next((n for name, n in PRODUCTS.items() if f"%{name}" in line), 0)
  if not products:
    return 0.0
  shapes = re.findall(r"(\w+)\[([\d,]*)\]", _find(r"operand_layout_constraints=\{(.*?)\}\}", line))
  sizes = [(kind, [int(size) for size in dims.split(",")]) for kind, dims in shapes]
  tiles = next(dims for kind, dims in sizes if kind == "s8")[1:]
  (_, queries), (_, keys), *_ = [one for one in sizes if one[0] not in ("s8", "s32")]
  visited = (1 + 1 / max(tiles)) / 2
  return 2 * products * math.prod(queries) * keys[-2] * visited


def _trips(line: str, condition: list[str]) -> int:
  """Returns how often a loop runs: as the compiler states it, or the bound in its condition."""
  if known := _find(r'"known_trip_count":\{"n":"(\d+)"\}', line):
    return int(known)
  bounds = re.findall(r"s32\[\]\S* constant\((\d+)\)", "\n".join(condition))
  return max(map(int, bounds), default=1)


def _bytes(shapes: str) -> float:
  sizes = lambda dims: math.prod(int(size) for size in dims.split(",") if size)
  return sum(BYTES.get(kind, 0) * sizes(d) for kind, d in re.findall(r"(\w+)\[([\d,]*)\]", shapes))


def _find(pattern: str, line: str) -> str:
  match = re.search(pattern, line)
  return match.group(1) if match else ""
