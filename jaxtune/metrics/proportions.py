"""Intervals of proportions."""

from __future__ import annotations

import math

_Z = 1.959963984540054  # the 97.5th percentile of the normal distribution


def wilson(count: float, of: float) -> tuple[float, float]:
  """Returns the 95 % interval of the share count / of (Wilson 1927), from 0 to 1; NaN of nothing.

  Args:
    count: how many of them; a half where one counts half.
  """
  if not of:
    return math.nan, math.nan
  share, square = count / of, _Z**2 / of
  middle = (share + square / 2) / (1 + square)
  half = _Z / (1 + square) * math.sqrt(share * (1 - share) / of + square / (4 * of))
  return max(min(middle - half, share), 0.0), min(max(middle + half, share), 1.0)  # rounded
