"""Checks the cells of a row: texts, classes and the names of columns."""

from __future__ import annotations

import datetime
import decimal
import math
from collections.abc import Iterable
from typing import Any

from jaxtune import schema
from jaxtune.errors import UserError, nearest


def is_text(value: object) -> bool:
  """Tells whether a value can be written as text in one way: text, finite numbers, dates, times.

  Of other values it is not known what the data's author would have written. Some libraries store a
  missing text as NaN, true is "True" in Python and "true" in JSON, and lists, objects and bytes
  have no form but Python's.
  """
  texts = (str, int, float, decimal.Decimal, datetime.date, datetime.time)
  if isinstance(value, bool) or not isinstance(value, texts):
    return False
  return not isinstance(value, float | decimal.Decimal) or math.isfinite(value)


def check_column(column: str, row: dict) -> Any:
  """Returns a cell; raises UserError for a column that is missing or null."""
  if row.get(column) is None:
    raise UserError(missing_column_message(column, row))
  return row[column]


def check_text(column: str, row: dict) -> str:
  """Returns a cell as text.

  Raises:
    UserError: for a column that is missing or null, or that holds no text.
  """
  value = check_column(column, row)
  if not is_text(value):
    raise UserError(not_text_message(f"column {column!r} holds", value))
  return str(value)


def check_class(column: str, row: dict) -> str | int:
  """Returns a cell as the name or the number of a class: a text, a whole number, true or false.

  Raises:
    UserError: for a column that is missing, null or holds something else, such as 1.5.
  """
  value = check_column(column, row)
  if isinstance(value, float) and value.is_integer():
    value = int(value)
  if not isinstance(value, str | int) or not str(value).strip():
    raise UserError(
      f"column {column!r} holds {schema.shown(value)}, expected a label's name or whole number"
    )
  return value.strip() if isinstance(value, str) else value


def check_characters(what: str, text: str) -> None:
  """Raises UserError if a text holds half of a surrogate pair, which no tokenizer accepts."""
  try:
    text.encode()
  except UnicodeEncodeError as error:
    raise UserError(f"{what} holds half a surrogate pair, which is no character") from error


def not_text_message(what: str, value: object) -> str:
  """Words the error for a value that is no text; `what` begins it: "the template prints"."""
  return (
    f"{what} {schema.shown(value)} ({type(value).__name__}), expected text or a number; a Jinja "
    "template can make one of it"
  )


def missing_column_message(name: str, columns: Iterable[str]) -> str:
  """Words the error for a column that is missing or null; it names the columns that there are."""
  columns = list(columns)
  if not columns:
    return f"column {name!r} is missing; the row has no columns"
  if name in columns:
    return f"column {name!r} holds null, expected a value"
  return f"column {name!r} is missing; there are {', '.join(columns)}; {nearest(name, columns)}"
