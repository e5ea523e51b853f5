"""The sandbox that templates run in: Jinja, and the few filters that are added to Jinja's own.

spans          {% for text, kind in tokens | spans(ner_tags) %}: the entities of BIO tags
choice, random one item of a list, chosen by a hash of the row: a row always gets the same one
most_frequent  the items of a list that come most often
highlight      the text as it is (promptsource marks variables with it on screen)

A template that only prints cells renders here. What loops, calls or computes renders in another
process, with limits on time, memory and text; see `confined`.
"""

from __future__ import annotations

import collections
import functools
import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jinja2
import jinja2.meta
import jinja2.nodes
import jinja2.sandbox

from jaxtune.data import cells, confined
from jaxtune.errors import UserError, nearest


class Choices(list):
  """The answers that a row allows, by the number of the label or by its name.

  It differs from a list in three ways. The text "1" is number 1. The label -1, which data sets
  write where nobody judged, is not the last one. A label beyond the end is an error, where Jinja
  would print nothing.
  """

  def __getitem__(self, label: object) -> Any:
    if isinstance(label, slice):
      return super().__getitem__(label)
    named = [choice for choice in self if choice.casefold() == str(label).strip().casefold()]
    numbered = isinstance(label, bool) or str(label).strip().isdecimal()
    if numbered and int(label) < len(self):
      choice = super().__getitem__(int(label))
      if named and isinstance(label, str | bool) and named[0] != choice:
        raise UserError(
          f"label {label!r} is the name of one answer choice and the number of another: write the "
          "answer without answer_choices[...]"
        )
      return choice
    if named:
      return named[0]
    raise UserError(
      f"label {label!r} is outside the answer choices: expected 0 to {len(self) - 1} "
      f"or one of {', '.join(self)}; {nearest(str(label), self)}"
    )


def is_template(text: str) -> bool:
  """Returns whether a text is Jinja; else it is the name of a column."""
  return "{{" in text or "{%" in text


def read_text(path: str | Path) -> str:
  """Reads a file that holds templates.

  Raises:
    UserError: a file that is missing, too large or no text.
  """
  try:
    with open(path, "rb") as file:
      content = file.read(_LARGEST + 1)
    text = content.decode("utf-8-sig")
  except OSError as error:
    raise UserError(f"{path}: {error.strerror or error}") from error
  except ValueError as error:
    raise UserError(f"{path}: not UTF-8 text") from error
  if len(content) > _LARGEST:
    raise UserError(f"{path}: more than {_LARGEST:,} bytes, which no file of templates needs")
  return text


@functools.lru_cache(maxsize=256)
def variables(source: str) -> frozenset[str]:
  """Lists the variables that a template needs.

  Those of `x is defined` and `x | default(...)` are optional.

  Raises:
    UserError: if it is not Jinja, or takes too long to read; the caller adds where it stands.
  """
  here = confined.inside or is_plain(source)
  try:
    return frozenset(_find_variables(source) if here else confined.one(_variables, source))
  except confined.Exceeded as error:
    raise confined.Exceeded(f"{error}: {source!r}") from error


@functools.lru_cache(maxsize=256)
def renderer(source: str) -> Callable[..., str]:
  """Compiles a template to (row, **more variables) -> text.

  Raises:
    UserError: if the template or the row is wrong; the caller adds where they stand.
  """
  variables(source)
  if confined.inside or is_plain(source):
    return _compiled(source)
  return lambda row, **more: confined.one(_rendering, (row, more), source)


def _rendering(source: str) -> Callable[[tuple[dict, dict]], str]:
  run = _compiled(source)
  return lambda item: run(item[0], **item[1])


@functools.lru_cache(maxsize=256)
def _compiled(source: str) -> Callable[..., str]:
  needed = variables(source)
  template = _ENVIRONMENT.from_string(source)

  def run(row: dict, **more) -> str:
    try:
      text = template.render({"row": row} | row | more | {"_draws": itertools.count()})
      cells.check_characters("the text that the template makes", text)
      return text
    except (UserError, MemoryError):
      raise
    except jinja2.UndefinedError as error:
      missing = sorted(name for name in needed - set(more) if row.get(name) is None)
      if missing:
        raise UserError(cells.missing_column_message(missing[0], row)) from error
      raise UserError(f"the template failed: {confined.said(error)}") from error
    except _NoText as error:
      (value,) = error.args
      held = [name for name in sorted(needed - set(more)) if row.get(name) is value]
      what = f"column {held[0]!r} holds" if held else "the template prints"
      raise UserError(cells.not_text_message(what, value)) from error
    except jinja2.sandbox.SecurityError as error:
      raise UserError(f"the template is refused: {confined.said(error)}") from error
    except Exception as error:
      raise UserError(f"the template failed: {confined.said(error)}") from error

  return run


def _variables() -> Callable[[str], list[str]]:
  """Makes the function that the other process calls; see `confined.one`."""
  return _find_variables


def _find_variables(source: str) -> list[str]:
  try:
    tree = _ENVIRONMENT.parse(source)
    _ENVIRONMENT.from_string(source)
    read = jinja2.meta.find_undeclared_variables(tree)
  except MemoryError:
    raise
  except Exception as error:  # of Jinja, or of Python for a template that is nested too deeply
    raise UserError(
      f"the template {source!r} is not valid Jinja: {confined.said(error)}"
    ) from error
  optional = [t.node for t in tree.find_all(jinja2.nodes.Test) if t.name == "defined"]
  optional += [f.node for f in tree.find_all(jinja2.nodes.Filter) if f.name in ("default", "d")]
  names = {node.name for node in optional if isinstance(node, jinja2.nodes.Name)}
  return list(read - names - {"row"} - set(_ENVIRONMENT.globals))


