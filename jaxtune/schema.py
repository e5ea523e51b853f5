"""What values from files and from the command line must be: types with ranges, checked in one way.

An annotation says what is expected: `steps: Count`, `Annotated[float, Ge(0)]`, or, for the entries
of a file, a TypedDict (that of `typing_extensions`, as pydantic asks). `check` compares a value
with it and words the error. So a config's keys, a model's config.json and an adapter's
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

# Of all sizes: jax counts in 32 bits. Of a seed it reads 32, so that 0 and 2**32 are one seed.
LARGEST = 2**31 - 1
Count = Annotated[int, Ge(1), Le(LARGEST)]
Natural = Annotated[int, Ge(0), Le(LARGEST)]
Width = Annotated[int, Ge(1), Le(2**20)]  # of arrays: XLA aborts where a product exceeds 64 bits
Seed = Natural
# Beyond these, float32 has no room for their products.
Finite = Annotated[float, Ge(-1e30), Le(1e30)]
NonNegative = Annotated[float, Ge(0), Le(1e30)]
Positive = Annotated[float, Gt(0), Le(1e30)]
Text = Annotated[str, MinLen(1)]
# Shares: without 1, from which nothing would be left; without 0; and strictly between them.
Rate = Annotated[float, Ge(0), Lt(1)]
Share = Annotated[float, Gt(0), Le(1)]
Fraction = Annotated[float, Gt(0), Lt(1)]

# Types are not converted, and NaN and infinity are no numbers. A TypedDict that states this as its
# __pydantic_config__ is checked alike; its unknown keys are left alone.
STRICT = pydantic.ConfigDict(strict=True, allow_inf_nan=False)

_SHOWN = reprlib.Repr()
_SHOWN.maxstring = _SHOWN.maxother = 80


def check(name: str, value: Any, expected: Any) -> None:
  """Raises UserError unless a value is what an annotation says.

  Args:
    name: of the value in the error, such as "train.steps" or "config.json: hidden_size"; where an
      entry within the value is wrong, its own name follows.
    expected: a type, a union, an `Annotated` type with bounds of `annotated_types`, or a TypedDict.
  """
  try:
    _adapter(expected).validate_python(value)
  except pydantic.ValidationError as error:
    raise UserError(_message(name, value, expected, error.errors(include_url=False))) from error


def check_arguments(function: Any, given: dict[str, Any], prefix: str = "") -> None:
  """Checks what is given to a function, or to a NamedTuple, against its annotations.

  Args:
    prefix: of the arguments' names in the error, such as "config key train.".
  """
  hints = _hints(function)
  for name, value in given.items():
    check(f"{prefix}{name}", value, hints[name])


def shown(value: Any) -> str:
  """Writes a value for an error message, long ones in part."""
  try:
    return _SHOWN.repr(value)
  except ValueError:  # a number of more digits than Python writes out
    return "a number of thousands of digits"


def parse_json(text: str | bytes, where: str | Path) -> Any:
  """Parses JSON that a stranger may have written.

  Raises:
    UserError: for what is no JSON, is nested too deeply to be read, has numbers of thousands of
      digits or holds half of a surrogate pair, which is no character.
  """
  try:
    text = text.decode("utf-8-sig") if isinstance(text, bytes) else text
    text.encode()
    found = json.loads(text)
    if "\\ud" in text.lower():
      json.dumps(found, ensure_ascii=False).encode()
    return found
  except json.JSONDecodeError as error:
    place = f"line {error.lineno}, " * ("\n" in text.strip()) + f"column {error.colno}"
    raise UserError(f"{where}: malformed JSON at {place}: {error.msg}") from error
  except UnicodeDecodeError as error:
    raise UserError(f"{where}: not UTF-8 text ({error.reason})") from error
  except UnicodeEncodeError as error:
    raise UserError(f"{where}: half a surrogate pair is no character") from error
  except RecursionError as error:
    raise UserError(f"{where}: JSON nested too deeply to be read") from error
  except ValueError as error:  # a number of more digits than Python converts
    raise UserError(f"{where}: JSON that cannot be read: {error}") from error


def read_json(path: Path) -> Any:
  """Reads a JSON file; see `parse_json`.

  Raises:
    UserError: also for a file that is missing or cannot be opened.
  """
  try:
    content = path.read_bytes()
  except (OSError, ValueError) as error:
    reason = getattr(error, "strerror", None) or error
    raise UserError(f"{path} cannot be read: {reason}") from error
  return parse_json(content, path)


@functools.cache
def _hints(function: Any) -> dict[str, Any]:
  return typing.get_type_hints(function, include_extras=True)


@functools.cache
def _adapter(expected: Any) -> pydantic.TypeAdapter:
  config = None if is_typeddict(expected) else STRICT
  return pydantic.TypeAdapter(_with_lists(expected), config=config)


def _with_lists(expected: Any) -> Any:
  """Lets a list stand where a tuple of any length is expected: JSON has no tuples."""
  origin, arguments = typing.get_origin(expected), typing.get_args(expected)
  if origin is tuple and arguments[1:] == (...,):
    return Sequence[arguments[0]]
  if origin is dict:
    return dict[arguments[0], _with_lists(arguments[1])]
  if origin in (typing.Union, types.UnionType):
    return typing.Union[tuple(map(_with_lists, arguments))]  # noqa: UP007
  return expected


def _message(name: str, value: Any, expected: Any, errors: list[dict]) -> str:
  """Words one entry that is wrong: its name, its value and all that it might have been."""
  at = max((_path(value, error) for error in errors), key=len)  # of a union's, the nearest
  own = [error for error in errors if _path(value, error) == at]
  is_key = own[0]["loc"][-1:] == ("[key]",)
  owner = at[:-1] if is_key else at
  place = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in owner)
  if name.endswith(".json") and place.startswith("."):  # an entry of a file
    place = ": " + place[1:]
  if own[0]["type"] == "missing":
    return f"{name}{place} is missing"
  for key in owner:
    value = value[key]
  value = at[-1] if is_key else value
  wanted = dict.fromkeys(_wanted(error) for error in own)
  if not at and type(None) in typing.get_args(expected):  # which pydantic leaves out
    wanted["None"] = None
  choices = [word for error in own for word in re.findall("'(.*?)'", _literals(error))]
  close = f". {nearest(value, choices)}" if isinstance(value, str) and choices else ""
  return (
    f"{name}{place} {'has the key' if is_key else 'is'} {shown(value)} ({type(value).__name__}), "
    f"expected {' or '.join(wanted)}{close if 'Did you' in close else ''}"
  )


def _literals(error: dict) -> str:
  return error["ctx"]["expected"] if error["type"] == "literal_error" else ""


def _path(value: Any, error: dict) -> tuple:
  """Keeps of pydantic's location what leads into the value; it also names members of unions."""
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


def _wanted(error: dict) -> str:
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
