"""What the page of a sweep shows of single trials: answers beside references."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxtune.runs.folder import read_predictions
from jaxtune.sweeps import stats
from jaxtune.sweeps.table import Table

_MOST = 12  # examples
_EVALUATIONS = 5  # whose answers are shown
_LONGEST = 2000  # characters of a text


def of_winners(rows: Sequence[stats.Row], metric: str) -> list[dict]:
  """Puts what the best configuration of each method answered beside the base and the reference.

  Args:
    rows: best first; their results have a "folder".
  """
  winners: dict[str, dict[str, dict]] = {}  # {label: {place in the data: line}}, of one a method
  for method in dict.fromkeys(row.settings["method.name"] for row in rows):
    row = next(row for row in rows if row.settings["method.name"] == method)
    single = [stats.Row("", {}, (result,)) for result in row.results]
    best = stats.best_first(single, metric)[0].results[0]
    if lines := read_predictions(Path(best["folder"])):
      winners[row.label] = {str(line["where"]): line for line in lines}
  if not winners:
    return []
  found = []
  for where, line in itertools.islice(next(iter(winners.values())).items(), _MOST):
    answers = [
      {"name": label, "text": _text(lines[where]["prediction"])}
      for label, lines in winners.items()
      if where in lines
    ]
    if "base" in line:
      answers.insert(0, {"name": "base (untuned)", "text": _text(line["base"])})
    references = line["references"]
    references = references if isinstance(references, list) else [references]
    shown = {"where": where, "prompt": _text(line["prompt"]), "answers": answers}
    found.append(shown | {"references": [_text(one) for one in references]})
  return found


def while_training(trial: str, history: Sequence[dict]) -> dict[str, Table]:
  """Makes {title: table} of what a policy answered at its evaluations.

  Args:
    history: the lines of its metrics.jsonl, whose "answers" `evaluation.answers` makes.
  """
  kept = [line for line in history if isinstance(line.get("answers"), list)]
  shown = [(line["step"], *one.values()) for line in kept[:: -(-len(kept) // _EVALUATIONS) or 1]
           for one in line["answers"]]  # fmt: skip
  rows = []
  for asked in dict.fromkeys(prompt for _, prompt, *_ in shown):
    own = [one for one in shown if one[1] == asked]
    names = [_line(asked), *[""] * (len(own) - 1)]
    rows += [
      [name, str(step), "-" if reward is None else f"{reward:.3f}", _line(answer)]
      for name, (step, _, answer, reward) in zip(names, own, strict=True)
    ]
  header = ["prompt", "step", "reward", "answer"]
  return {f"Answers of {trial} while it was trained": Table(header, rows)} if rows else {}


def _line(text: str) -> str:
  return " ".join(_text(text).split())


def _text(value: Any) -> str:
  text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
  return text if len(text) <= _LONGEST else text[:_LONGEST] + " …"
