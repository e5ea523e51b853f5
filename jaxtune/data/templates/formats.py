"""Which templates a split's rows are read by, and what its columns are called there."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from jaxtune.data import cells
from jaxtune.data.templates import sandbox
from jaxtune.data.templates.library import Template, resolve
from jaxtune.errors import UserError

INSTRUCTION = (
  "Follow the instruction and write the response.\n\n"
  "Instruction: {{ instruction }}\n"
  "{% if input is defined and input %}Input: {{ input }}\n{% endif %}"
  "Response:\n"
)
_KNOWN = (
  ({"instruction", "output"}, Template(INSTRUCTION, "output")),
  ({"prompt", "completion"}, Template("{{ prompt }}", "completion")),
  ({"text"}, Template(None, "text")),
)


class Format(NamedTuple):
  """How the rows of a split become text."""

  templates: tuple[Template, ...]  # each gives an example of every row
  rename: dict[str, str | tuple[str, ...]]  # {a template's column: the data's}, see `choose`

  @property
  def sha256(self) -> str:
    """A hash, equal for two runs only if they make the same text of a row."""
    texts = [(one.prompt, one.answer, one.answer_choices) for one in self.templates]
    return hashlib.sha256(repr((texts, sorted(self.rename.items()))).encode()).hexdigest()

  def record(self) -> dict:
    """Returns the format as plain data; `Template(**entry)` makes its templates again."""
    templates = [one._asdict() for one in self.templates]
    return self._asdict() | {"templates": templates, "sha256": self.sha256}


def choose(
  columns: Sequence[str],
  *,
  where: str,
  template: str | Template | Sequence[str | Template] | None = None,
  answer: str | Sequence[str] | None = None,
  text: str | None = None,
  rename: Mapping | None = None,
  choices: Sequence[str] | None = None,
) -> Format:
  """Chooses how rows with these columns are read.

  Without options the columns decide: instruction (and input) and output, else prompt and
  completion, else text.

  Args:
    where: the file, for errors.
    template: the prompt in Jinja, which needs `answer`; a template of the library ("task/name") or
      of a YAML file, the library's kind or promptsource's ("FILE.yaml:name"), which brings its own;
      or several of these, each of which makes an example of every row.
    answer: a column or a Jinja string. A column that holds a list gives several accepted answers,
      the first of which is trained on. Given several (("ref", "refs")), each split uses the first
      whose columns it has.
    text: plain text without a prompt, as a column or a Jinja string.
    rename: where a template's columns come from: {"sentence": "review"}. Jinja makes one,
      {"stars": "{{ label + 1 }}"}; a tuple names alternatives, of which each split uses the first
      that it has; a tuple within it gathers columns into a list of accepted answers.
    choices: the answers to choose from, in place of the templates' own.

  Raises:
    UserError: for options that contradict each other, a missing column or a broken template.
  """
  chosen = _templates(columns, where, template, answer, text)
  if choices is not None:
    chosen = [one._replace(answer_choices=tuple(choices)) for one in chosen]
  sources = picked(rename or {}, columns)
  for name, source in (rename or {}).items():
    options = _alternatives(source)
    if not options or () in options:
      raise UserError(f"data.rename of {name!r} is empty, expected a column, Jinja or several")
    if name not in sources:
      lost = min(_needs(options[0]) - set(columns))
      raise UserError(
        f"{where}: data.rename of {name!r}: {cells.missing_column_message(lost, columns)}"
      )
  there = {*columns, *sources}
  chosen = [_answerable(one, there) for one in chosen]
  for one in chosen:
    for name in sorted(one.columns - there):
      raise UserError(f"{where}: {_lacking(one, name, columns)}")
  return Format(tuple(chosen), sources)


def renamed(row: dict, rename: Mapping[str, str | tuple[str, ...]]) -> dict:
  """Adds to a row the columns that a template knows by other names, if the row has them."""
  columns = {}
  for name, source in rename.items():
    if isinstance(source, tuple):
      columns[name] = [row[column] for column in source if row.get(column) is not None]
    elif sandbox.is_template(source):
      columns[name] = sandbox.renderer(source)(row)
    elif source in row:
      columns[name] = row[source]
  return row | columns


def picked(rename: Mapping, columns: Sequence[str]) -> dict[str, str | tuple[str, ...]]:
  """Returns for each renamed column the first of its alternatives that these columns have."""
  sources = {}
  for name, source in rename.items():
    fits = [one for one in _alternatives(source) if _needs(one) <= set(columns)]
    if fits:
      sources[name] = fits[0]
  return sources


def _templates(
  columns: Sequence[str], where: str, template: object, answer: object, text: str | None
) -> list[Template]:
  if text is not None:
    if template is not None or answer is not None:
      raise UserError("data.text is for plain text: leave out data.template and data.answer")
    return [Template(None, text)]
  if template is None:
    if answer is not None:
      raise UserError("data.answer is given without data.template, the prompt (a Jinja string)")
    for needed, known in _KNOWN:
      if needed <= set(columns):
        return [known]
    raise UserError(
      f"{where}: no known format in the columns {', '.join(columns)}, expected instruction + "
      "output (+ input), prompt + completion, or text; or pass data.template and data.answer, "
      "e.g. template='{{ question }}\\n', answer='reply'"
    )
  given = [template] if isinstance(template, (str, Template)) else list(template)
  if not given:
    raise UserError("data.template is empty: expected Jinja or the name of a template")
  answer = answer if answer is None or isinstance(answer, str) else tuple(answer)
  if answer == ():
    raise UserError("data.answer is empty: expected a column, Jinja or several of these")
  resolved = [resolve(one, answer) for one in given]
  if answer is not None and all(one.name for one in resolved):
    raise UserError(
      f"the template {resolved[0].name!r} brings its own answer: leave out data.answer, and say "
      "with data.rename where its columns come from"
    )
  return resolved


def _alternatives(source: str | Sequence) -> list[str | tuple[str, ...]]:
  options = [source] if isinstance(source, str) else source
  return [one if isinstance(one, str) else tuple(one) for one in options]


def _needs(source: str | tuple[str, ...]) -> set[str]:
  """Returns the columns that the source of a renamed column needs."""
  if isinstance(source, str) and sandbox.is_template(source):
    return set(sandbox.variables(source))
  return {source} if isinstance(source, str) else set(source)


def _answerable(template: Template, there: set[str]) -> Template:
  """Chooses of several answers the first that these columns can give."""
  if template.answer is None or isinstance(template.answer, str):
    return template
  options = [template._replace(answer=one) for one in template.answer]
  fits = [one for one in options if one.columns <= there]
  return (fits or options)[0]


def _lacking(template: Template, name: str, columns: Sequence[str]) -> str:
  if name == "answer_choices":
    return "the template reads answer_choices, and has none: set data.choices"
  if template.name is None:
    return cells.missing_column_message(name, columns)
  return (
    f"template {template.name!r}: {cells.missing_column_message(name, columns)} "
    f"Or say what it is: data.rename={{{name!r}: a column or Jinja}}"
  )
