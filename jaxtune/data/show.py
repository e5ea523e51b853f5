"""Shows data as a model sees them: examples with what is trained marked, counts, duplicates."""

from __future__ import annotations

import itertools
import os
import sys
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from jaxtune.data import Data, describe
from jaxtune.data.divide import normalise
from jaxtune.data.split import Split
from jaxtune.data.tokenizer import Tokenizer
from jaxtune.data.views import View


def show(
  data: Data, view: View, tokenizer: Tokenizer, count: int = 3, colour: bool | None = None
) -> str:
  """Writes the counts of every split, its lengths, duplicates and labels, and its first examples.

  What is trained is green where `colour` is on, else in [[double brackets]]; None: on when the
  output is a terminal and NO_COLOR is not set. Of streamed training data nothing is shown.

  Args:
    view: how the objective's examples are shown.
    count: examples of each split.
  """
  if colour is None:
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
  mark = (lambda text: f"\033[1;32m{text}\033[0m") if colour else (lambda text: f"[[{text}]]")
  splits = {name: split for name, split in data.splits.items() if isinstance(split, Split)}
  texts = {name: list(map(normalise, view.texts(s, tokenizer))) for name, s in splits.items()}
  paragraphs = [describe(data)]
  for name, split in splits.items():
    again = len(texts[name]) - len(set(texts[name]))
    lines = [f"== {name} ==", *_histogram(_lengths(split))]
    lines.append(f"duplicates: {again:,} (text equal but for case, width and whitespace)")
    if view.labels is not None:
      lines += [*_contradictions(split, texts[name], view), *view.labels(split)]
    paragraphs.append("\n".join(lines))
  overlap = []
  for left, right in itertools.combinations(texts, 2):
    right_texts = set(texts[right])
    shared = sum(text in right_texts for text in texts[left])
    overlap.append(f"overlap: {shared:,} of {left} are in {right} too")
  paragraphs.append("\n".join(overlap))
  for name, split in splits.items():
    for at in range(min(count, len(split.where))):
      paragraphs.append(
        f"-- {name}: {split.where[at]} --\n{view.example(split, tokenizer, at, mark)}"
      )
  return "\n\n".join(filter(None, paragraphs)) + "\n"


def _lengths(split: Split) -> np.ndarray:
  """Returns the number of tokens of each example, also of those in packed rows."""
  if "segments" in split.arrays:
    return np.concatenate([np.bincount(row)[1:] for row in split.arrays["segments"]])
  return sum(split.lengths.values())


def _histogram(lengths: np.ndarray) -> list[str]:
  """Draws how many examples have how many tokens, in up to 8 bars of up to 40 characters."""
  low, high = int(lengths.min()), int(lengths.max())
  middle, most = (int(np.percentile(lengths, q, method="nearest")) for q in (50, 95))
  lines = [
    f"{lengths.size:,} examples; tokens of each: {low} to {high}, median {middle}, "
    f"95 % up to {most}"
  ]
  step = -(-(high - low + 1) // 8)
  counts = np.bincount((lengths - low) // step)
  wide = len(str(high))
  for number, count in enumerate(counts):
    first = low + number * step
    bar = "#" * -(-40 * int(count) // int(counts.max()))
    last = min(first + step - 1, high)
    lines.append(f"  {first:>{wide}} to {last:>{wide}}  {bar:<40} {count:,}")
  return lines


def _contradictions(split: Split, texts: Sequence[str], view: View) -> list[str]:
  """Counts the texts that have different labels in several examples."""
  labels = defaultdict(set)
  for text, names in zip(texts, getattr(split, view.label), strict=True):
    labels[text].add(tuple(names))
  several = sum(len(different) > 1 for different in labels.values())
  return [f"{view.contradictions}: {several:,}"] if several else []
