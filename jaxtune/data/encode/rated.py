"""Several answers to a prompt, which people rated on a scale or ranked, as pairs of answers.

A row has `completions`, a list of answers, and a list of as many numbers: `ratings`, the larger the
better, or `ranking`, 1 for the best, where answers may share a rank.
"""

from __future__ import annotations

import itertools
import math
import numbers
from typing import Any

from jaxtune.data.sources import Table
from jaxtune.errors import UserError

ANSWERS = "completions"
SCORES = ("ratings", "ranking")


def pairs(table: Table, malformed: str) -> tuple[Table, list[list[tuple[int, float]]], int]:
  """Makes a row with `chosen` and `rejected` of every two answers of a row that differ.

  Returns:
    The table of these rows; for each row that was read its pairs, (number of a row, by how much
    the chosen answer is rated higher, or ranks before the rejected one; 0 for a tie); and how many
    rows are malformed.

  Raises:
    UserError: rows without ratings and ranking; one that does not rate or rank all of at least two
      different answers, unless malformed is "skip".
  """
  known = [name for name in SCORES if name in table.columns]
  if len(known) != 1:
    raise UserError(
      f"completions come with {' and '.join(known) or 'neither ratings nor ranking'}, expected "
      "one list beside them: ratings (the larger the better) or ranking (1 for the best)"
    )
  rows: list[dict] = []
  where: list[str] = []
  found, bad = [], 0
  for row, place in zip(table.rows, table.where, strict=True):
    try:
      made = _compared(row, known[0])
    except UserError as error:
      if malformed == "error":
        raise UserError(f"{place}: {error}") from error
      bad += 1
      continue
    found.append([(len(rows) + at, difference) for at, (_, difference) in enumerate(made)])
    rows += [pair for pair, _ in made]
    where += [place] * len(made)
  return table._replace(rows=rows, where=where), found, bad


def _compared(row: dict, column: str) -> list[tuple[dict, float]]:
  """Returns every two different answers of a row, the better one first, with their difference."""
  answers, scores = _checked(row, column)
  rest = {name: value for name, value in row.items() if name not in (ANSWERS, column)}
  made = []
  for i, j in itertools.combinations(range(len(answers)), 2):
    better, worse = (i, j) if scores[i] >= scores[j] else (j, i)
    difference = scores[better] - scores[worse]
    if difference or answers[i] != answers[j]:
      pair = {"chosen": answers[better], "rejected": answers[worse]}
      made.append((rest | pair, difference))
  if not made:
    raise UserError("all completions are the same answer: leave the row out")
  return made


def _checked(row: dict, column: str) -> tuple[list, list[float]]:
  """Returns a row's answers, and a number for each, the larger the better."""
  answers, given = row.get(ANSWERS), row.get(column)
  for name, value in ((ANSWERS, answers), (column, given)):
    if not isinstance(value, list | tuple):
      raise UserError(f"{name} is {type(value).__name__}, expected a list")
  if len(answers) < 2 or len(given) != len(answers):
    raise UserError(
      f"{len(answers)} completions with {len(given)} {column}, expected two or more with as many"
    )
  for value in given:
    if not _is_score(value, column):
      expected = "a whole number from 1" if column == "ranking" else "a number"
      raise UserError(f"{column} holds {value!r}, expected {expected} for every completion")
  sign = -1.0 if column == "ranking" else 1.0
  return list(answers), [sign * value for value in given]


def _is_score(value: Any, column: str) -> bool:
  if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value):
    return False
  return column == "ratings" or (value >= 1 and value == int(value))
