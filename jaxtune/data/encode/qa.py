"""Extractive question answering: finds an answer's tokens in windows of its context, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxtune.data import cells, labels, padding
from jaxtune.data.encode.shared import in_batches, to_split
from jaxtune.data.encode.whole_texts import read_text
from jaxtune.data.options import EncodeOptions
from jaxtune.data.split import Split, counts
from jaxtune.data.templates import Example
from jaxtune.data.tokenizer import Tokenizer, ends_texts, token_ids
from jaxtune.errors import UserError


class _Window(NamedTuple):
  """A question with a part of its context, and the tokens of the answer there."""

  ids: list[int]
  types: list[int] | None
  context: list[bool]  # whether a token is the context's
  offsets: list[tuple[int, int]]  # its characters there
  first: int = 0  # the first and the last token of the answer; 0 and 0 if it is not there whole
  last: int = 0


def read_row(
  row: dict, question: str = "question", context: str = "context", answers: str = "answers"
) -> tuple[dict, str, list[str]]:
  """Reads a question, its context and the places of its answers there.

  `answers` are {"text": [...], "answer_start": [...]}, in characters, as in SQuAD, or a list of
  such pairs; an empty one is a question without an answer.
  """
  asked, passage = read_text(row, question).strip(), read_text(row, context)
  pairs = _pairs(cells.check_column(answers, row), answers)
  spans = [_span(passage, *pair) for pair in pairs]
  fields = {"question": asked, "context": passage, "spans": spans}
  texts = [passage[start:end] for start, end in spans]
  return fields, f"{asked}\n{passage}", texts or [""]


def _pairs(answers: object, column: str) -> list[tuple]:
  if not answers:
    return []
  if isinstance(answers, dict):
    texts, starts = answers.get("text"), answers.get("answer_start")
    if not isinstance(texts, (list, tuple)):
      texts, starts = [texts], [starts]
  elif isinstance(answers, (list, tuple)) and all(isinstance(one, dict) for one in answers):
    texts, starts = ([one.get(k) for one in answers] for k in ("text", "answer_start"))
  else:
    texts, starts = None, None
  if not isinstance(starts, (list, tuple)) or len(texts) != len(starts):
    raise UserError(
      f"column {column!r} holds {answers!r}, expected {{'text': [...], 'answer_start': [...]}} of "
      "one length"
    )
  return list(zip(texts, starts, strict=True))


def _span(context: str, text: object, start: object) -> tuple[int, int]:
  if not isinstance(text, str) or not text.strip():
    raise UserError(f"the answer {text!r} is empty; a question without answer has an empty list")
  if isinstance(start, bool) or not isinstance(start, int):
    raise UserError(f"the answer {text!r} starts at {start!r}, expected a character's number")
  at = context.find(text)
  hint = f"it stands at {at}" if at >= 0 else "it is nowhere in the context"
  if start < 0 or start + len(text) > len(context):
    raise UserError(
      f"the answer {text!r} at {start} is beyond the context of {len(context)} characters; {hint}"
    )
  if context[start : start + len(text)] != text:
    said = context[start : start + len(text)]
    raise UserError(f"the context has {said!r} at {start}, not the answer {text!r}; {hint}")
  return start, start + len(text)


def encode(
  tokenizer: Tokenizer, examples: Sequence[Example], options: EncodeOptions
) -> tuple[Split, dict]:
  """Encodes questions with their contexts; a context longer than a row becomes several windows.

  Arrays, for X windows: starts, ends (X,) int32, the first and the last token of the first answer
  (0 and 0 if a window lacks it or there is none); context (X, T) bool; offsets (X, T, 2) int32, the
  characters of the context; example (X,) int32, the number of the window's example in the lists.

  Args:
    options: max_length is the most tokens of a window; None: contexts are not divided. too_long can
      be "skip", for a question that leaves no room for its context; malformed is for an answer
      without a token.

  Returns:
    The split, whose lists (references, rows, where) have one entry for each *example*; and counts
    with "windows", "unanswerable" (examples) and "cut_answers" (examples whose answer is whole in
    no window).

  Raises:
    UserError: with file and line; or for a tokenizer that cannot say where its tokens stand.
  """
  if not tokenizer.is_fast:
    raise UserError(
      "finding answers needs a fast tokenizer: this one does not say where tokens are"
    )
  padding.check_too_long(options.too_long, ("skip",))
  if options.stride is None:
    options = options._replace(stride=(options.max_length or 0) // 4)
  fitting = _with_room(tokenizer, examples, options)
  windows = dict(zip(map(id, fitting), _windows(tokenizer, fitting, options), strict=True))
  locate = lambda example: _locate(example.row["spans"], windows[id(example)])
  pairs, silent = labels.checked(fitting, locate, options.malformed)
  arrays = _arrays(tokenizer, [located for _, located in pairs], options.max_length)
  split = to_split(arrays, [example for example, _ in pairs])
  answered = [located for example, located in pairs if example.row["spans"]]
  skipped = {"too_long": len(examples) - len(fitting), "no_token": silent}
  return split, counts(
    split, skipped,
    windows=split.examples,
    unanswerable=len(pairs) - len(answered),
    cut_answers=sum(not any(window.last for window in located) for located in answered),
  )  # fmt: skip


def answer_texts(
  split: Split, starts_XT: np.ndarray, ends_XT: np.ndarray, n_best: int = 20, max_tokens: int = 30
) -> list[str]:
  """Returns the likeliest answer to every example, a part of its context.

  Of the `n_best` starts and the `n_best` ends in a window's context, it is the pair with the
  highest sum of logits that is at most `max_tokens` long; of several windows, the best. If the data
  have questions without an answer, the answer is "" where the sum of the first token, in the window
  where it is lowest, is higher (Devlin et al. 2019, section 4.3).

  Returns:
    A text for each of the split's references.
  """
  texts = [""] * len(split.references)
  best, null = np.full(len(texts), -np.inf), np.full(len(texts), np.inf)
  for row, at in enumerate(split.arrays["example"]):
    starts_T, ends_T = (np.asarray(x[row], np.float64) for x in (starts_XT, ends_XT))
    null[at] = min(null[at], starts_T[0] + ends_T[0])
    context = np.flatnonzero(split.arrays["context"][row])
    i = context[np.argsort(-starts_T[context], kind="stable")[:n_best]]
    j = context[np.argsort(-ends_T[context], kind="stable")[:n_best]]
    allowed = (i[:, None] <= j[None]) & (j[None] < i[:, None] + max_tokens)
    sums = np.where(allowed, starts_T[i][:, None] + ends_T[j][None], -np.inf)
    if sums.size and sums.max() > best[at]:
      best[at] = sums.max()
      first, last = np.unravel_index(sums.argmax(), sums.shape)
      offsets = split.arrays["offsets"][row]
      begin, end = offsets[i[first], 0], offsets[j[last], 1]
      texts[at] = split.rows[at]["context"][begin:end].strip()
  if any(references == [""] for references in split.references):
    texts = [text if b >= n else "" for text, b, n in zip(texts, best, null, strict=True)]
  return texts


def _question(tokenizer: Tokenizer, example: Example) -> str:
  # If no special token divides question and context, a new line does.
  return example.row["question"] + ("" if ends_texts(tokenizer) else "\n")


def _with_room(
  tokenizer: Tokenizer, examples: Sequence[Example], options: EncodeOptions
) -> list[Example]:
  """Applies the policy to questions that leave no room for their context."""
  if options.max_length is None or not examples:
    return list(examples)
  if options.stride < 0:
    raise UserError(f"data.stride is {options.stride}, expected 0 tokens or more")
  ids = token_ids(tokenizer, [_question(tokenizer, example) for example in examples])
  special = tokenizer.num_special_tokens_to_add(pair=True)
  room = options.max_length - special - options.stride
  for example, row in zip(examples, ids, strict=True):
    if len(row) >= room and options.too_long == "error":
      raise UserError(
        f"{example.where}: the question has {len(row)} tokens, so that max_length="
        f"{options.max_length} with stride={options.stride} leaves no room for the context: raise "
        "data.max_length, lower data.stride, or set data.too_long='skip'"
      )
  return [example for example, row in zip(examples, ids, strict=True) if len(row) < room]


def _windows(
  tokenizer: Tokenizer, examples: Sequence[Example], options: EncodeOptions
) -> list[list[_Window]]:
  """Tokenises questions with contexts; returns the windows of each example."""
  cut = {} if options.max_length is None else {
    "truncation": "only_second", "max_length": options.max_length, "stride": options.stride,
  }  # fmt: skip
  windows: list[list[_Window]] = []
  for batch in in_batches(examples):
    out = tokenizer(
      [_question(tokenizer, one) for one in batch], [one.row["context"] for one in batch],
      return_overflowing_tokens=True, return_offsets_mapping=True, verbose=False, **cut,
    )  # fmt: skip
    typed = "token_type_ids" in out and any(map(any, out["token_type_ids"]))
    typed = typed and ends_texts(tokenizer)
    of_batch: list[list[_Window]] = [[] for _ in batch]
    for row, at in enumerate(out["overflow_to_sample_mapping"]):
      context = [number == 1 for number in out.sequence_ids(row)]
      pairs = zip(context, out["offset_mapping"][row], strict=True)
      offsets = [span if inside else (0, 0) for inside, span in pairs]
      types = out["token_type_ids"][row] if typed else None
      of_batch[at].append(_Window(out["input_ids"][row], types, context, offsets))
    windows += of_batch
  return windows


def _locate(spans: Sequence[tuple[int, int]], windows: Sequence[_Window]) -> list[_Window]:
  """Finds the tokens of the first answer in every window that holds it whole."""
  if not spans:
    return list(windows)
  (start, end), located, touched = spans[0], [], False
  for number, window in enumerate(windows):
    real = [at for at, (a, b) in enumerate(window.offsets) if a < b]  # in the context alone
    first = next((at for at in real if window.offsets[at][1] > start), None)
    last = next((at for at in reversed(real) if window.offsets[at][0] < end), None)
    inside = first is not None and last is not None and first <= last
    touched |= inside
    # If no token reaches a border of the answer, the text there has no tokens, or the window ends.
    cut_left = inside and number > 0 and first == real[0] and window.offsets[first][0] > start
    behind = inside and number < len(windows) - 1 and last == real[-1]
    whole = inside and not cut_left and not (behind and window.offsets[last][1] < end)
    located.append(window._replace(first=first, last=last) if whole else window)
  if not touched:
    raise UserError("the tokenizer leaves no token of the answer")
  return located


def _arrays(
  tokenizer: Tokenizer, located: Sequence[Sequence[_Window]], max_length: int | None
) -> dict[str, np.ndarray]:
  """Makes the arrays of the windows, given those of each example."""
  windows = [window for several in located for window in several]
  arrays = padding.pad_tokens(tokenizer, [window.ids for window in windows], max_length)
  width = arrays["tokens"].shape[1]
  arrays |= {
    "weights": np.ones(len(windows), np.float32),
    "starts": np.array([window.first for window in windows], np.int32),
    "ends": np.array([window.last for window in windows], np.int32),
    "context": padding.pad([window.context for window in windows], width, False, bool),
    "offsets": padding.pad([window.offsets for window in windows], width),
    "example": np.repeat(np.arange(len(located), dtype=np.int32), [len(one) for one in located]),
  }
  if any(window.types is not None for window in windows):
    arrays["types"] = padding.pad([window.types for window in windows], width)
  return arrays
