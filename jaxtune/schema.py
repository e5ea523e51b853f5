"""Checks values from files and from the command line against annotations: types with ranges.

An annotation says what is expected: `steps: Count`, `Annotated[float, Ge(0)]`, or, for the entries
of a file, a TypedDict (of `typing_extensions`, as pydantic requires). `check` compares a value with
it and words the error. So the keys of a config, of a model's config.json and of an adapter's
adapter_config.json are declared, and not checked line by line.
"""

from __future__ import annotations

import functools
import json
import re
import reprlib
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import pydantic
from annotated_types import Ge, Gt, Le, Lt, MinLen
from typing_extensions import is_typeddict

from jaxtune.errors import UserError, nearest

# JAX counts in 32 bits. It also reads 32 bits of a seed, so 0 and 2**32 would be the same seed.
LARGEST = 2**31 - 1
Count = Annotated[int, Ge(1), Le(LARGEST)]
Natural = Annotated[int, Ge(0), Le(LARGEST)]
Width = Annotated[int, Ge(1), Le(2**20)]  # of an axis: XLA aborts where a size exceeds 64 bits
Seed = Natural
# Products of larger numbers would overflow float32.
Finite = Annotated[float, Ge(-1e30), Le(1e30)]
NonNegative = Annotated[float, Ge(0), Le(1e30)]
Positive = Annotated[float, Gt(0), Le(1e30)]
Text = Annotated[str, MinLen(1)]
# Numbers from 0 to 1: a rate may be 0, a share may be 1, and a fraction neither.
Rate = Annotated[float, Ge(0), Lt(1)]
Share = Annotated[float, Gt(0), Le(1)]
Fraction = Annotated[float, Gt(0), Lt(1)]

# No type is converted to another, and NaN and infinity are refused. A TypedDict needs this as its
# __pydantic_config__ to be checked in the same way; keys that it does not declare are accepted.
STRICT = pydantic.ConfigDict(strict=True, allow_inf_nan=False)


def check(name: str, value: Any, expected: Any) -> None:
  """Raises UserError unless a value is what an annotation says.

  Args:
    name: of the value in the error, such as "train.steps" or "config.json: hidden_size"; the name
      of an entry within the value that is wrong follows it.
    expected: a type, a union, an `Annotated` type with bounds of `annotated_types`, or a TypedDict.
  """
  try:
    _adapter(expected).validate_python(value)
  except pydantic.ValidationError as error:
    raise UserError(_message(name, value, expected, error.errors(include_url=False))) from error


def check_arguments(function: Any, given: dict[str, Any], prefix: str = "") -> None:
  """Checks the arguments of a function, or of a NamedTuple, against its annotations.

  Args:
    prefix: is put before the arguments' names in the error, such as "config key train.".
  """
  hints = typing.get_type_hints(function, include_extras=True)
  for name, value in given.items():
    check(f"{prefix}{name}", value, hints[name])


def shown(value: Any) -> str:
  """Writes a value for an error message, and only parts of a long one."""
  writer = reprlib.Repr()
  writer.maxstring = writer.maxother = 80
  try:
    return writer.repr(value)
  except ValueError:  # a number of more digits than Python writes out
    return "a number of thousands of digits"


def parse_json(text: str | bytes, where: str | Path) -> Any:
  """Parses JSON of any origin.

  Raises:
    UserError: for what is not JSON, is nested too deeply, has numbers of thousands of digits or
      half of a surrogate pair, which is not a character.
  """
  try:
    text = text.decode("utf-8-sig") if isinstance(text, bytes) else text
    text.encode()
    content = json.loads(text)
    if "\\ud" in text.lower():
      json.dumps(content, ensure_ascii=False).encode()
    return content
  except json.JSONDecodeError as error:
    position = f"line {error.lineno}, " * ("\n" in error.doc.strip()) + f"column {error.colno}"
    raise UserError(f"{where}: malformed JSON at {position}: {error.msg}") from error
  except UnicodeDecodeError as error:
    raise UserError(f"{where}: not UTF-8 text ({error.reason})") from error
  except UnicodeEncodeError as error:
    raise UserError(f"{where}: half a surrogate pair is not a character") from error
  except RecursionError as error:
    raise UserError(f"{where}: JSON nested too deeply to be read") from error
  except ValueError as error:  # a number of more digits than Python converts
    raise UserError(f"{where}: JSON that cannot be read: {error}") from error


