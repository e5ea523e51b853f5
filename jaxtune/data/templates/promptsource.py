"""Template files: reads YAML safely, and the form of promptsource's templates.

In promptsource (Bach et al. 2022, arXiv:2202.01279) a template is one Jinja text, "prompt |||
answer", and its answer choices are a list or a text with "|||" between them. If the text renders to
nothing, the row has no answer, which `data.no_target` refuses or leaves out. If several answers
follow a prompt, all are accepted.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError

from jaxtune.data import confined
from jaxtune.errors import UserError
from jaxtune.schema import shown

BAR = "|||"
_METRICS = {
  "accuracy": ("accuracy",), "bleu": ("bleu",), "rouge": ("rouge1", "rouge2", "rougeL"),
  "squad": ("squad_exact_match", "squad_f1"), "pearson correlation": ("pearson",),
  "spearman correlation": ("spearman",),
}  # fmt: skip


class _Loader(yaml.SafeLoader):
  """Reads plain data, and the two tags of promptsource as mappings."""


def _refuse(loader: _Loader, node: yaml.Node) -> None:
  problem = f"the tag {node.tag!r} is refused: only !Template and !TemplateMetadata are read"
  raise ConstructorError(None, None, problem, node.start_mark)


for _tag in ("!Template", "!TemplateMetadata"):
  _Loader.add_constructor(_tag, lambda loader, node: loader.construct_mapping(node, deep=True))
_Loader.add_constructor(None, _refuse)


def parse(document: str, path: str | Path) -> Any:
  """Reads one YAML document; tags other than promptsource's two are refused, never built.

  Raises:
    UserError: with the line, for a text that is not YAML or is nested too deeply.
  """
  try:
    return yaml.load(document, _Loader)
  except yaml.MarkedYAMLError as error:
    mark = error.problem_mark or error.context_mark
    line = f":{mark.line + 1}" if mark else ""
    raise UserError(f"{path}{line}: {confined.said(error.problem or error.context)}") from error
  except RecursionError as error:
    raise UserError(f"{path}: YAML nested too deeply to be read") from error
  except MemoryError:
    raise
  except Exception as error:  # an impossible date, a number of too many digits, an unhashable key
    raise UserError(f"{path}: not readable as YAML: {confined.said(error)}") from error


def is_one(document: object) -> bool:
  """Returns whether a file has promptsource's form; in our own, templates are a list."""
  entries = isinstance(document, dict) and document.get("templates")
  return bool(entries) and not isinstance(entries, list)


def templates(document: dict, path: str | Path) -> list[dict]:
  """Returns the templates with our names for their parts; the answer is None, as the prompt has it.

  Raises:
    UserError: for an entry without name or jinja.
  """
  entries = document["templates"]
  if not isinstance(entries, dict):
    said = f"{path}: templates is {shown(entries)}"
    raise UserError(f"{said}, expected !Template entries by their id")
  return [_template(entry, f"{path}: template {key}") for key, entry in entries.items()]


def _template(entry: object, where: str) -> dict:
  if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
    raise UserError(f"{where} has no name")
  if not isinstance(entry.get("jinja"), str):
    named = f"{where} ({shown(entry['name'])})"
    raise UserError(f"{named} has no jinja, the text of prompt and answer")
  choices = entry.get("answer_choices") or ()
  if isinstance(choices, str):
    # Of a text with Jinja the bars count only once it is rendered.
    choices = [choices] if "{" in choices else [one.strip() for one in choices.split(BAR)]
  metadata = entry.get("metadata") or {}
  metrics = metadata.get("metrics") or () if isinstance(metadata, dict) else ()
  if isinstance(metrics, list) and all(isinstance(name, str) for name in metrics):
    metrics = [one for name in metrics for one in _METRICS.get(name.lower(), (name,))]
  parts = {"name": entry["name"], "prompt": entry["jinja"], "answer": None}
  return parts | {"answer_choices": choices, "metrics": metrics}
