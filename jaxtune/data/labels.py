"""The names and numbers of classes and tags, and the examples that have one of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from jaxtune.data.templates import Example
from jaxtune.errors import UserError, nearest

Checked = TypeVar("Checked")


def names(values: Iterable, labels: Sequence[str] | None) -> list[str]:
  """Lists the names of the classes: `labels`, or those that occur, sorted.

  They are sorted as numbers if all are whole numbers.

  Raises:
    UserError: if a name comes twice in `labels`, or if fewer than two occur.
  """
  if labels is not None:
    listed = list(map(str, labels))
    for name in listed:
      if listed.count(name) > 1:
        raise UserError(f"data.labels names {name!r} twice")
    return listed
  present = {written(value) for value in values}
  if len(present) < 2:
    raise UserError(
      f"the examples have only one label, {''.join(present)!r}, expected two or more: set "
      "data.labels to all there are"
    )
  return sorted(present, key=_number_first if all(map(_whole, present)) else str)


def _number_first(name: str) -> tuple[int, str]:
  return int(name), name  # "1" and "01" are two names


def index(value: object, names: Sequence[str], numbered: bool = True) -> int:
  """Returns the number of a label, given by its name, or by its number if no name is a number.

  Args:
    numbered: False refuses numbers, as the order of the names is that of the alphabet alone.
  """
  name = written(value)
  if name in names:
    return names.index(name)
  if _is_number(name, names):
    if numbered:
      return int(name)
    raise UserError(
      f"the label {value!r} is a number, expected one of the names that train has: set data.labels "
      "to the names in the order of the numbers"
    )
  raise UserError(f"the label {value!r} is not in the set; {nearest(name, names)}")


def with_names(examples: Sequence[Example], names: Sequence[str] | None) -> list[Example]:
  """Writes the numbers of classes and tags as their names, by which splits are compared."""

  def named(answer: str) -> str:
    words = answer.split(" ")
    known = all(_is_number(word, names) for word in words)
    return " ".join(names[int(word)] for word in words) if known else answer

  if names is None:
    return list(examples)
  return [one._replace(answers=[*map(named, one.answers or ())]) for one in examples]


def checked(
  examples: Sequence[Example], check: Callable[[Example], Checked], malformed: str
) -> tuple[list[tuple[Example, Checked]], int]:
  """Applies `check` to every example.

  Returns:
    ([(example, what `check` returned)], for how many examples it raised UserError).

  Raises:
    UserError: if `check` raises it and `malformed` is "error"; it names the example's place.
  """
  pairs = []
  for example in examples:
    try:
      pairs.append((example, check(example)))
    except UserError as error:
      if malformed == "error":
        raise UserError(f"{example.where}: {error}") from error
  return pairs, len(examples) - len(pairs)


def _is_number(name: str, names: Sequence[str]) -> bool:
  """Says whether a label is the number of one of the names, none of which is a number itself."""
  return _whole(name) and not any(map(_whole, names)) and 0 <= int(name) < len(names)


def _whole(name: str) -> bool:
  return name.removeprefix("-").isdecimal() and len(name) < 20


def written(value: object) -> str:
  """Returns the name of a label: whole numbers are written without a point."""
  return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
