"""Matches regular expressions of configs and foreign adapters, within limits of size and time."""

from __future__ import annotations

import functools
import math
import re
import warnings
from typing import Any

import regex

from jaxtune.errors import UserError
from jaxtune.schema import shown

SECONDS = 0.2  # that one match may take
LONGEST = 1000  # characters that a pattern may have
# The largest product of all counts such as {3}: `regex` writes each repetition out.
REPEATS = 1000


def fullmatch(pattern: str, text: str, before: str = "", after: str = "") -> Any | None:
  """Matches a whole text, as `re.fullmatch` does.

  Args:
    before, after: trusted patterns that are put around the given one.

  Raises:
    UserError: for a pattern that is no regular expression, is too large, or takes longer than
      `SECONDS`.
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
      warnings.simplefilter("ignore")  # of syntax that a later Python may read differently
      re.compile(pattern)  # `regex` accepts more than `re`, with which PEFT reads patterns
      return regex.compile(f"{before}(?:{pattern}){after}")
  except (re.error, regex.error, RecursionError, OverflowError) as error:
    raise UserError(f"pattern {shown(pattern)} is not a regular expression: {error}") from error
