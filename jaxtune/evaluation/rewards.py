"""Rewards of answers: functions that a config names, and their weighted sum.

A name in a config's `rollout.rewards` is one of

  "exact_match"              any metric of generated text, of each answer alone (`text.of_one`),
                             from 0 to 1: here 1 where the answer is an accepted one, else 0
  "length"                   the number of characters of the answer
  "matches:^[0-9]+$"         1 where the regular expression is found in the answer, else 0
  "rewards.py:has_title"     a function of a Python file, (prompts, completions, rows) -> floats,
                             one for each completion; rows are those that the prompts were made of
  "model:runs/reward"        the score of a finished reward model; see `runs.reward_model`
"""

from __future__ import annotations

import inspect
import itertools
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import regex

from jaxtune import data, hosts, libraries, metrics, schema
from jaxtune.errors import UserError, check_known, nearest
from jaxtune.files import expanded

PATTERN = "matches:"
MODEL = "model:"  # before the folder of a reward model, which `runs.reward_model` finds


class Failed(UserError):
  """A function fails to judge answers."""


class _Hangs(Failed):
  """It takes longer than it may."""


class Answers(NamedTuple):
  """Answers to be judged and what they answer; each list has an entry for every answer.

  Attributes:
    prompts, completions: without special tokens, and completions without spaces around them.
    references: the accepted answers.
    rows: those that the prompts were made of.
    exact: (prompt, completion) as the model has read and written them; () where they are the same.
  """

  prompts: Sequence[str]
  completions: Sequence[str]
  references: Sequence[Sequence[str]]
  rows: Sequence[dict]
  exact: Sequence[tuple[str, str]] = ()

  def one(self, n: int) -> Answers:
    """Returns answer n alone."""
    return Answers(*(values[n : n + 1] for values in self))


def answers_of(
  tokenizer: Any,
  prompts: Sequence[list[int]],
  completions: Sequence[list[int]],
  references: Sequence[Sequence[str]],
  rows: Sequence[dict],
) -> Answers:
  """Makes answers of the ids of prompts and of completions before their stop tokens."""
  plain = partial(tokenizer.decode, skip_special_tokens=True)
  said = [plain(ids).strip() for ids in completions]
  written = data.prompt_texts(tokenizer, prompts), map(tokenizer.decode, completions)
  exact = list(zip(*written, strict=True))
  return Answers(list(map(plain, prompts)), said, references, rows, exact)


Function = Callable[[Answers], Sequence[float]]


class Rewards(NamedTuple):
  """The rewards of a run.

  Attributes:
    functions: by their names in the config.
    weights: by name; 0 for a reward that is reported and not trained on.
    timeout: the seconds that one call of a function may take.
    on_error: "stop", or "skip" for answers that a function fails to judge.
  """

  functions: dict[str, Function]
  weights: dict[str, float]
  timeout: float = 60.0
  on_error: Literal["stop", "skip"] = "stop"


def labels(names: Sequence[str]) -> dict[str, str]:
  """Returns how rewards are reported, such as {"reward_has_title": "rewards.py:has_title"}."""
  found: dict[str, str] = {}
  for name in names:
    first, _, last = name.rpartition(":")
    label = "reward_" + (last if first.endswith(".py") or not first else first.partition(":")[0])
    numbered = (f"{label}_{n}" for n in itertools.count(len(found) + 1))
    found[next(one for one in itertools.chain([label], numbered) if one not in found)] = name
  return found


def compares(name: str) -> bool:
  """Says whether a reward compares an answer with a reference, as metrics do."""
  return name in metrics.KINDS["text"].METRICS


def make(
  names: Sequence[str],
  weights: Sequence[float] | None = None,
  models: Mapping[str, Function] | None = None,
  **options: Any,
) -> Rewards:
  """Finds the functions of rewards; the other options are fields of `Rewards`.

  Args:
    models: the functions of the names that are reward models.

  Raises:
    UserError: no reward, one twice, an unknown name, a file that does not have the function, or
      another number of weights than of names.
  """
  if not names:
    raise UserError("rollout.rewards is empty, expected names such as ('exact_match',)")
  weights = [1.0] * len(names) if weights is None else weights
  if len(weights) != len(names):
    raise UserError(
      f"rollout.weights has {len(weights)} numbers, expected one for each of {len(names)} rewards"
    )
  if twice := [name for name in names if list(names).count(name) > 1]:
    raise UserError(f"rollout.rewards has {twice[0]!r} twice: give it once, with another weight")
  if not any(weights):
    raise UserError("rollout.weights are all 0: nothing would be learnt; give one another weight")
  known = models or {}
  functions = {name: known[name] if name in known else _find(name) for name in names}
  return Rewards(functions, dict(zip(names, weights, strict=True)), **options)


