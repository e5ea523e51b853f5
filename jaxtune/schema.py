"""What values from files and from the command line must be: types with ranges, checked in one way.

An annotation says what is expected: `steps: Count`, `Annotated[float, Ge(0)]`, or, for the entries
of a file, a TypedDict (that of `typing_extensions`, as pydantic asks). `check` compares a value
with it and words the error. So a config's keys, a model's config.json and an adapter's
adapter_config.json are declared, and not checked line by line.
"""

from __future__ import annotations

import functools
import json
import reprlib
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import pydantic
from annotated_types import Ge, Le, Lt
from typing_extensions import is_typeddict

from jaxtune.errors import UserError

# Of all sizes: jax counts in 32 bits.
LARGEST = 2**31 - 1
Count = Annotated[int, Ge(1), Le(LARGEST)]
Natural = Annotated[int, Ge(0), Le(LARGEST)]
Rate = Annotated[float, Ge(0), Lt(1)]
Seed = Annotated[int, Ge(-(2**63)), Lt(2**63)]
NonNegative = Annotated[float, Ge(0), Le(1e30)]
# Beyond these, float32 has no room for their products.
Finite = Annotated[float, Ge(-1e30), Le(1e30)]

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
def _adapter(expected: Any) -> pydantic.TypeAdapter:
  config = None if is_typeddict(expected) else STRICT
  return pydantic.TypeAdapter(_with_lists(expected), config=config)


def _with_lists(expected: Any) -> Any:
  """Lets a list stand where a tuple of any length is expected: JSON has no tuples."""
  origin, arguments = typing.get_origin(expected), typing.get_args(expected)
  if origin is tuple and arguments[1:] == (...,):
    return Sequence[arguments[0]]
  if origin in (typing.Union, types.UnionType):
    return typing.Union[tuple(map(_with_lists, arguments))]  # noqa: UP007
  return expected


def _message(name: str, value: Any, expected: Any, errors: list[dict]) -> str:
  """Words one entry that is wrong: its name, its value and all that it might have been."""
  at = max((_path(value, error["loc"]) for error in errors), key=len)  # of a union's, the nearest
  own = [error for error in errors if _path(value, error["loc"]) == at]
  place = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in at)
  if own[0]["type"] == "missing":
    return f"{name}{place} is missing"
  for key in at:
    value = value[key]
  wanted = dict.fromkeys(_wanted(error) for error in own)
  if not at and type(None) in typing.get_args(expected):  # which pydantic leaves out
    wanted["None"] = None
  return f"{name}{place} is {shown(value)} ({type(value).__name__}), expected {' or '.join(wanted)}"


def _path(value: Any, location: tuple) -> tuple:
  """Keeps of pydantic's location what leads into the value; it also names members of unions."""
  path = []
  for number, key in enumerate(location):
    inside = isinstance(value, dict) and key in value
    inside |= isinstance(value, list | tuple) and isinstance(key, int) and key < len(value)
    if inside:
      value = value[key]
      path.append(key)
    elif isinstance(value, dict) and number == len(location) - 1:
      path.append(key)  # an entry that is missing
  return tuple(path)


def _wanted(error: dict) -> str:
  words = error["msg"].removeprefix("Input should be ").removeprefix("a valid ")
  words = words.replace("greater than or equal to", "at least")
  if "Sequence" in words or words == "tuple":
    words = "list"
  words = words.replace("less than or equal to", "at most").replace("less than", "below")
  names = {"none": "None", "string": "text", "integer": "int", "number": "float"}
  return (names | {"boolean": "bool", "dictionary": "dict"}).get(words.lower(), words)
