"""Makes the pairs of answers that people judge: by two runs, a run and its base, or from a file."""

from __future__ import annotations

import hashlib
import json
import operator
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxtune import data, files, peft, schema
from jaxtune.api.complete import (
  check_options,
  check_writes,
  complete,
  encode,
  has_task,
  room,
  worded,
)
from jaxtune.data import conversations, sources
from jaxtune.errors import UserError
from jaxtune.evaluation.votes.store import Pair, Project
from jaxtune.runs import folder as folder_
from jaxtune.runs import results
from jaxtune.runs.finished import Run, load_beside, load_run

COLUMNS = ("prompt", "answer_a", "answer_b")  # of a file that holds the answers
SOURCES = ("a", "b")
BASE = "the untuned base"


class Sampling(NamedTuple):
  """How answers are generated; see `complete`. The second source has the next seed."""

  task: str | None = None
  max_new_tokens: int = 64
  temperature: float = 0.0
  top_k: int | None = None
  top_p: float | None = None


def check_sampling(sampling: Sampling, seed: int, vocabulary: int | None = None) -> None:
  """Raises UserError for options out of range; the vocabulary is None before a model is loaded."""
  options = {name: value for name, value in sampling._asdict().items() if name != "task"}
  check_options(1, 0, which=None, seed=seed, vocabulary=vocabulary, **options)


def read(prompts: str | Path) -> sources.Table:
  """Reads a file of prompts: rows of JSON lines, CSV, TSV or Parquet, or the lines of a .txt."""
  name = str(prompts)
  plain = name.lower().removesuffix(".gz").endswith(".txt")
  return sources.read_lines(name) if plain else sources.read(name)


def identity(
  workdirs: Sequence[str | Path], table: sources.Table, sampling: Sampling, seed: int
) -> dict[str, Any]:
  """Returns what answers depend on: hashes of the prompts' file and of the runs, and the options.

  Raises:
    UserError: where a folder holds no run, there are too many, or both samples would be equal.
  """
  if len(workdirs) > 2:
    raise UserError(f"--workdir is given {len(workdirs)} times, expected two runs, one or none")
  if _are_samples(workdirs) and not sampling.temperature:
    raise UserError(
      "both samples of one run would be equal: give --temperature above 0, or two other runs"
    )
  content = json.dumps(sorted(table.hashes.values())).encode()
  stated: dict[str, Any] = {"prompts file": _short(hashlib.sha256(content).hexdigest())}
  runs = [_short(files.digest(folder_.read(Path(folder))[0])) for folder in workdirs]
  if runs:
    second = runs[1] if len(runs) == 2 else BASE
    stated |= {"first run": runs[0], "second run": second} | sampling._asdict()
  return stated | {"seed": seed}


def make(
  workdirs: Sequence[str | Path], table: sources.Table, sampling: Sampling, seed: int, stated: dict
) -> Project:
  """Makes the pairs: generates answers by the runs, or takes those of the file.

  Prompts that leave no room for an answer, empty prompts and equal answers are left out.

  Args:
    stated: the `identity`, with which the pairs are kept.

  Raises:
    UserError: where no pair is left; for rows that the runs or the file's columns do not fit.
  """
  if workdirs:
    names, pairs, lost = _generated(workdirs, table, sampling, seed)
  else:
    names, pairs, lost = SOURCES, *_given(table)
  kept = [pair for pair in pairs if pair.answers[0].strip() != pair.answers[1].strip()]
  skipped = lost | {"identical answers": len(pairs) - len(kept)}
  skipped = {reason: count for reason, count in skipped.items() if count}
  if not kept:
    said = ", ".join(f"{count} {reason}" for reason, count in skipped.items())
    raise UserError(f"no pair of answers is left to judge: of {len(table.rows)} prompts {said}")
  return Project(names, stated, seed, skipped, kept)


def _given(table: sources.Table) -> tuple[list[Pair], dict[str, int]]:
  """Reads pairs out of a file that has both answers of each prompt."""
  pairs, lost = [], Counter()
  for row, place in zip(table.rows, table.where, strict=True):
    try:
      prompt, *answers = (data.cells.check_text(column, row) for column in COLUMNS)
    except UserError as error:
      raise UserError(
        f"{place}: {error}; without --workdir each row has the columns {', '.join(COLUMNS)}"
      ) from error
    if prompt.strip():
      pairs.append(Pair(prompt, (answers[0], answers[1]), place))
    else:
      lost["empty prompts"] += 1
  return pairs, dict(lost)