def score(rewards: Rewards, answers: Answers) -> dict[str, np.ndarray]:
  """Judges N answers: returns {"reward": the weighted sum, "reward_NAME": each of them}, (N,).

  With on_error "skip", an answer that a function fails to judge has NaN. Of several processes the
  first one judges for all, as a judge may be slow, remote or random.

  Raises:
    Failed: where a function raises an error, takes too long, or returns another number of
      values, or one that is not finite, and on_error is "stop".
  """
  named = labels(list(rewards.functions))
  if not hosts.primary():
    unknown = np.zeros(len(answers.completions))
    return hosts.of_first_arrays(dict.fromkeys(("reward", *named), unknown))
  found = {label: _judged(rewards, name, answers) for label, name in named.items()}
  trained = {label: rewards.weights[name] for label, name in named.items() if rewards.weights[name]}
  total_N = sum(weight * found[label] for label, weight in trained.items())
  return hosts.of_first_arrays({"reward": np.asarray(total_N)} | found)


def _judged(rewards: Rewards, name: str, answers: Answers) -> np.ndarray:
  """Returns what one function says of every answer, (N,).

  If it fails, it is asked for each alone, but not if it hangs: each would take as long.
  """
  try:
    return _called(rewards, name, answers)
  except Failed as error:
    if rewards.on_error == "stop":
      raise
    asked = 0 if isinstance(error, _Hangs) else len(answers.completions)
  found = np.full(len(answers.completions), np.nan)
  for n in range(asked):
    try:
      found[n] = _called(rewards, name, answers.one(n))[0]
    except Failed:
      continue
  return found


def _called(rewards: Rewards, name: str, answers: Answers) -> np.ndarray:
  """Calls a function in a thread, which is left behind if it takes too long."""
  box: dict[str, Any] = {}

  def call() -> None:
    try:
      box["values"] = rewards.functions[name](answers)
    except BaseException as error:  # whatever a user's function raises, also by sys.exit()
      box["error"] = error

  thread = threading.Thread(target=call, daemon=True)
  thread.start()
  thread.join(rewards.timeout)
  said = f"reward {name!r}"
  if thread.is_alive():
    raise _Hangs(f"{said} took longer than rollout.timeout, {rewards.timeout} seconds")
  if "error" in box:
    error = box["error"]
    raise Failed(f"{said} failed with {type(error).__name__}: {error}") from error
  return _checked(said, box["values"], len(answers.completions))


def _checked(said: str, values: Any, count: int) -> np.ndarray:
  """Returns a function's values as an array (count,)."""
  try:
    values_N = np.asarray(values, np.float64)
  except Exception as error:  # whatever an object of a user's function does
    raise Failed(f"{said} returned {schema.shown(values)}, expected {count} numbers") from error
  if values_N.shape != (count,):
    got = f"an array of shape {values_N.shape}"
    raise Failed(f"{said} returned {got}, expected one number for each of {count} answers")
  if not np.isfinite(values_N).all():
    n = int(np.flatnonzero(~np.isfinite(values_N))[0])
    raise Failed(f"{said} returned {values_N[n]} for answer {n}, expected a finite number")
  return values_N


def file_of(name: str) -> Path | None:
  """Returns the Python file of a reward; None for one that has none."""
  path, colon, _ = name.rpartition(":")
  return expanded(path) if colon and not name.startswith((PATTERN, MODEL)) else None


def _find(name: str) -> Function:
  """Returns the function of a reward's name."""
  if name.startswith(PATTERN):
    return _matching(name.removeprefix(PATTERN).strip())
  if (path := file_of(name)) is not None:
    return _from_file(path, name.rpartition(":")[2])
  if name == "length":
    return lambda answers: [float(len(text)) for text in answers.completions]
  known = metrics.KINDS["text"].METRICS
  check_known("reward", name, ("length", *known))
  judge = partial(metrics.KINDS["text"].of_one, name)
  return lambda answers: list(map(judge, answers.completions, answers.references))


def _matching(pattern: str) -> Function:
  try:
    compiled = regex.compile(pattern)
  except regex.error as error:
    raise UserError(f"reward {PATTERN}{pattern} is no regular expression: {error}") from error
  return lambda answers: [float(bool(compiled.search(text))) for text in answers.completions]


def _from_file(path: Path, name: str) -> Function:
  """Returns a function of a Python file, which is run as a config file is."""
  if not path.is_file():
    raise UserError(f"reward {path}:{name}: no file {str(path)!r}, expected a Python file")
  try:
    module = libraries.run_file(path)
  except Exception as error:
    raise UserError(f"reward {path}:{name}: the file fails with {error!r}") from error
  functions = {key for key, value in vars(module).items() if inspect.isfunction(value)}
  if name not in functions:
    raise UserError(f"reward {path}:{name}: no function {name!r} there; {nearest(name, functions)}")
  function = vars(module)[name]
  return lambda answers: function(answers.prompts, answers.completions, answers.rows)
