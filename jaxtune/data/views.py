"""How examples of each kind look to a person; an objective names one of these views."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np

from jaxtune.data.divide import normalise
from jaxtune.data.encode import pairs
from jaxtune.data.encode.choices import unfold
from jaxtune.data.split import Split
from jaxtune.data.tokenizer import Tokenizer
from jaxtune.metrics.proportions import wilson

Mark = Callable[[str], str]  # (a text that is trained) -> the text with marks around it


class View(NamedTuple):
  """How the examples of an objective are shown.

  Attributes:
    texts: yields the text of each example without its label; two examples of one text are doubles.
    example: writes the example with a number, with what is trained marked.
    labels: writes lines that count a split's labels; None if its examples have no label.
    contradictions: what texts with different labels are called.
    label: the field of the split that holds the labels of each example.
  """

  texts: Callable[[Split, Tokenizer], Iterator[str]]
  example: Callable[[Split, Tokenizer, int, Mark], str]
  labels: Callable[[Split], list[str]] | None = None
  contradictions: str = "texts with more than one label"
  label: str = "references"


def _texts(split: Split, tokenizer: Tokenizer) -> Iterator[str]:
  """Yields the text of each row, or of each example of a packed row."""
  segments = split.arrays.get("segments", split.arrays["mask"].astype(int))
  for at, (tokens, segments_T) in enumerate(zip(split.arrays["tokens"], segments, strict=True)):
    for number in range(1, segments_T.max(initial=0) + 1):
      yield _inputs(split, tokenizer, at) + tokenizer.decode(tokens[segments_T == number])


def _inputs(split: Split, tokenizer: Tokenizer, at: int) -> str:
  """Returns the text that an encoder reads, with a line break; "" for a decoder."""
  if "inputs" not in split.arrays:
    return ""
  ids, mask = (split.arrays[name][at] for name in ("inputs", "inputs_mask"))
  ids, mask = (ids[0], mask[0]) if ids.ndim > 1 else (ids, mask)  # all answers have one prompt
  return tokenizer.decode(ids[mask]) + "\n"


def _prompts(split: Split, tokenizer: Tokenizer) -> Iterator[str]:
  return map(tokenizer.decode, split.prompts)


def _questions(split: Split, tokenizer: Tokenizer) -> Iterator[str]:
  return (f"{row['question']}\n{row['context']}" for row in split.rows)


def _tokens(split: Split, tokenizer: Tokenizer, at: int, mark: Mark) -> str:
  """Writes an example of `encode.text` or `encode.chat`."""
  tokens, mask, weights = (split.arrays[name][at] for name in ("tokens", "mask", "weights"))
  text = _marked(tokenizer, tokens[mask], weights[mask], mark)
  return _safe(_inputs(split, tokenizer, at)) + text


def _asked(split: Split, tokenizer: Tokenizer, at: int, mark: Mark) -> str:
  """Writes a prompt and the reference, if there is one."""
  prompt, reference = tokenizer.decode(split.prompts[at]), split.references[at][0]
  return _safe(prompt) + (f"\nreference: {_safe(reference)}" if reference else "")


def _labelled(split: Split, tokenizer: Tokenizer, at: int, mark: Mark) -> str:
  """Writes a text and its label."""
  text = tokenizer.decode(split.arrays["tokens"][at][split.arrays["mask"][at]])
  return f"{_safe(text)}\nlabel: {mark(_safe(split.references[at][0]))}"


def _choices(split: Split, tokenizer: Tokenizer, at: int, mark: Mark) -> str:
  """Writes a prompt with each of its answers, a star before the right one unless it is a tie."""
  arrays = unfold({name: x[at : at + 1] for name, x in split.arrays.items()})
  tied = "difference" in arrays and arrays["difference"][0] == 0
  right = None if tied else arrays["labels"][0]
  rows = zip(*(arrays[name][0] for name in ("tokens", "mask", "weights")), strict=True)
  return _safe(_inputs(split, tokenizer, at)) + "\n".join(
    f"{'*' if number == right else ' '} {_marked(tokenizer, tokens[mask], weights[mask], mark)}"
    for number, (tokens, mask, weights) in enumerate(rows)
    if weights.any()
  )


def _words(split: Split, tokenizer: Tokenizer, at: int, mark: Mark) -> str:
  """Writes words with their tags (but not "O"); those are marked that are trained."""
  seen = set(split.arrays["words"][at].tolist())
  pairs = zip(split.rows[at]["words"], split.references[at], strict=True)
  words = [_safe(word) if tag == "O" else _safe(f"{word}/{tag}") for word, tag in pairs]
  runs = itertools.groupby(enumerate(words, 1), key=lambda pair: pair[0] in seen)
  texts = ((trained, " ".join(word for _, word in run)) for trained, run in runs)
  return " ".join(mark(text) if trained else text for trained, text in texts)


def _windows(split: Split, tokenizer: Tokenizer, at: int, mark: Mark) -> str:
  """Writes the windows of a question with the answer marked."""
  lines = []
  for row in np.flatnonzero(split.arrays["example"] == at):
    mask = split.arrays["mask"][row]
    places = np.arange(mask.sum())
    first, last = split.arrays["starts"][row], split.arrays["ends"][row]
    answer = (first <= places) & (places <= last) & (last > 0)
    lines.append(_marked(tokenizer, split.arrays["tokens"][row][mask], answer, mark))
  answers = " or ".join(repr(answer) for answer in split.references[at] if answer)
  return "\n".join([*lines, f"answers: {answers or 'none'}"])


def _range(split: Split) -> list[str]:
  labels_X = split.arrays["labels"].astype(np.float64)
  return [f"labels: {labels_X.min():g} to {labels_X.max():g}, mean {labels_X.mean():.4g}"]


def _unanswered(split: Split) -> list[str]:
  none = sum(references == [""] for references in split.references)
  return [f"without an answer: {none:,} of {len(split.references):,}"]


def _thumbs(split: Split, tokenizer: Tokenizer, at: int, mark: Mark) -> str:
  """Writes a prompt with its answer, and the label."""
  tokens, mask, weights = (split.arrays[name][at, 0] for name in ("tokens", "mask", "weights"))
  answer = _marked(tokenizer, tokens[mask], weights[mask], mark)
  return f"{_safe(_inputs(split, tokenizer, at))}{answer}\nlabel: {split.choices[at][0]}"


def _liked(split: Split) -> list[str]:
  up = int(split.arrays["labels"].sum())
  return [f"thumbs up: {up:,} of {split.examples:,}"]


def _judged(split: Split, tokenizer: Tokenizer) -> Iterator[str]:
  """Yields each prompt with its answer, without the other answer beside it."""
  tokens_X1T, mask_X1T = (split.arrays[name] for name in ("tokens", "mask"))
  for at in range(split.examples):
    yield _inputs(split, tokenizer, at) + tokenizer.decode(tokens_X1T[at, 0][mask_X1T[at, 0]])


def _both(split: Split, tokenizer: Tokenizer) -> Iterator[str]:
  """Yields each prompt with both answers, in an order that does not depend on the choice."""
  for prompt, answers in zip(_prompts(split, tokenizer), split.choices or (), strict=True):
    yield "\n".join([prompt, *sorted(map(normalise, answers))])


def _pairs(split: Split) -> list[str]:
  """Counts ties and pairs of equal tokens; says how well length alone tells the choice."""
  tokens, tied_X = split.arrays["tokens"], split.arrays["difference"] == 0
  same = int((tokens[:, 0] == tokens[:, 1]).all(-1).sum())
  lines = [f"ties: {int(tied_X.sum()):,}"]
  lines += [f"pairs whose answers have the same tokens: {same:,}"] if same else []
  longer, of = pairs.longer_chosen(split)
  if of:
    low, high = wilson(longer, of)
    lines.append(
      f"the chosen answer is the longer one in {100 * longer / of:.1f} % of {of:,} pairs "
      f"(95 % interval {100 * low:.1f} to {100 * high:.1f})"
    )
  return lines


def _frequencies(title: str, split: Split) -> list[str]:
  """Counts the examples of each label; nothing where rows have choices of their own."""
  if split.own_choices:
    return []
  counts = Counter(map(_safe, itertools.chain.from_iterable(split.references)))
  total, wide = counts.total(), max(map(len, counts))
  rows = counts.most_common()
  return [title, *(f"  {name:<{wide}}  {n:,} ({100 * n / total:.1f} %)" for name, n in rows)]


def _marked(tokenizer: Tokenizer, ids_T: np.ndarray, trained_T: np.ndarray, mark: Mark) -> str:
  """Decodes tokens, with marks around those that are trained."""
  borders = [0, *(np.flatnonzero(np.diff(trained_T > 0)) + 1), len(ids_T)]
  # Tokens decoded by themselves lose the space in front of them, so each piece of the text is what
  # its tokens add to the text before.
  texts = [tokenizer.decode(ids_T[:border]) for border in borders]
  pieces = []
  for begin, before, text in zip(borders, texts, texts[1:], strict=False):
    piece = _safe(text[len(before) :])
    pieces.append(mark(piece) if begin < len(ids_T) and trained_T[begin] else piece)
  return "".join(pieces)


def _safe(text: str) -> str:
  """Replaces characters that would control a terminal by their escapes."""
  return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


TEXT = View(_texts, _tokens)
ASKED = View(_prompts, _asked)
CLASSES = View(_texts, _labelled, partial(_frequencies, "examples by label:"))
NUMBERS = View(_texts, _labelled, _range)
WORDS = View(_texts, _words, partial(_frequencies, "words by tag:"))
CHOICES = View(_prompts, _choices, partial(_frequencies, "examples by label:"))
THUMBS = View(_judged, _thumbs, _liked, label="choices")
PAIRS = View(_both, _choices, _pairs, "pairs that are given the other way round too")
ANSWERS = View(_questions, _windows, _unanswered)
