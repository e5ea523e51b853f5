"""Parses the text of a compiled module: its computations, their instructions and their places."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

BYTES = dict(
  pred=1, s4=0.5, u4=0.5, s8=1, u8=1, f8e4m3fn=1, f8e5m2=1, s16=2, u16=2, bf16=2, f16=2, s32=4,
  u32=4, f32=4, s64=8, u64=8, f64=8, c64=8,
)  # fmt: skip
INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\(([^)]*)\)")
ARRAY = re.compile(r"(\w+)\[([\d,]*)\](\{[^}]*\})?")
OURS = str(Path(__file__).parents[2]) + "/jaxtune/"


class Array(NamedTuple):
  """An array of an instruction's result.

  Attributes:
    dims: the sizes of its axes.
    bytes: of its elements.
    padded: bytes with the padding of a TPU's tiles.
    taken: these, if it lies in the device's main memory; 0 if it lies elsewhere, as what a TPU
      keeps beside its matrix units does.
  """

  dims: tuple[int, ...]
  bytes: float
  padded: float
  taken: float


class Instruction(NamedTuple):
  """One line of a computation.

  Attributes:
    operands: names of the instructions whose results it reads.
    root: whether its result is that of the computation.
    line: the whole text.
  """

  name: str
  opcode: str
  arrays: tuple[Array, ...]
  operands: tuple[str, ...]
  root: bool
  line: str

  @property
  def taken(self) -> float:
    """Returns the bytes of the result in main memory."""
    return sum(array.taken for array in self.arrays)

  @property
  def results(self) -> slice:
    """Returns which arrays are results: operands stand before those of what is started."""
    count = len(self.operands)
    if not self.opcode.endswith("-start") or len(self.arrays) <= count:
      return slice(None)
    return slice(1) if self.opcode == "copy-start" else slice(count, 2 * count)

  def attribute(self, name: str) -> str:
    """Returns the name of a computation that the instruction calls, such as its "body"; or ""."""
    return find(rf"\b{name}=%?([\w.\-]+)", self.line)

  @property
  def where(self) -> str:
    """Returns where it comes from, as jax names it; or ""."""
    return find(r'op_name="([^"]*)"', self.line)


class Module(NamedTuple):
  """A compiled module.

  Attributes:
    computations: {name: instructions in the order in which they run}.
    entry: the name of the first computation to run.
    head: the first line of the text.
    frames: {number of a stack frame: "file:line" of the innermost function of this package}.
  """

  computations: dict[str, list[Instruction]]
  entry: str
  head: str
  frames: dict[str, str]

  def source(self, instruction: Instruction) -> str:
    """Returns the file and line that an instruction comes from; "" where that is not known."""
    return self.frames.get(find(r"stack_frame_id=(\d+)", instruction.line), "")


def parse(text: str) -> Module:
  """Parses the text that `jax.stages.Compiled.as_text` returns."""
  computations: dict[str, list[Instruction]] = {}
  name = entry = ""
  # Of all attributes, the compiler writes these alone in lines of their own.
  text = re.sub(r"kernel_metadata=\{\n.*\n\}\}", "kernel_metadata={}}", text)
  for line in text.splitlines():
    if line[:1].strip() and line.rstrip().endswith("{"):
      name = find(r"^(?:ENTRY )?%?([\w.\-]+)", line)
      entry = name if line.startswith("ENTRY") else entry
      computations[name] = []
    elif name and (match := INSTRUCTION.match(line)):
      root, called, shape, opcode, operands = match.groups()
      names = tuple(re.findall(r"%([\w.\-]+)", operands))
      arrays = tuple(_arrays(shape))
      computations[name].append(Instruction(called, opcode, arrays, names, bool(root), line))
  return Module(computations, entry, text.partition("\n")[0], _frames(text))


def _arrays(shape: str) -> Iterator[Array]:
  for kind, dims, layout in ARRAY.findall(shape):
    sizes = [int(size) for size in dims.split(",") if size]
    width, padded = BYTES.get(kind, 0), list(sizes)
    order, tile = (
      find(pattern, layout).split(",") for pattern in (r"^\{([\d,]+)", r":T\(([\d,]+)")
    )
    for axis, step in zip(order, reversed(tile), strict=False):
      if axis and step:
        padded[int(axis)] += -padded[int(axis)] % int(step)
    taken = width * math.prod(padded)
    yield Array(tuple(sizes), width * math.prod(sizes), taken, 0.0 if "S(" in layout else taken)


def _frames(text: str) -> dict[str, str]:
  """Reads the tables in front of a module's computations, which name the sources of its lines."""
  files = dict(re.findall(r'^(\d+) "(.*)"$', _table(text, "FileNames"), re.MULTILINE))
  place = r"^(\d+) \{file_name_id=(\d+) .*?\bline=(\d+)"
  places = {
    number: f"{files[file]}:{line}"
    for number, file, line in re.findall(place, _table(text, "FileLocations"), re.MULTILINE)
  }
  frame = r"^(\d+) \{file_location_id=(\d+)(?: parent_frame_id=(\d+))?"
  frames = {
    int(number): (places[at], int(parent or 0))
    for number, at, parent in re.findall(frame, _table(text, "StackFrames"), re.MULTILINE)
  }
  # XLA writes the numbers of parents larger by one than it means: 1 at the first, which has none.
  shift = frames[1][1] if frames else 0

  def innermost(number: int) -> str:
    while number in frames:
      where, parent = frames[number]
      if where.startswith(OURS):
        return where.removeprefix(OURS[: -len("jaxtune/")])
      number = parent - shift
    return ""

  return {str(number): innermost(number) or frames[number][0] for number in frames}


def _table(text: str, title: str) -> str:
  return find(rf"(?ms)^{title}\n(.*?)\n\n", text)


def element(of: Instruction, index: int) -> slice:
  """Returns which of a tuple's arrays are those of an element, which may be a tuple too."""
  ends = _ends(of.line)
  return slice(ends[index], ends[index + 1])


@functools.cache
def _ends(line: str) -> list[int]:
  """Returns 0, and how many arrays there are up to the end of each element of a tuple."""
  ends, depth = [0, 0], 0
  for character in ARRAY.sub("#", line.partition(" = ")[2]):
    depth += (character == "(") - (character == ")")
    if depth == 0:
      break
    if character == "#":
      ends[-1] += 1
    elif character == "," and depth == 1:
      ends.append(ends[-1])
  return ends


def called(one: Instruction) -> list[str]:
  """Lists the computations that a call, a condition or a fusion runs."""
  branches = re.findall(r"%([\w.\-]+)", find(r"branch_computations=\{([^}]*)\}", one.line))
  parts = ("to_apply", "calls", "true_computation", "false_computation")
  return branches + [name for part in parts if (name := one.attribute(part))]


def find(pattern: str, text: str) -> str:
  """Returns the first group of a pattern's first match; "" without a match."""
  match = re.search(pattern, text)
  return match.group(1) if match else ""
