"""Makes examples of rows: prompt, accepted answers and answer choices."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxtune.data import cells, confined
from jaxtune.data.templates import promptsource, sandbox
from jaxtune.data.templates.formats import INSTRUCTION, Format, picked, renamed
from jaxtune.data.templates.library import Template, resolve
from jaxtune.errors import UserError, nearest

_BARS = "\ufdd0"  # replaces "|||" in a row's own text while a template is split at its own


class Example(NamedTuple):
  """One row's text.

  Attributes:
    prompt: None for plain text, which is `answers[0]`.
    answers: all that are accepted; the first is trained on.
    where: file and line of the row, for errors.
    choices: the answers to choose from, if the template lists them.
    source: the row that decides to which split the example belongs, if `row` is another.
    conversation: whether `row` holds turns, which a chat template turns into text.
    key: the prompt, if two splits may not share it with other answers either; without a `source` it
      decides to which split the example belongs. None: the row decides. See `divide`.
    difference: of a pair of answers, by how much the first one is rated higher; 0 for a tie, which
      is judged and not trained on.
  """

  prompt: str | None
  answers: list[str]
  row: dict
  where: str
  choices: Sequence[str] = ()
  source: dict | None = None
  conversation: bool = False
  key: str | None = None
  difference: float = 1.0


def render(form: Format, rows: Sequence[dict], where: Sequence[str]) -> list[Example]:
  """Renders every row by every template, row by row; `variants` finds a row's examples again.

  Raises:
    UserError: with file and line, for a row that lacks a column or holds null in it, that the
      template cannot render, or whose label is none of the answer choices.
  """
  texts = [text for one in form.templates for text in (one.prompt, one.answer, *one.answer_choices)]
  sources = [text for text in (*texts, *form.rename.values()) if isinstance(text, str)]
  results = confined.each(_reader, rows, form, here=all(map(sandbox.is_plain, sources)))
  examples = []
  for row, line, result in zip(rows, where, results, strict=True):
    if isinstance(result, UserError):
      raise UserError(f"{line}: {result}") from result
    for prompt, answers, choices in result:
      examples.append(Example(prompt, answers, row, line, choices))
  return examples


def _reader(form: Format) -> Callable[[dict], list[tuple[str | None, list[str], list[str]]]]:
  """Makes the function that reads a row by every template."""

  def read(row: dict) -> list[tuple[str | None, list[str], list[str]]]:
    seen = renamed(row, form.rename)
    return [_read(template, seen) for template in form.templates]

  return read


def _read(template: Template, row: dict) -> tuple[str | None, list[str], list[str]]:
  """Reads prompt, accepted answers and answer choices out of a row."""
  if template.answer is None:
    return _split(template, row)
  more = _more(template, row)
  answers = _answers(template.answer, row, more)
  if template.prompt is None and len(answers) > 1:  # the others would not be trained on
    raise UserError(cells.not_text_message(f"column {template.answer!r} holds", answers))
  choices = list(more.get("answer_choices", ()))
  for answer in answers:
    if choices and answer.strip() and answer not in choices:
      raise UserError(
        f"the answer {answer!r} is none of the answer choices; a label's number becomes one by "
        f"answer_choices[...]; {nearest(answer, choices)}"
      )
  prompt = template.prompt and sandbox.renderer(template.prompt)(row, **more)
  return prompt, answers, choices


def _answers(answer: str, row: dict, more: dict) -> list[str]:
  """Renders an answer in Jinja, or reads a column of one or of several accepted answers."""
  if sandbox.is_template(answer):
    return [sandbox.renderer(answer)(row, **more)]
  if answer not in row:
    raise UserError(cells.missing_column_message(answer, row))
  value = row[answer]
  if isinstance(value, dict) and "text" in value:  # SQuAD's {"text": [...], "answer_start": ...}
    value = value["text"]
  values = value if isinstance(value, (list, tuple)) else [] if value is None else [value]
  for one in values:
    if not cells.is_text(one):
      raise UserError(cells.not_text_message(f"column {answer!r} holds", one))
  return [str(one) for one in values]


def variants(rows: Sequence[dict]) -> np.ndarray:
  """Returns the numbers of the examples of each row, given the row of every example.

  Returns:
    (X, U) int64: U examples for each of X rows. If some examples of a row were skipped, the others
    are repeated.
  """
  # Equal rows may be two rows, so they are told apart by identity.
  runs = itertools.groupby(range(len(rows)), key=lambda number: id(rows[number]))
  groups = [list(numbers) for _, numbers in runs]
  most = max(map(len, groups), default=1)
  return np.array([np.resize(group, most) for group in groups], np.int64).reshape(-1, most)


def render_prompts(
  rows: Sequence[dict],
  template: str | Template | Sequence[str | Template] | None = None,
  rename: Mapping | None = None,
  choices: Sequence[str] | None = None,
) -> list[str]:
  """Makes the prompts of rows, with an answer or without, as `choose` and `render` do in training.

  Args:
    template: that of the training data (of several, the first); None: the columns decide, of rows
      without an answer `instruction` before `prompt`.
    rename, choices: those of the training data.
  """
  if template is not None and not isinstance(template, (str, Template)):
    template = template[0]
  # A template needs an answer, which prompts do not show.
  given = resolve(template, answer="") if template else None
  prompts = []
  for i, row in enumerate(rows):
    asked = "instruction" in row and ("output" in row or not {"prompt", "completion"} <= {*row})
    chosen = given or Template(INSTRUCTION if asked else "{{ prompt }}", "")
    if choices is not None:
      chosen = chosen._replace(answer_choices=tuple(choices))
    try:
      prompts.append(_prompt(chosen, renamed(row, picked(rename or {}, row))))
    except UserError as error:
      raise UserError(f"row {i}: {error}") from error
  return prompts


def _more(template: Template, row: dict) -> dict:
  """Renders the answer choices, which templates read as a variable."""
  if not template.answer_choices:
    return {}
  texts = [
    sandbox.renderer(choice)(_guarded(row)) if sandbox.is_template(choice) else choice
    for choice in template.answer_choices
  ]
  whole = promptsource.BAR.join(texts)
  cells.check_characters("one of the answer choices", whole)
  split = whole.split(promptsource.BAR)
  return {"answer_choices": sandbox.Choices(_unguarded(one).strip() for one in split)}


def _split(template: Template, row: dict) -> tuple[str, list[str], list[str]]:
  """Reads a row by a template in promptsource's form, one text in which "|||" ends the prompt."""
  more = _guarded(_more(template, row))
  text = sandbox.renderer(template.prompt)(_guarded(row), **more)
  prompt, *answers = (_unguarded(part).strip() for part in text.split(promptsource.BAR))
  if not answers and prompt:
    raise UserError(f"the template gives no '|||' between prompt and answer: {text[:80]!r}")
  choices = [_unguarded(one) for one in more.get("answer_choices", ())]
  # An answer may be a choice and more text; then there is nothing to rank.
  return prompt + "\n" * bool(prompt), answers, choices if set(answers) <= set(choices) else []


def _prompt(template: Template, row: dict) -> str:
  if template.answer is not None:
    return sandbox.renderer(template.prompt)(row, **_more(template, row))
  front = template.prompt.partition(promptsource.BAR)[0]
  try:
    sandbox.variables(front)
  except UserError:
    return _split(template, row)[0]  # The "|||" stands inside an {% if %}: all of it must render.
  more = _guarded(_more(template, row))
  return _unguarded(sandbox.renderer(front)(_guarded(row), **more)).strip() + "\n"


def _guarded(value: Any) -> Any:
  """Replaces the "|||" in a row's own text, so that the text is not split there."""
  if isinstance(value, str):
    return value.replace(promptsource.BAR, _BARS)
  if isinstance(value, dict):
    return {key: _guarded(one) for key, one in value.items()}
  if isinstance(value, (list, tuple)):
    kind = sandbox.Choices if isinstance(value, sandbox.Choices) else list
    return kind(map(_guarded, value))
  return value


def _unguarded(text: str) -> str:
  return text.replace(_BARS, promptsource.BAR)