def spans(tokens: Sequence[str], tags: Sequence[str]) -> list[tuple[str, str]]:
  """Joins the tokens of every entity: [("Redondo Beach", "location"), ...], in order.

  Tags are read as conlleval reads them: an I- that continues no entity of its kind begins one.
  """
  if len(tokens) != len(tags):
    raise UserError(f"{len(tokens)} tokens have {len(tags)} tags: expected one tag a token")
  entities, last = [], None
  for token, tag in zip(tokens, tags, strict=True):
    head, _, kind = str(tag).partition("-")
    if head not in ("B", "I", "O") or (head != "O") != bool(kind):
      raise UserError(f"tag {tag!r} is not BIO: expected O, B-kind or I-kind")
    if head == "I" and kind == last:
      entities[-1] = (f"{entities[-1][0]} {token}", kind)
    elif kind:
      entities.append((token, kind))
    last = kind
  return entities


def most_frequent(items: Iterable) -> list:
  """Returns the items that come most often, in the order in which each comes first."""
  counts = collections.Counter(items)
  return [item for item, count in counts.items() if count == max(counts.values())]


@jinja2.pass_context
def _choice(context: jinja2.runtime.Context, items: Iterable) -> object:
  """Chooses one of `items` by a hash of the row and of how many were chosen for it before."""
  items = list(items)
  if not items:
    raise UserError("choice: the list to choose from is empty")
  row = json.dumps(context["row"], sort_keys=True, default=str)
  digest = hashlib.blake2b(f"{next(context['_draws'])}\x1d{row}".encode(), digest_size=8).digest()
  return items[int.from_bytes(digest, "big") % len(items)]


class _NoText(Exception):
  """Holds a value that a template prints and that is no text."""


def _printable(value: object) -> object:
  if isinstance(value, jinja2.Undefined):
    return value
  if value is None:
    raise jinja2.UndefinedError("a column that the template prints holds null")
  if callable(value):
    raise jinja2.UndefinedError("the template prints a function")
  if not cells.is_text(value):
    raise _NoText(value)
  return value


@functools.lru_cache(maxsize=256)
def is_plain(source: str) -> bool:
  """Returns whether a template only prints cells, some of them under conditions.

  Such a template has no loop, call, product or variable of its own. Its time and its output are
  bounded by its length times that of the row, so that it may run in this process.
  """
  try:
    nodes = list(_ENVIRONMENT.parse(source[:_LONG]).find_all(jinja2.nodes.Node))
  except Exception:
    return False
  return len(source) < _LONG and len(nodes) < 500 and all(map(_is_simple, nodes))


def _is_simple(node: jinja2.nodes.Node) -> bool:
  if isinstance(node, jinja2.nodes.Test):
    return node.name in ("defined", "undefined", "none", "string", "number", "mapping", "sequence")
  if isinstance(node, (jinja2.nodes.List, jinja2.nodes.Tuple)):
    # A list as text doubles the backslashes of its texts: lists in lists would multiply them.
    return all(isinstance(one, jinja2.nodes.Const) or _is_cell(one) for one in node.items)
  if isinstance(node, jinja2.nodes.Filter):
    if node.dyn_args is not None or node.dyn_kwargs is not None:
      return False
    if node.name == "join":  # of a cell: joining what was joined before would multiply
      between = [one.value for one in node.args if isinstance(one, jinja2.nodes.Const)]
      simple = isinstance(node.node, jinja2.nodes.Name) and len(str(between)) < 20
      return simple and len(node.args) == len(between) and not node.kwargs
    return node.name in _SIMPLE_FILTERS or (node.name == "trim" and not node.args)
  return isinstance(node, _SIMPLE)


def _is_cell(node: jinja2.nodes.Node) -> bool:
  """Says whether a node is a column, or an item of one."""
  item = isinstance(node, (jinja2.nodes.Getattr, jinja2.nodes.Getitem))
  return _is_cell(node.node) if item else isinstance(node, jinja2.nodes.Name)


_LARGEST = 1_000_000
_LONG = 20_000
_SIMPLE_FILTERS = (
  "capitalize", "count", "d", "default", "first", "last", "length", "lower", "string", "upper",
)  # fmt: skip
_SIMPLE = (
  jinja2.nodes.Template, jinja2.nodes.Output, jinja2.nodes.TemplateData, jinja2.nodes.If,
  jinja2.nodes.CondExpr, jinja2.nodes.Compare, jinja2.nodes.Operand, jinja2.nodes.And,
  jinja2.nodes.Or, jinja2.nodes.Not, jinja2.nodes.Name, jinja2.nodes.Const, jinja2.nodes.Getattr,
  jinja2.nodes.Getitem, jinja2.nodes.Slice, jinja2.nodes.Add, jinja2.nodes.Sub, jinja2.nodes.Concat,
)  # fmt: skip
_ENVIRONMENT = jinja2.sandbox.ImmutableSandboxedEnvironment(
  undefined=jinja2.StrictUndefined, keep_trailing_newline=True, finalize=_printable
)
_ENVIRONMENT.filters |= {
  "choice": _choice, "random": _choice, "most_frequent": most_frequent, "spans": spans,
  "highlight": lambda text: text,
}  # fmt: skip
_ENVIRONMENT.globals["zip"] = zip  # promptsource's
del _ENVIRONMENT.globals["lipsum"]  # random text