def read_json(path: Path, expected: Any = Any, fix: str = "") -> Any:
  """Reads a JSON file; see `parse_json`.

  Args:
    expected: what it holds; see `check`.
    fix: what to do about a file that was damaged, or edited, for the end of the error.

  Raises:
    UserError: also if the file is missing or cannot be opened.
  """
  try:
    content = parse_json(path.read_bytes(), path)
    check(str(path), content, expected)
    return content
  except UserError as error:
    if not fix:
      raise
    raise UserError(f"{error}; {fix}") from error
  except (OSError, ValueError) as error:
    reason = getattr(error, "strerror", None) or error
    raise UserError(f"{path} cannot be read: {reason}") from error


@functools.cache
def _adapter(expected: Any) -> pydantic.TypeAdapter:
  config = None if is_typeddict(expected) else STRICT
  return pydantic.TypeAdapter(_with_lists(expected), config=config)


def _with_lists(expected: Any) -> Any:
  """Replaces tuples of any length by sequences in an annotation, as JSON has lists only."""
  origin, arguments = typing.get_origin(expected), typing.get_args(expected)
  if origin is tuple and arguments[1:] == (...,):
    return Sequence[arguments[0]]
  if origin is dict:
    return dict[arguments[0], _with_lists(arguments[1])]
  if origin in (typing.Union, types.UnionType):
    return typing.Union[tuple(map(_with_lists, arguments))]  # noqa: UP007
  return expected


def _message(name: str, value: Any, expected: Any, errors: Sequence[Any]) -> str:
  """Words the error for one wrong entry: its name, its value and what was expected."""
  # A union has errors for each member: those of the member that fits best lie deepest.
  at = max((_path(value, error) for error in errors), key=len)
  deepest = [error for error in errors if _path(value, error) == at]
  is_key = deepest[0]["loc"][-1:] == ("[key]",)
  owner = at[:-1] if is_key else at
  entry = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in owner)
  if name.endswith(".json") and entry.startswith("."):
    entry = ": " + entry[1:]
  if deepest[0]["type"] == "missing":
    return f"{name}{entry} is missing"
  for key in owner:
    value = value[key]
  value = at[-1] if is_key else value
  wanted = dict.fromkeys(_wanted(error) for error in deepest)
  if not at and type(None) in typing.get_args(expected):  # pydantic does not name it
    wanted["None"] = None
  literals = [error["ctx"]["expected"] for error in deepest if error["type"] == "literal_error"]
  choices = re.findall("'(.*?)'", " ".join(literals))
  close = f"; {nearest(value, choices)}" if isinstance(value, str) and choices else ""
  return (
    f"{name}{entry} {'has the key' if is_key else 'is'} {shown(value)} ({type(value).__name__}), "
    f"expected {' or '.join(wanted)}{close if 'did you' in close else ''}"
  )


def _path(value: Any, error: Any) -> tuple:
  """Returns the keys that lead to the wrong entry: pydantic's location also has union members."""
  path = []
  for key in error["loc"]:
    inside = isinstance(value, dict) and key in value
    inside |= isinstance(value, list | tuple) and isinstance(key, int) and key < len(value)
    if inside:
      value = value[key]
      path.append(key)
  if error["type"] == "missing":
    path.append(error["loc"][-1])
  return tuple(path)


def _wanted(error: Any) -> str:
  """Says what one of pydantic's errors expected."""
  for bound, words in (("ge", "at least"), ("gt", "above"), ("le", "at most"), ("lt", "below")):
    if bound in error.get("ctx", {}):
      return f"{words} {error['ctx'][bound]:.15g}"
  if error["type"] == "string_too_short":
    return "text that is not empty"
  words = error["msg"].removeprefix("Input should be ").removeprefix("a valid ")
  if "Sequence" in words or words == "tuple":
    words = "list"
  names = {"none": "None", "string": "text", "integer": "int", "number": "float"}
  return (names | {"boolean": "bool", "dictionary": "dict"}).get(words.lower(), words)
