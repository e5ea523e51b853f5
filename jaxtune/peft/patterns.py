"""Regular expressions that users and strangers write, with bounds on their size and their time."""

from __future__ import annotations

import functools
import math
import re
import warnings
from typing import Any

import regex

from jaxtune.errors import UserError
from jaxtune.schema import shown

SECONDS = 0.2  # of one match
LONGEST = 1000  # characters of a pattern
REPEATS = 1000  # the product of all counts such as {3}: `regex` writes each repetition out


def fullmatch(pattern: str, text: str, before: str = "", after: str = "") -> Any | None:
  """Matches a whole text, as `re.fullmatch` does.

  Args:
    before, after: patterns of our own that stand around the one given.

  Raises:
    UserError: for a pattern that is none, is very large, or takes longer than `SECONDS`.
  """
  try:
    return _compiled(pattern, before, after).fullmatch(text, timeout=SECONDS)
  except TimeoutError as error:
    raise UserError(
      f"pattern {shown(pattern)} takes longer than {SECONDS:g} s to compare with {shown(text)}: "
      "expected one without repetitions inside of repetitions"
    ) from error


@functools.lru_cache(1024)
def _compiled(pattern: str, before: str, after: str) -> Any:
  found = re.findall(r"\{(\d*),?(\d*)\}", pattern[:LONGEST])
  counts = [max(1, min(int(n), REPEATS + 1)) for pair in found for n in pair if n]
  if len(pattern) > LONGEST or math.prod(counts) > REPEATS:
    raise UserError(
      f"pattern {shown(pattern)} is too large: expected at most {LONGEST} characters, and counts "
      f"such as {{3}} whose product is at most {REPEATS}"
    )
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")  # of what other versions might read otherwise
      re.compile(pattern)  # `regex` knows more than `re`, by which PEFT reads patterns
      return regex.compile(f"{before}(?:{pattern}){after}")
  except (re.error, regex.error, RecursionError, OverflowError) as error:
    raise UserError(f"pattern {shown(pattern)} is not a regular expression: {error}") from error
