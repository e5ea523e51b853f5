"""Data as a model sees them, for people: examples with what is trained marked, counts, doubles."""

from __future__ import annotations

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

_BINS = 8
_BAR = 40  # characters of the longest bar


def show(
  data: Data, view: View, tokenizer: Tokenizer, count: int = 3, colour: bool | None = None
) -> str:
  """Prints the counts of every split, its lengths, doubles and classes, and its first examples.

  What is trained is green where `colour` is on, else in [[double brackets]]; None: on when the
  output is a terminal and NO_COLOR is not set.

  Args:
    view: how the objective's examples are shown.
    count: examples of each split.
  """
  if colour is None:
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
  mark = (lambda text: f"\033[1;32m{text}\033[0m") if colour else (lambda text: f"[[{text}]]")
  splits = {name: getattr(data, name) for name in ("train", "validation", "test")}
  splits = {name: split for name, split in splits.items() if split is not None}
  texts = {name: list(map(normalise, view.texts(s, tokenizer))) for name, s in splits.items()}
  paragraphs = [describe(data)]
  for name, split in splits.items():
    lines = [f"== {name} ==", *_histogram(_lengths(split)), *_duplicates(texts[name])]
    if view.labels is not None:
      lines += [*_contradictions(split, texts[name]), *view.labels(split)]
    paragraphs.append("\n".join(lines))
  paragraphs.append("\n".join(_overlap(texts)))
  for name, split in splits.items():
    for at in range(min(count, len(split.where))):
      paragraphs.append(
        f"-- {name}: {split.where[at]} --\n{view.example(split, tokenizer, at, mark)}"
      )
  return "\n\n".join(filter(None, paragraphs)) + "\n"


def _lengths(split: Split) -> np.ndarray:
  """Counts the tokens of each example, of its longest choice, or of each packed example."""
  if "segments" in split.arrays:
    counts = [np.bincount(row)[1:] for row in split.arrays["segments"]]
    return np.concatenate(counts) if counts else np.zeros(0, int)
  lengths = split.arrays["mask"].sum(-1)
  lengths = lengths.max(-1) if lengths.ndim == 2 else lengths
  return lengths + split.arrays["inputs_mask"].sum(-1) if "inputs" in split.arrays else lengths


def _histogram(lengths: np.ndarray) -> list[str]:
  if not lengths.size:
    return ["no examples"]
  low, high = int(lengths.min()), int(lengths.max())
  middle, most = (int(np.percentile(lengths, q, method="nearest")) for q in (50, 95))
  lines = [
    f"{lengths.size:,} examples; tokens of each: {low} to {high}, median {middle}, "
    f"95 % up to {most}"
  ]
  step = -(-(high - low + 1) // _BINS)
  counts = np.bincount((lengths - low) // step)
  wide = len(str(high))
  for number, count in enumerate(counts):
    first = low + number * step
    bar = "#" * -(-_BAR * int(count) // int(counts.max()))
    last = min(first + step - 1, high)
    lines.append(f"  {first:>{wide}} to {last:>{wide}}  {bar:<{_BAR}} {count:,}")
  return lines


def _duplicates(texts: Sequence[str]) -> list[str]:
  again = len(texts) - len(set(texts))
  return [f"duplicates: {again:,} (text equal but for case, width and whitespace)"]


def _contradictions(split: Split, texts: Sequence[str]) -> list[str]:
  """Counts the texts that have different labels in several examples."""
  labels = defaultdict(set)
  for text, references in zip(texts, split.references, strict=True):
    labels[text].add(tuple(references))
  several = sum(len(different) > 1 for different in labels.values())
  return [f"texts with more than one label: {several:,}"] if several else []


def _overlap(texts: dict[str, list[str]]) -> list[str]:
  lines = []
  for left, right in (("train", "validation"), ("train", "test"), ("validation", "test")):
    if left in texts and right in texts:
      there = set(texts[right])
      shared = sum(text in there for text in texts[left])
      lines.append(f"overlap: {shared:,} of {left} are in {right} too")
  return lines
