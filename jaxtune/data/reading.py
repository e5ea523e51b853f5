"""Rows of a file to examples: text, conversations, or the columns of a labelled task.

An objective's `read(table, name, options) -> Reading` is one of these functions.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

from jaxtune import schema
from jaxtune.data import confined, conversations, templates
from jaxtune.data.options import DataOptions
from jaxtune.data.sources import Table
from jaxtune.data.templates import Example, sandbox
from jaxtune.errors import UserError, nearest


class Reading(NamedTuple):
  """The examples of a split before they are encoded.

  Attributes:
    groups: the examples of each row: one for each template, or of each pair of its answers one for
      each template.
    form: how the rows were read, for the report.
    skipped: how many rows were left out, by reason.
  """

  groups: list[list[Example]]
  form: dict
  skipped: dict[str, int]

  @property
  def heads(self) -> list[Example]:
    """The first example of each row."""
    return [group[0] for group in self.groups]

  def keep(self, heads: Sequence[Example]) -> Reading:
    """Returns the reading of the rows whose first example is one of these."""
    kept = {id(example) for example in heads}
    return self._replace(groups=[group for group in self.groups if id(group[0]) in kept])

  def by_first_template(self) -> Reading:
    """Returns the reading with one example of each row, or of each pair, by its first template."""
    runs = lambda group: itertools.groupby(group, key=lambda example: id(example.row))
    return self._replace(groups=[[next(run) for _, run in runs(group)] for group in self.groups])

  def without_ties(self) -> Reading:
    """Returns the reading without pairs of answers that are rated alike, which it counts."""
    groups = [[one for one in group if one.difference] for group in self.groups]
    ties = sum(map(len, self.groups)) - sum(map(len, groups))
    skipped = self.skipped | ({"ties": ties} if ties else {})
    return self._replace(groups=[group for group in groups if group], skipped=skipped)


def read_text(table: Table, name: str, options: DataOptions, asked: bool = False) -> Reading:
  """Reads conversations if a column holds them and no template is given, else prompts.

  Args:
    asked: whether conversations may end in a user's turn; see `conversations.read`.
  """
  column = conversations.column(table.columns)
  if not column or options.template is not None or options.text is not None:
    return read_prompts(table, name, options)
  examples, skipped = conversations.read(table.rows, table.where, options.malformed, asked)
  return Reading([[example] for example in examples], {"column": column}, skipped)


def read_prompts(table: Table, name: str, options: DataOptions) -> Reading:
  """Renders the templates that `templates.choose` finds: all for train, else the first alone."""
  source = getattr(options, name)
  where = source if isinstance(source, str) else ", ".join(map(str, source))
  form = templates.choose(table.columns, where=where, **options.wording())
  if name != "train":
    form = form._replace(templates=form.templates[:1])
  examples, count = templates.render(form, table.rows, table.where), len(form.templates)
  groups = [examples[at : at + count] for at in range(0, len(examples), count)]
  return Reading(groups, form.record(), {})


def read_columns(read_row: Callable, table: Table, name: str, options: DataOptions) -> Reading:
  """Reads labelled rows, whose columns data.rename names by the arguments of `read_row`.

  Args:
    read_row: (row, **columns) -> (fields, prompt, answers), a function at the top of a module. The
      fields are added to the example's `row`; two splits are compared by prompt and answers.

  Raises:
    UserError: with file and line, unless malformed is "skip".
  """
  if options.template is not None or options.answer is not None:
    raise UserError(
      "data.template and data.answer are for text; this objective reads the columns that "
      "data.rename names"
    )
  columns = dict(options.rename or {})
  known = tuple(inspect.signature(read_row).parameters)[1:]
  for column in columns:
    if column not in known:
      raise UserError(f"data.rename has {column!r}, which is not read; {nearest(column, known)}")
    if not isinstance(columns[column], str):
      raise UserError(
        f"data.rename of {column!r} is {schema.shown(columns[column])}, expected one column, or "
        "Jinja: this objective knows no alternatives"
      )
  here = all(map(sandbox.is_plain, columns.values()))
  results = confined.each(_row_reader, table.rows, read_row, columns, here=here)
  groups, malformed = [], 0
  for row, place, result in zip(table.rows, table.where, results, strict=True):
    if not isinstance(result, UserError):
      fields, prompt, answers = result
      groups.append([Example(prompt, answers, row | fields, place, source=row)])
    elif options.malformed == "error" or isinstance(result, confined.Exceeded):
      raise UserError(f"{place}: {result}") from result
    else:
      malformed += 1
  return Reading(groups, {"fields": columns}, {"malformed": malformed} if malformed else {})


def _row_reader(read_row: Callable, columns: dict) -> Callable[[dict], tuple]:
  """Makes the function that reads a row; see `confined.each`."""
  return lambda row: read_row(row, **columns)
