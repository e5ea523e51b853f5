"""What answers of configs/feedback.py are truly worth: titles of the right tone, and short ones."""

from __future__ import annotations

from collections.abc import Sequence

TONES = ("Terrible", "Disappointing", "Average", "Good", "Perfect")  # by the stars of a review
WORDS = 10  # so many words cost as much as the right tone brings


def right_and_short(
  prompts: Sequence[str], completions: Sequence[str], rows: Sequence[dict]
) -> list[float]:
  """Returns how near a title's tone is to its review's stars, less its words / 10."""
  return [worth(text, row["stars"]) for text, row in zip(completions, rows, strict=True)]


def right_tone(
  prompts: Sequence[str], completions: Sequence[str], rows: Sequence[dict]
) -> list[float]:
  """Returns how near a title's tone is to its review's stars: 1 if right, 0 if opposite or none."""
  return [tone(text, row["stars"]) for text, row in zip(completions, rows, strict=True)]


def worth(text: str, stars: int) -> float:
  return tone(text, stars) - len(text.split()) / WORDS


def tone(text: str, stars: int) -> float:
  """Judges the first word of a title."""
  first = (text.split() or [""])[0].strip(":.,!")
  return 1 - abs(TONES.index(first) + 1 - stars) / 4 if first in TONES else 0.0
