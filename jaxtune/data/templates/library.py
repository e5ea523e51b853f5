"""Prompt templates by name: those of the library, a file for each task, and those of other files.

A file holds `task` and a list of `templates`. What the templates share stands once, at the top:

  task: sentiment
  answer: "{{ answer_choices[label] }}"     # or a column, whose list gives several accepted answers
  answer_choices: [negative, positive]      # text, or Jinja
  metrics: [accuracy, macro_f1]
  templates:
    - name: vague
      clarity: vague
      prompt: |
        {{ sentence }}
        Feeling:

`clarity` says how much the wording explains: "vague" hardly names the task, "specific" asks for it
and names the possible answers, "context" adds what the text is and the form of the answer. The
templates of a file differ in wording alone: they need the same columns and give the same answers.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

from jaxtune.data import confined
from jaxtune.data.templates import promptsource, sandbox
from jaxtune.errors import UserError, nearest
from jaxtune.schema import check, shown

BLANK = "{{ '' }}"  # the answer of a template of which the prompt alone is read
CLARITY = ("vague", "specific", "context")
FOLDER = Path(__file__).parent
_FILE = re.compile(r"(?P<path>.+?\.ya?ml):(?P<name>.+)")
_NAME = re.compile(r"[\w-]+/[\w-]+")


class Template(NamedTuple):
  """How a row becomes a prompt, answers and answer choices."""

  prompt: str | None  # Jinja; None for plain text
  # A column or Jinja; of several, the first whose columns the data have. None: the answer stands in
  # the prompt, after "|||".
  answer: str | tuple[str, ...] | None
  answer_choices: tuple[str, ...] = ()  # text or Jinja
  name: str | None = None  # "sentiment/vague", "FILE.yaml:name"; None if it is written in a config
  task: str | None = None
  metrics: tuple[str, ...] = ()
  clarity: str | None = None

  @property
  def columns(self) -> set[str]:
    """The columns that a row must have, by the names that the template uses."""
    texts = [text for text in (self.prompt, *self.answer_choices) if text is not None]
    needed = {name for text in texts for name in sandbox.variables(text)}
    if self.answer is not None:
      answer = self.answer if isinstance(self.answer, str) else self.answer[0]
      needed |= sandbox.variables(answer) if sandbox.is_template(answer) else {answer}
    return needed - ({"answer_choices"} if self.answer_choices else set())


def resolve(template: str | Template, answer: str | tuple[str, ...] | None = None) -> Template:
  """Finds the template that `data.template` names or writes out.

  Args:
    template: Jinja; the library's "task/name"; or "FILE.yaml:name".
    answer: the answer to Jinja, which has none of its own; None for a template with a name.

  Raises:
    UserError: for an unknown name, with the nearest, or for Jinja without an answer.
  """
  if isinstance(template, Template):
    return template
  if sandbox.is_template(template):
    if answer is None:
      raise UserError(
        "data.template makes the prompt, but data.answer is missing: name the answer's column, "
        "or use data.text to train on the whole text"
      )
    return Template(template, answer)
  if match := _FILE.fullmatch(template):
    return _named(read(match["path"]), template)
  file = f"{template.partition('/')[0]}.yaml"
  if not _NAME.fullmatch(template) or not (FOLDER / file).is_file():
    raise UserError(
      f"data.template is {template!r}, expected Jinja ('{{{{ column }}}}'), a name in the library "
      f"(task/name) or FILE.yaml:name; {nearest(template, (one.name for one in bundled()))}"
    )
  return _named(bundled(file), template)


def read(path: str | Path) -> list[Template]:
  """Reads a file of templates, in our form or in promptsource's; each is named "path:name".

  Raises:
    UserError: with file and template, for a file of neither form.
  """
  ours = Path(path).parent == FOLDER
  (entries,) = confined.each(_reading, [sandbox.read_text(path)], str(path), here=ours)
  if isinstance(entries, UserError):
    raise entries if str(entries).startswith(str(path)) else UserError(f"{path}: {entries}")
  return [Template(**entry | {key: tuple(entry[key]) for key in _LISTS}) for entry in entries]


def _reading(path: str) -> Callable[[str], list[dict]]:
  """Makes the function that lists the templates in a file's text as plain data."""

  def run(text: str) -> list[dict]:
    document = promptsource.parse(text, path)
    if promptsource.is_one(document):
      task, entries = document.get("dataset"), promptsource.templates(document, path)
    else:
      task, entries = _entries(document, path)
    return [_template(entry | {"task": task}, path)._asdict() for entry in entries]

  return run


def bundled(pattern: str = "*.yaml") -> list[Template]:
  """Reads the library, or those of its files that a pattern names."""
  return [
    template._replace(name=f"{template.task}/{template.name.rpartition(':')[2]}")
    for file in sorted(FOLDER.glob(pattern))
    for template in read(file)
  ]


def _named(templates: list[Template], name: str) -> Template:
  named = [one for one in templates if one.name == name]
  if not named:
    # Whole names, so that one can be copied from the message.
    raise UserError(f"there is no template {name!r}; {nearest(name, (t.name for t in templates))}")
  if len(named) > 1:
    raise UserError(f"{len(named)} templates are called {name!r}: rename them in the file")
  return named[0]


_LISTS = ("answer_choices", "metrics")
_SHARED = ("task", "answer", "answer_choices", "metrics")
_OWN = ("name", "clarity", "prompt", *_SHARED[1:])


def _entries(document: object, path: str | Path) -> tuple[str, list[dict]]:
  """Checks a file in our form; returns its task, and its templates with what they share."""
  if not isinstance(document, dict) or not isinstance(document.get("templates"), list):
    raise UserError(f"{path}: expected a mapping with task and a list of templates")
  shared = {key: value for key, value in document.items() if key != "templates"}
  _check_keys(shared, _SHARED, ("task",), str(path))
  entries = []
  for number, entry in enumerate(document["templates"], 1):
    where = f"{path}: template {number}"
    if not isinstance(entry, dict):
      raise UserError(f"{where} is {shown(entry)}, expected name, clarity and prompt")
    entries.append({key: shared[key] for key in _SHARED[1:] if key in shared} | entry)
    _check_keys(entries[-1], _OWN, ("name", "prompt", "answer"), where)
    check(f"{where}: clarity", entry.get("clarity"), Literal[*CLARITY] | None)
  return shared["task"], entries


def _check_keys(entry: dict, known: tuple[str, ...], needed: tuple[str, ...], where: str) -> None:
  for key in entry:
    if key not in known:
      raise UserError(f"{where}: unknown key {shown(key)}; {nearest(str(key), known)}")
  for key in needed:
    if not entry.get(key):
      raise UserError(f"{where} has no {key}")


def _template(entry: dict, path: str | Path) -> Template:
  where = f"{path}:{entry['name']}"
  for key in ("name", "task", "prompt", "answer"):
    check(f"{where}: {key}", entry[key], str | None)
  lists = {key: entry.get(key) or () for key in _LISTS}
  for key, value in lists.items():
    if not isinstance(value, (list, tuple)) or not all(isinstance(one, str) for one in value):
      raise UserError(
        f"{where}: {key} is {shown(value)}, expected a list of text (quote yes, no and numbers)"
      )
  entry = entry | {key: tuple(value) for key, value in lists.items()}
  template = Template(**entry | {"name": where})
  try:
    _ = template.columns  # This reads the template's Jinja.
  except UserError as error:
    raise UserError(f"{where}: {error}") from error
  return template
