"""What answers of configs/feedback.py are truly worth: complete and short descriptions."""

from __future__ import annotations

from collections.abc import Sequence

WORDS = 40  # so many words cost as much as all facts bring


def complete_and_short(
  prompts: Sequence[str], completions: Sequence[str], rows: Sequence[dict]
) -> list[float]:
  """Returns the share of a restaurant's facts that a text mentions, less its words / 40."""
  return [worth(text, row["input"]) for text, row in zip(completions, rows, strict=True)]


def worth(text: str, facts: str) -> float:
  """Judges one text by facts such as "name: The Humble Kite; food: Moroccan"."""
  values = [fact.partition(": ")[2].lower() for fact in facts.split("; ")]
  mentioned = sum(value in text.lower() for value in values)
  return mentioned / len(values) - len(text.split()) / WORDS
