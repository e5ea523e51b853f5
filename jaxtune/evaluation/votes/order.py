"""Which answer stands on the left, and which pair comes next: pure functions of a seed."""

from __future__ import annotations

import hashlib
from typing import Literal

Source = Literal["a", "b"]


def left(seed: int, rater: str, pair: int) -> Source:
  """Returns which of the two answers of a pair a rater sees on the left, each half of the time."""
  return "ab"[_digest(seed, rater, pair)[0] & 1]


def pairs(seed: int, count: int) -> list[int]:
  """Returns the numbers of the pairs, from 1, in the order in which all raters judge them.

  One order for all: raters who stop early have then judged the same pairs, and can be compared.
  """
  return sorted(range(1, count + 1), key=lambda pair: _digest(seed, pair))


def _digest(*parts: int | str) -> bytes:
  return hashlib.sha256(repr(parts).encode()).digest()
