"""The sandbox that templates run in: Jinja, and the few filters it has beyond Jinja's own.

spans          {% for text, kind in tokens | spans(ner_tags) %}: the entities of BIO tags
choice, random one of a list, drawn by the row's content: the same row always draws the same
most_frequent  the items of a list that come most often
highlight      nothing (promptsource marks variables with it on screen)
"""

from __future__ import annotations

import collections
import functools
import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Sequence

import jinja2
import jinja2.meta
import jinja2.nodes
import jinja2.sandbox

from jaxtune.data import cells
from jaxtune.errors import UserError, nearest


class Choices(list):
  """The answers that a row allows, by the label's number or its name.

  A list, but that "1" out of a text file is number 1, that -1, which data sets put where nobody
  judged, is not the last, and that a label beyond the end is an error instead of nothing.
  """

  def __getitem__(self, label):
    if isinstance(label, slice):
      return super().__getitem__(label)
    named = [choice for choice in self if choice.casefold() == str(label).strip().casefold()]
    numbered = isinstance(label, bool) or str(label).strip().isdecimal()
    if numbered and int(label) < len(self):
      found = super().__getitem__(int(label))
      if named and isinstance(label, str | bool) and named[0] != found:
        raise UserError(
          f"label {label!r} is the name of one answer choice and the number of another: write the "
          "answer without answer_choices[...]."
        )
      return found
    if named:
      return named[0]
    raise UserError(
      f"label {label!r} is outside the answer choices: expected 0 to {len(self) - 1} "
      f"or one of {', '.join(self)}. {nearest(str(label), self)}"
    )


def is_template(text: str) -> bool:
  """Tells Jinja from the name of a column."""
  return "{{" in text or "{%" in text


def variables(source: str) -> tuple[set[str], set[str]]:
  """Lists the variables a template needs, and all that it reads.

  `x is defined` and `x | default(...)` make a column optional.
  """
  try:
    tree = _ENVIRONMENT.parse(source)
    _ENVIRONMENT.from_string(source)
  except jinja2.TemplateError as error:
    raise UserError(f"The template {source!r} is not valid Jinja: {error}.") from error
  read = jinja2.meta.find_undeclared_variables(tree)
  optional = [t.node for t in tree.find_all(jinja2.nodes.Test) if t.name == "defined"]
  optional += [f.node for f in tree.find_all(jinja2.nodes.Filter) if f.name in ("default", "d")]
  names = {node.name for node in optional if isinstance(node, jinja2.nodes.Name)}
  return read - names - {"row"} - set(_ENVIRONMENT.globals), read


@functools.lru_cache(maxsize=256)
def renderer(source: str) -> Callable[..., str]:
  """Compiles a template to (row, **more variables) -> text.

  Raises:
    UserError: what is wrong with template or row; the place is the caller's to add.
  """
  needed, _ = variables(source)
  template = _ENVIRONMENT.from_string(source)

  def run(row: dict, **more) -> str:
    try:
      text = template.render({"row": row} | row | more | {"_draws": itertools.count()})
      cells.check_characters("the text that the template makes", text)
      return text
    except UserError:
      raise
    except jinja2.UndefinedError as error:
      missing = sorted(name for name in needed - set(more) if row.get(name) is None)
      if missing:
        raise UserError(cells.no_column(missing[0], row)) from error
      raise UserError(f"the template failed: {error}.") from error
    except _NoText as error:
      held = [name for name in sorted(needed - set(more)) if row.get(name) is error.value]
      what = f"column {held[0]!r} holds" if held else "the template prints"
      raise UserError(cells.no_text(what, error.value)) from error
    except jinja2.sandbox.SecurityError as error:
      raise UserError(f"the template is refused: {error}.") from error
    except Exception as error:
      raise UserError(f"the template failed: {error}.") from error

  return run


def spans(tokens: Sequence[str], tags: Sequence[str]) -> list[tuple[str, str]]:
  """Joins the tokens of every entity: [("Redondo Beach", "location"), ...], in order.

  Read as conlleval does: an I- that continues nothing of its kind begins an entity too.
  """
  if len(tokens) != len(tags):
    raise UserError(f"{len(tokens)} tokens have {len(tags)} tags: expected one tag a token.")
  found, last = [], None
  for token, tag in zip(tokens, tags, strict=True):
    head, _, kind = str(tag).partition("-")
    if head not in ("B", "I", "O") or (head != "O") != bool(kind):
      raise UserError(f"tag {tag!r} is not BIO: expected O, B-kind or I-kind.")
    if head == "I" and kind == last:
      found[-1] = (f"{found[-1][0]} {token}", kind)
    elif kind:
      found.append((token, kind))
    last = kind
  return found


def most_frequent(items: Iterable) -> list:
  """Lists the items that come most often, in the order of their first."""
  counts = collections.Counter(items)
  return [item for item, count in counts.items() if count == max(counts.values())]


@jinja2.pass_context
def _choice(context: jinja2.runtime.Context, items: Iterable) -> object:
  """Draws one of `items`, by the row's content and how many were drawn for it before."""
  items = list(items)
  if not items:
    raise UserError("choice: the list to choose from is empty.")
  row = json.dumps(context["row"], sort_keys=True, default=str)
  digest = hashlib.blake2b(f"{next(context['_draws'])}\x1d{row}".encode(), digest_size=8).digest()
  return items[int.from_bytes(digest, "big") % len(items)]


class _NoText(Exception):
  """What a template prints is no text."""

  def __init__(self, value: object):
    super().__init__(value)
    self.value = value


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


_ENVIRONMENT = jinja2.sandbox.ImmutableSandboxedEnvironment(
  undefined=jinja2.StrictUndefined, keep_trailing_newline=True, finalize=_printable
)
_ENVIRONMENT.filters |= {
  "choice": _choice, "random": _choice, "most_frequent": most_frequent, "spans": spans,
  "highlight": lambda text: text,
}  # fmt: skip
_ENVIRONMENT.globals["zip"] = zip  # promptsource's
del _ENVIRONMENT.globals["lipsum"]  # random text
