"""The list of methods that `jaxtune methods` prints, read from the methods themselves."""

from __future__ import annotations

import inspect
import pkgutil
import textwrap

from jaxtune import peft
from jaxtune.errors import UserError
from jaxtune.formats import choose
from jaxtune.peft import methods, unions

WIDTH = 100
END = """\
* arrays: trials that differ in these options, in the seed and in the optimizer's numbers are one
  compiled program.
Any of them stack: method = {"name": "stack", "lora": {"rank": 8}, "prefix": {"length": 10}}.
Every section takes `start`, the folder of a run or an adapter to train on from.
model.quantize = "int8" or "nf4" stores the frozen kernels in 8 or 4 bits under any method that does
not train them in place."""


def text() -> str:
  """Lays out every method: equation, paper, options, what it does to a stack, how it leaves."""
  names = [m.name for m in pkgutil.iter_modules(methods.__path__)]
  blocks = [_method(name) for name in names]
  blocks += [_union(name, parts) for name, parts in unions.UNIONS.items()]
  return "\n\n".join([*blocks, END])


def _method(name: str) -> str:
  module = inspect.getmodule(peft.constructor(name))
  method = peft.build({"name": name})[0]
  options = [
    f"{option}{'*' * (option in method.numbers)}={parameter.default!r}"
    for option, parameter in inspect.signature(module.method).parameters.items()
  ]
  lines = [f"{name}: {module.__doc__.splitlines()[0]}"]
  lines += _wrap("options: " + ", ".join(options)) if options else []
  return "\n".join([*lines, *_wrap(_facts(method))])


def _facts(method: peft.Method) -> str:
  """Says what a method does beside others, and in which formats it is exported."""
  found = []
  if method.moves is not None or method.place is not None:
    found.append("trains the base's own weights: what it trains must not be quantised")
  if method.slots is not None:
    found.append("takes positions; one in a stack")
  elif method.positions:
    found.append("takes positions")
  found.append(f"exports: {', '.join(_formats(method)) or 'none'}")
  return "; ".join(found)


def _formats(method: peft.Method) -> list[str]:
  try:
    found = [choose.own_format(method)]
  except UserError:
    found = []
  return found + ["merged"] * (method.merge is not None and "merged" not in found)


def _union(name: str, parts: dict) -> str:
  return "\n".join([f"{name}: a stack of its parts", *_wrap(f"parts: {', '.join(parts)}")])


def _wrap(line: str) -> list[str]:
  return textwrap.wrap(line, WIDTH, initial_indent="  ", subsequent_indent="    ")
