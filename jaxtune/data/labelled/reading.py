"""Rows of labelled tasks, checked: what each must hold, and what is wrong where."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Sequence

from jaxtune.data import cells, confined
from jaxtune.data.templates import Example, sandbox
from jaxtune.data.tokenize import check_choice
from jaxtune.errors import UserError, nearest

MALFORMED = ("error", "skip")


def read(
  objective: str, rows: Sequence[dict], where: Sequence[str], malformed: str = "error", **columns
) -> tuple[list[Example], dict[str, int]]:
  """Checks the rows of a labelled task.

  Args:
    objective: "classify", "regression", "tokens" or "qa".
    malformed: "error" or "skip", for a row that lacks something or contradicts itself.
    **columns: where things are. classify and regression: `text`, `pair` (a second text; None) and
      `label`; texts may be Jinja. tokens: `words` and `tags`, lists of one length. qa: `question`,
      `context` and `answers`, {"text": [...], "answer_start": [...]} in characters as in SQuAD, or
      a list of such pairs; none at all is a question without an answer.

  Returns:
    Examples and counts of skipped rows. An example's `row` holds, beside the data's columns, what
    was read under the names above; prompt and answers are for comparing splits.

  Raises:
    UserError: with file and line.
  """
  check_choice("malformed", malformed, MALFORMED)
  known = tuple(inspect.signature(_READERS[objective]).parameters)[1:]
  for name in columns:
    if name not in known:
      raise UserError(
        f"data.{name} is not read for the objective {objective!r}. {nearest(name, known)}"
      )
  examples, bad = [], 0
  here = all(sandbox.is_plain(one) for one in columns.values() if isinstance(one, str))
  results = confined.each(_reading, rows, objective, columns, here=here)
  for row, place, result in zip(rows, where, results, strict=True):
    if isinstance(result, UserError):
      if malformed == "error" or isinstance(result, confined.Exceeded):
        raise UserError(f"{place}: {result}") from result
      bad += 1
      continue
    found, prompt, answers = result
    examples.append(Example(prompt, answers, row | found, place, source=row))
  return examples, {"malformed": bad} if bad else {}


def _reading(objective: str, columns: dict) -> Callable[[dict], tuple[dict, str, list[str]]]:
  """Makes the function of a row that reads it."""
  return lambda row: _READERS[objective](row, **columns)


def names(values: Iterable, labels: Sequence[str] | None) -> list[str]:
  """Lists the classes in order: `labels`, or those that occur, sorted (whole numbers as such).

  Raises:
    UserError: a name twice, or fewer than two that occur.
  """
  if labels is not None:
    listed = list(map(str, labels))
    for name in listed:
      if listed.count(name) > 1:
        raise UserError(f"data.labels names {name!r} twice.")
    return listed
  found = {_name(value) for value in values}
  if len(found) < 2:
    raise UserError(
      f"The examples have only one label, {''.join(found)!r}: expected two or more. Set "
      "data.labels to all there are."
    )
  return sorted(found, key=(int if all(map(_whole, found)) else str))


def index(value: object, names: Sequence[str]) -> int:
  """Numbers a label, given by its name, or by its number where no name is one."""
  name = _name(value)
  if name in names:
    return names.index(name)
  if _whole(name) and not any(map(_whole, names)) and 0 <= int(name) < len(names):
    return int(name)
  raise UserError(f"the label {value!r} is not in the set. {nearest(name, names)}")


def kept(examples: Sequence, check: Callable, malformed: str) -> tuple[list, int]:
  """Applies `check` to every example; (what it returned, how many it refused)."""
  check_choice("malformed", malformed, MALFORMED)
  found = []
  for example in examples:
    try:
      found.append(check(example))
    except UserError as error:
      if malformed == "error":
        raise UserError(f"{example.where}: {error}") from error
  return found, len(examples) - len(found)


def _whole(name: str) -> bool:
  return name.removeprefix("-").isdecimal() and len(name) < 20


def _name(value: object) -> str:
  return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _column(row: dict, name: str) -> object:
  if row.get(name) is None:
    raise UserError(cells.no_column(name, row))
  return row[name]


def _text(row: dict, source: str) -> str:
  make = sandbox.renderer(source) if sandbox.is_template(source) else None
  text = make(row) if make else cells.check_text(source, row)
  if not text.strip():
    raise UserError(f"the text of {source!r} is empty.")
  return text


def _classify(row: dict, text: str = "text", pair: str | None = None, label: str = "label"):
  value = cells.check_class(label, row)
  return _texts(row, text, pair) | {"label": value}, _joined(row, text, pair), [str(value)]


def _regression(row: dict, text: str = "text", pair: str | None = None, label: str = "label"):
  value = _column(row, label)
  try:
    number = math.nan if isinstance(value, bool) else float(value)
  except (TypeError, ValueError, OverflowError):
    number = math.nan
  if not math.isfinite(number):
    raise UserError(f"column {label!r} holds {value!r}, expected a number.")
  return _texts(row, text, pair) | {"label": number}, _joined(row, text, pair), [str(value)]


def _texts(row: dict, text: str, pair: str | None) -> dict:
  return {"text": _text(row, text), "pair": None if pair is None else _text(row, pair)}


def _joined(row: dict, text: str, pair: str | None) -> str:
  return "\n".join(one for one in _texts(row, text, pair).values() if one is not None)


def _tokens(row: dict, words: str = "tokens", tags: str = "ner_tags"):
  for name in (words, tags):
    if not isinstance(_column(row, name), (list, tuple)):
      raise UserError(f"column {name!r} holds {type(row[name]).__name__}, expected a list.")
  if not row[words]:
    raise UserError(f"column {words!r} has no words.")
  if len(row[words]) != len(row[tags]):
    raise UserError(
      f"{len(row[words])} words in {words!r} and {len(row[tags])} tags in {tags!r}: expected one "
      "tag a word."
    )
  for number, (word, tag) in enumerate(zip(row[words], row[tags], strict=True), 1):
    if not isinstance(word, str):
      raise UserError(f"word {number} is {word!r}, expected text.")
    if isinstance(tag, bool) or not isinstance(tag, (str, int)):
      raise UserError(f"tag {number} is {tag!r}, expected a label's name or number.")
  found = {"words": list(row[words]), "tags": list(row[tags])}
  return found, " ".join(row[words]), [" ".join(map(str, row[tags]))]


def _qa(row: dict, question: str = "question", context: str = "context", answers: str = "answers"):
  asked, passage = _text(row, question).strip(), _text(row, context)
  if answers not in row:
    raise UserError(cells.no_column(answers, row))
  spans = [_span(passage, *pair) for pair in _pairs(row[answers], answers)]
  found = {"question": asked, "context": passage, "spans": spans}
  texts = [passage[start:end] for start, end in spans]
  return found, f"{asked}\n{passage}", texts or [""]


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
      "one length."
    )
  return list(zip(texts, starts, strict=True))


def _span(context: str, text: object, start: object) -> tuple[int, int]:
  if not isinstance(text, str) or not text.strip():
    raise UserError(f"the answer {text!r} is empty; a question without answer has an empty list.")
  if isinstance(start, bool) or not isinstance(start, int):
    raise UserError(f"the answer {text!r} starts at {start!r}, expected a character's number.")
  at = context.find(text)
  hint = f"It stands at {at}." if at >= 0 else "It is nowhere in the context."
  if start < 0 or start + len(text) > len(context):
    raise UserError(
      f"the answer {text!r} at {start} is beyond the context of {len(context)} characters. {hint}"
    )
  if context[start : start + len(text)] != text:
    said = context[start : start + len(text)]
    raise UserError(f"the context has {said!r} at {start}, not the answer {text!r}. {hint}")
  return start, start + len(text)


_READERS = {"classify": _classify, "regression": _regression, "tokens": _tokens, "qa": _qa}
