"""Finds what is in a device's memory at the peak of a compiled program, from its schedule."""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import NamedTuple

from jaxtune.preflight import hlo
from jaxtune.preflight.hlo import Array, Instruction, Module

SIZES = attrgetter("taken"), attrgetter("padded")
ALIASES = ("tuple", "get-tuple-element", "bitcast", "optimization-barrier", "after-all")


class Buffer(NamedTuple):
  """Memory that the result of an instruction takes, until it was read for the last time."""

  array: Array
  instruction: Instruction


class Peak(NamedTuple):
  """The moment at which most memory is taken, beside that of the program's arguments."""

  bytes: float = 0.0
  buffers: tuple[Buffer, ...] = ()


def peak(module: Module, working: float) -> Peak:
  """Follows a module in the order of its schedule.

  A result that is written in place, as the state of a loop or a donated argument, is no new memory.

  Args:
    working: the bytes that the compiler states. It counts what a TPU keeps beside its matrix units
      for some programs and not for others; the count that is closer to its figure is returned.
  """
  donated = hlo.find(r"input_output_alias=\{(.*?\)) \}", module.head).split("{")[1:]
  kept = {int(number) for part in donated if (number := hlo.find(r"^(\d+)\}", part))}
  both = [_Schedule(module, module.entry, kept, size).peak() for size in SIZES]
  return min(both, key=lambda found: abs(found.bytes - working))


class _Schedule:
  """A computation, with the memory of each value of each instruction.

  Args:
    in_place: which elements of its result take the memory of its parameters; None for all.
    size: (array) -> the bytes of it that count.
  """

  def __init__(self, module: Module, name: str, in_place: set[int] | None, size: Callable):
    self.module, self.instructions = module, module.computations.get(name, [])
    self.size = size
    self.values: dict[str, list[Buffer | None]] = {}
    self.last: dict[int, int] = {}  # the last instruction that reads a buffer, by its identity
    self.written: set[str] = set()  # what is written to the memory of a parameter
    self.by_name = {one.name: one for one in self.instructions}
    root = next((one for one in self.instructions if one.root), None)
    if root is not None:
      names = root.operands if root.opcode == "tuple" else (root.name,)
      self.written = {n for i, n in enumerate(names) if in_place is None or i in in_place}
    for i, one in enumerate(self.instructions):
      self.values[one.name] = self._values(one)
      if one.opcode not in ALIASES or one.root:
        for buffer in self._read(one):
          self.last[id(buffer)] = i

  def peak(self) -> Peak:
    """Returns the moment at which most memory is taken."""
    best, live = Peak(), {}
    for i, one in enumerate(self.instructions):
      live |= {id(buffer): buffer for buffer in self.values[one.name] if buffer is not None}
      inner = max((inside.peak() for inside in self._called(one)),
                  key=lambda found: found.bytes, default=Peak())  # fmt: skip
      total = sum(self.size(buffer.array) for buffer in live.values()) + inner.bytes
      if total > best.bytes:
        best = Peak(total, (*live.values(), *inner.buffers))
      live = {key: buffer for key, buffer in live.items() if self.last.get(key, i) > i}
    return best

  def _read(self, one: Instruction) -> list[Buffer]:
    found = [self.values.get(name, []) for name in one.operands]
    found += [self.values[one.name]] if one.root else []
    return [buffer for values in found for buffer in values if buffer is not None]

  def _called(self, one: Instruction) -> list[_Schedule]:
    if one.opcode == "while":
      return [_Schedule(self.module, one.attribute("body"), None, self.size)]
    if one.opcode not in ("call", "conditional"):
      return []
    return [_Schedule(self.module, name, set(), self.size) for name in hlo.called(one)]

  def _values(self, one: Instruction) -> list[Buffer | None]:
    """Returns the memory of each array of a result; None for what a parameter or nothing holds."""
    operands = [self.values.get(name, []) for name in one.operands]
    if one.opcode in ("parameter", "constant") or one.name in self.written:
      return [None] * len(one.arrays)
    if one.opcode == "get-tuple-element":
      index = int(hlo.find(r"index=(\d+)", one.line))
      known = operands[0] and operands[0][hlo.element(self.by_name[one.operands[0]], index)]
      return known or [None] * len(one.arrays)
    if one.opcode in (*ALIASES, "while"):
      return [buffer for values in operands for buffer in values]
    if one.opcode.endswith("-done"):
      found = [*operands[0], *[None] * len(one.arrays)]
      return [b if self.size(x) else None for b, x in zip(found, one.arrays, strict=False)]
    fresh = [Buffer(array, one) if self.size(array) else None for array in one.arrays]
    if one.opcode == "copy-start":  # (copy, operand, ...)
      return fresh[:1]
    if one.opcode.endswith("-start"):  # (operands, results, ...), or results alone
      return fresh[len(operands) :] or fresh
    return [self._replaced(one, buffer, operands) for buffer in fresh]

  def _replaced(
    self, one: Instruction, fresh: Buffer | None, operands: list[list[Buffer | None]]
  ) -> Buffer | None:
    """Returns the operand that a result replaces: that of an update of a slice."""
    inner = self.module.computations.get(one.attribute("calls"), [one])
    updates = [i for i in inner if i.opcode == "dynamic-update-slice"]
    if fresh is None or not any(u.arrays[0].dims == fresh.array.dims for u in updates):
      return fresh
    same = [
      values[0]
      for name, values in zip(one.operands, operands, strict=True)
      if len(values) == 1 and self.by_name[name].arrays[0].dims == fresh.array.dims
    ]
    return same[0] if same else fresh