def _generated(
  workdirs: Sequence[str | Path], table: sources.Table, sampling: Sampling, seed: int
) -> tuple[tuple[str, str], list[Pair], dict[str, int]]:
  """Generates both answers to every prompt that fits; returns names, pairs and what is left out."""
  runs, names = _load(workdirs)
  for number, run in enumerate(runs):
    check_writes(run)
    check_sampling(sampling, seed + number, run.pretrained.model.config.vocabulary)
    if room([run], sampling.max_new_tokens) < 1:
      raise UserError(
        f"max_new_tokens is {sampling.max_new_tokens}, expected fewer than the "
        f"{run.pretrained.model.config.positions} positions of the model of {run.folder}"
      )
  prompts, tasks = _prompts(table), _tasks(runs, sampling.task)
  try:
    shown, spoken = _worded(runs, prompts, sampling.task), [None] * len(prompts)
    if shown is None:
      spoken = [_conversation(row) for row in prompts]
      shown = [_written(one["messages"]) for one in spoken]
    else:
      prompts = shown
    asked = [n for n, text in enumerate(shown) if text.strip()]
    fits = asked
    for run, task in zip(runs, tasks, strict=True):
      fits = _fitting(run, prompts, fits, sampling._replace(task=task))
  except UserError as error:
    raise UserError(f"{', '.join(table.hashes)}: {error}") from error
  made = []
  for number, (run, name) in enumerate(zip(runs, names, strict=True)):
    print(f"answers of {name} to {len(fits)} prompts", flush=True)
    drawn = dict(seed=seed + number, **sampling._asdict()) | {"task": tasks[number]}
    made.append(complete(run, [prompts[n] for n in fits], **drawn) if fits else [])
  pairs = [
    Pair(shown[n], answers, table.where[n], spoken[n])
    for n, answers in zip(fits, zip(*made, strict=True), strict=True)
  ]
  lost = {
    "empty prompts": len(prompts) - len(asked),
    "too long for the model": len(asked) - len(fits),
  }
  return names, pairs, lost


def _worded(runs: Sequence[Run], prompts: list, task: str | None) -> list[str] | None:
  """Returns the texts that both runs are asked, those of the first; None for conversations.

  Raises:
    UserError: where the first one reads conversations, which the second one words by a template.
  """
  first, second = map(worded, runs, [prompts] * 2, _tasks(runs, task))
  if first == second:
    return first
  if first is None:
    raise UserError(
      f"{runs[0].folder} reads conversations by its chat template, and {runs[1].folder} by "
      "data.template, expected runs that read them alike"
    )
  n = 0 if second is None else [*map(operator.eq, first, second)].index(False)
  own = "by its chat template" if second is None else schema.shown(second[n])
  print(
    f"warning: both runs are asked the texts of {runs[0].folder}, such as "
    f"{schema.shown(first[n])}, which {runs[1].folder} would write {own}: give that run first "
    "to ask both its own texts",
    file=sys.stderr,
  )
  return first


def _tasks(runs: Sequence[Run], task: str | None) -> list[str | None]:
  """Returns by which task each run reads rows: one that lacks it by its only way."""
  own = [task if has_task(run, task) else None for run in runs]
  return own if any(own) else [task] * len(runs)


def _fitting(run: Run, prompts: list, numbers: list[int], sampling: Sampling) -> list[int]:
  """Returns the numbers of those prompts that leave a run's model room for an answer."""
  most = room([run], sampling.max_new_tokens)
  if not numbers:
    return []
  ids = encode(run, [prompts[n] for n in numbers], sampling.task)
  return [n for n, one in zip(numbers, ids, strict=True) if len(one) <= most]


def _load(workdirs: Sequence[str | Path]) -> tuple[list[Run], tuple[str, str]]:
  """Loads two runs, whose weights are in memory once if they are equal; or a run and its base."""
  first = load_run(workdirs[0])
  if len(workdirs) == 1:
    untuned = first._replace(adapted=peft.untuned(first.pretrained.params))
    return [first, untuned], (str(first.folder), BASE)
  if _are_samples(workdirs):
    return [first, first], (f"{first.folder}, sample 1", f"{first.folder}, sample 2")
  bases = [folder_.read(Path(folder))[1]["base"] for folder in workdirs]
  second = load_beside(workdirs[1], first) if bases[0] == bases[1] else load_run(workdirs[1])
  return [first, second], (str(first.folder), str(second.folder))


def _are_samples(workdirs: Sequence[str | Path]) -> bool:
  trials = [results.best_trial(Path(folder)).resolve() for folder in workdirs]
  return len(trials) == 2 and trials[0] == trials[1]


def _prompts(table: sources.Table) -> list[Any]:
  """Returns prompts as `complete` takes them: the lines of a text as they stand, rows otherwise."""
  plain = all(name.lower().removesuffix(".gz").endswith(".txt") for name in table.hashes)
  return [row["prompt"] for row in table.rows] if plain else list(table.rows)


def _conversation(row: dict) -> dict[str, Any]:
  """Returns the columns of a conversation that a chat template reads."""
  messages = conversations.turns(row, answered=False)
  return {"messages": messages} | {key: x for key, x in row.items() if key == "tools"}


def _written(turns: list[dict]) -> str:
  return "\n\n".join(conversations.written([turn]) for turn in turns)


def _short(digest: str) -> str:
  return f"sha256 {digest[:16]}"
