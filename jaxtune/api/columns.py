"""Guesses from a file's columns what is to be learnt from it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxtune.data import cells, conversations, labels, templates
from jaxtune.data.encode.pairs import SIDES
from jaxtune.data.sources import Table
from jaxtune.errors import UserError, check_known

TASKS = {
  "sft": "write the answer to a prompt", "classify": "name the class of a text",
  "regression": "give the number of a text", "tokens": "tag every word",
  "qa": "find the answer in a text",
}  # fmt: skip
OF_LISTS = {"tokens": ("tokens", "ner_tags"), "qa": ("question", "context", "answers")}
LABELLED = ("text", "label")
MOST_CLASSES = 50


class Columns(NamedTuple):
  """What is learnt from a file.

  Attributes:
    task: the objective's name.
    options: of the `data` section.
    assumed: {what: how}, in words.
    answers: whether rows have prompts, which a model can be asked to answer.
  """

  task: str
  options: dict[str, Any]
  assumed: dict[str, str]
  answers: bool = False


def guess(
  table: Table,
  where: str,
  task: str | None = None,
  prompt: str | None = None,
  answer: str | None = None,
) -> Columns:
  """Guesses the task and the columns of a table, where they are not given.

  The columns that a task with a head reads by default suggest it, else a model learns to write.
  Prompts and answers are found as `templates.choose` and `conversations.column` find them; of two
  other columns the first is the prompt, or the text, and the second the answer, or the label.

  Raises:
    UserError: columns that are unknown, or of which only one is given.
  """
  for option, column in (("--prompt", prompt), ("--answer", answer)):
    if column is not None and column not in table.columns:
      raise UserError(f"{option}: {cells.missing_column_message(column, table.columns)}")
  pair = (prompt, answer)
  if (prompt is None) != (answer is None):
    raise UserError(f"--prompt and --answer go together: {where} has {', '.join(table.columns)}")
  task = task or ("sft" if prompt else _task(table))
  check_known("task", task, TASKS)
  found = {"task": f"{task}, to {TASKS[task]} (--task)"}
  if task in OF_LISTS:
    found |= {"columns": f"{', '.join(OF_LISTS[task])} (--config.data.rename)"}
    return Columns(task, {}, found)
  if prompt is None:
    pair = _pair(table, task, where)
  if task == "sft":
    return _written(table, pair, where, found)
  text, label = pair
  kinds = len({*map(labels.written, _labels(table, label))})
  said = {"text": f"column {text!r} (--prompt)", "label": f"column {label!r} (--answer)"}
  if task == "classify":
    said["label"] += f", {kinds} classes"
  options = {"rename": {"text": text, "label": label}, "too_long": "truncate"}
  return Columns(task, options, found | said)


def _task(table: Table) -> str:
  """Returns the task that the names of the columns, and their values, suggest."""
  names, first = set(table.columns), table.rows[0]
  for task, needed in OF_LISTS.items():
    if names.issuperset(needed) and not isinstance(first.get(needed[-1]), str):
      return task
  if not names.issuperset(LABELLED):
    return "sft"
  found = _labels(table, "label")
  few = len({*map(labels.written, found)}) <= min(MOST_CLASSES, len(table.rows) // 2)
  texts = {*map(str, found)}
  if all(map(_is_number, texts)) and not all(cell.lstrip("-").isdigit() for cell in texts):
    whole = all(float(cell).is_integer() for cell in texts)
    return "classify" if whole and few else "regression"
  return "classify" if few else "sft"


def _labels(table: Table, column: str) -> list:
  """Returns the labels in a column, without cells that hold none."""
  return [row[column] for row in table.rows if row.get(column) is not None]


def _pair(table: Table, task: str, where: str) -> tuple[str, str] | None:
  """Returns the columns of prompt and answer; None where those of `templates.choose` are there."""
  names = table.columns
  if set(names).issuperset(LABELLED):
    return LABELLED
  if task == "sft" and (conversations.column(names) or _is_known(names, where)):
    return None
  if set(names).issuperset(SIDES):
    raise UserError(
      f"{where} has pairs of answers, {' and '.join(SIDES)}: learn from both by a config with "
      "objective.name='dpo' (or 'reward'), or name what is written by --prompt COLUMN and "
      "--answer COLUMN"
    )
  if len(names) != 2:
    raise UserError(
      f"{where} has the columns {', '.join(names)}, of which none is known as prompt or answer: "
      "name them by --prompt COLUMN and --answer COLUMN"
    )
  return names[0], names[1]


def _written(
  table: Table, pair: tuple[str, str] | None, where: str, found: dict[str, str]
) -> Columns:
  """Returns what a model learns to write: answers, conversations or plain text."""
  if pair is not None:
    prompt, answer = pair
    said = {"prompt": f"column {prompt!r} (--prompt)", "answer": f"column {answer!r} (--answer)"}
    name = prompt if prompt.isidentifier() else f"row[{json.dumps(prompt)}]"
    options = {"template": f"{{{{ {name} }}}}\n", "answer": answer}
    return Columns("sft", options, found | said, answers=True)
  if column := conversations.column(table.columns):
    found |= {"conversations": f"column {column!r} (or --prompt and --answer)"}
    return Columns("sft", {}, found, answers=True)
  (template,) = templates.choose(table.columns, where=where).templates
  if template.prompt is None:
    found |= {"task": "sft, to write such text (--task)"}
    found |= {"text": f"column {template.answer!r}, without prompts (or --prompt and --answer)"}
    return Columns("sft", {}, found)
  read = [name for name in ("instruction", "input", "prompt") if name in table.columns]
  found |= {"prompt": f"column {' and '.join(map(repr, read))} (--prompt)"}
  found |= {"answer": f"column {template.answer!r} (--answer)"}
  return Columns("sft", {}, found, answers=True)


def _is_known(names: Sequence[str], where: str) -> bool:
  try:
    return bool(templates.choose(names, where=where).templates)
  except UserError:
    return False


def _is_number(text: str) -> bool:
  try:
    return float(text) == float(text)
  except ValueError:
    return False
