"""The list of methods that `jaxtune methods` prints, read from the methods themselves."""

from __future__ import annotations

import inspect
import pkgutil
import textwrap

from jaxtune import peft
from jaxtune.errors import UserError
from jaxtune.formats import choose
from jaxtune.peft import methods, unions

END = """\
* Trials that differ only in these options, the seed and the optimizer's numbers share a compiled
  program.
Methods can be combined: method = {"name": "stack", "lora": {"rank": 8}, "prefix": {"length": 10}}.
Every method has the option `start`: the folder of a run or of an adapter whose training goes on.
model.quantize = "int8" or "nf4" stores the frozen kernels in 8 or 4 bits, for every method that
does not train them directly."""


def text() -> str:
  """Lists every method with its equation, paper, options, limits and export formats."""
  names = [m.name for m in pkgutil.iter_modules(methods.__path__)]
  blocks = [_method(name) for name in names]
  blocks += [
    f"{name}: the stack of {', '.join(sections)}, whose sections are its options"
    for name, sections in unions.UNIONS.items()
  ]
  return "\n\n".join([*blocks, END])


def _method(name: str) -> str:
  constructor = peft.constructor(name)
  method = peft.build({"name": name})[0]
  options = [
    f"{option}{'*' * (option in method.groupable)}={parameter.default!r}"
    for option, parameter in inspect.signature(constructor).parameters.items()
  ]
  lines = [f"{name}: {inspect.getdoc(inspect.getmodule(constructor)).splitlines()[0]}"]
  lines += _wrap("options: " + ", ".join(options)) if options else []
  return "\n".join([*lines, *_wrap(_facts(method))])


def _facts(method: peft.Method) -> str:
  """States the limits of a method, and the formats in which it is exported."""
  facts = []
  if method.trains is not None or method.overwrite is not None:
    facts.append("trains weights of the base, which must not be quantised")
  if method.prepends or method.positions:
    facts.append("uses some of the model's positions")
  if method.prepends:
    facts.append("a stack can have one such method")
  facts.append(f"export formats: {', '.join(_formats(method)) or 'none'}")
  return "; ".join(facts)


def _formats(method: peft.Method) -> list[str]:
  formats = ["peft"] * (method.kind == "norms") + ["merged"] * (method.merge is not None)
  try:
    return list(dict.fromkeys([choose.own_format(method), *formats]))
  except UserError:
    return formats


def _wrap(line: str) -> list[str]:
  return textwrap.wrap(line, 100, initial_indent="  ", subsequent_indent="    ")
