"""Says which trials a sweep has: functions for config files, which return plain data.

  from jaxtune.sweeps import declare

  ranks = declare.grid({"method.rank": [1, 4, 16], "seed": [0, 1, 2]})
  drawn = declare.random({"optim.learning_rate": declare.log_uniform(1e-4, 1e-1)}, 8, seed=0)
  config.sweep = declare.where(
    declare.product(ranks, drawn),
    lambda setting: setting["method.rank"] < 16 or setting["optim.learning_rate"] < 1e-2,
  )

Each returns a sweep as `grid.expand` takes it, a tuple of dicts {axis: list of values}, so that a
sweep's config.json says in full what was drawn and left out. An axis is any key of the config, or
a whole section such as "method". The functions are called as those of this module, as two of them
have the names of builtins.
"""

from __future__ import annotations

import builtins
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any

from jaxtune import schema
from jaxtune.errors import UserError, check_known, nearest
from jaxtune.sweeps import grid as grids
from jaxtune.sweeps.matching import match
from jaxtune.sweeps.tuning import tune

__all__ = [
  "chain", "choice", "exclude", "grid", "integers", "log_uniform", "match", "product", "random",
  "tune", "uniform", "where", "zip",
]  # fmt: skip

Sweep = grids.Grid | Sequence[grids.Grid]
Distribution = Callable[[float], Any]  # from a number in [0, 1) to a value
Condition = Callable[[Mapping[str, Any]], Any]


def grid(axes: grids.Grid) -> tuple[dict, ...]:
  """Declares every combination of the axes' values, the last axis varying fastest."""
  return grids.plain(axes)


def zip(axes: grids.Grid) -> tuple[dict, ...]:
  """Declares one trial of the first values of all axes, one of the second values, and so on.

  Raises:
    UserError: axes of different lengths.
  """
  (plain,) = grids.plain(axes)
  lengths = {axis: len(values) for axis, values in plain.items()}
  if len(set(lengths.values())) > 1:
    said = ", ".join(f"{axis!r} has {length}" for axis, length in lengths.items())
    raise UserError(f"zip needs as many values of every axis, but {said}")
  rows = builtins.zip(*plain.values(), strict=True)
  return _listed([dict(builtins.zip(plain, row, strict=True)) for row in rows])


def chain(*sweeps: Sweep) -> tuple[dict, ...]:
  """Declares the trials of one sweep after another; one that several have is run once."""
  return grids.plain(list(itertools.chain.from_iterable(map(grids.plain, sweeps))))


def product(*sweeps: Sweep) -> tuple[dict, ...]:
  """Declares every combination of a trial of each sweep, those of the last varying fastest.

  Raises:
    UserError: an axis that two of them have.
  """
  joined = []
  for parts in itertools.product(*map(grids.plain, sweeps)):
    axes = [axis for part in parts for axis in part]
    if twice := [axis for axis in axes if axes.count(axis) > 1]:
      raise UserError(f"two sweeps of a product have the axis {twice[0]!r}: leave it out of one")
    joined.append(dict(itertools.chain.from_iterable(part.items() for part in parts)))
  return grids.plain(joined)


def random(
  axes: Mapping[str, Distribution], count: int, seed: int | None = None
) -> tuple[dict, ...]:
  """Draws different trials. With the same seed, a larger count has the trials of a smaller one.

  Args:
    axes: {axis: `log_uniform(...)`, `uniform(...)`, `integers(...)` or `choice(...)`}.
    count: how many trials.
    seed: of the drawing; it is no trial's seed.

  Raises:
    UserError: also where so many different trials do not exist.
  """
  schema.check("the count of a random sweep", count, schema.Count)
  if seed is None:
    raise UserError("a random sweep has no seed and would differ each time: give it seed=0")
  schema.check("the seed of a random sweep", seed, schema.Seed)
  for axis, draw in axes.items():
    if not callable(draw):
      raise UserError(
        f"random axis {axis!r} is {schema.shown(draw)}, expected log_uniform(low, high), "
        "uniform(low, high), integers(low, high) or choice(values)"
      )
  grids.plain(dict.fromkeys(axes, [0]))  # checks their names
  # Of all of Random, only random() is promised to be the same in every version of Python.
  generator, drawn = Random(seed), []
  for _ in range(100 * count):
    setting = {axis: draw(generator.random()) for axis, draw in axes.items()}
    if setting not in drawn:
      drawn.append(setting)
    if len(drawn) == count:
      return grids.plain(_listed(drawn))
  raise UserError(
    f"a random sweep of {count} trials found {len(drawn)} different ones: lower count"
  )


def log_uniform(low: float, high: float) -> Distribution:
  """Draws numbers whose logarithms are uniform, rounded to three digits, so that names are short.

  Raises:
    UserError: a range that is not positive or has no end above its beginning.
  """
  if not (_is_number(low) and _is_number(high) and 0 < low < high < math.inf):
    raise UserError(
      f"log_uniform has the range {low!r} to {high!r}, expected positive numbers, the lower first"
    )
  return lambda u: _rounded(low * (high / low) ** u, low, high)


def uniform(low: float, high: float) -> Distribution:
  """Draws numbers of a range evenly, rounded to three digits, so that names are short."""
  if not (_is_number(low) and _is_number(high) and -math.inf < low < high < math.inf):
    raise UserError(f"uniform has the range {low!r} to {high!r}, expected numbers, the lower first")
  return lambda u: _rounded(low + (high - low) * u, low, high)


def integers(low: int, high: int) -> Distribution:
  """Draws whole numbers from `low` to `high`, both of which may come."""
  if not (isinstance(low, int) and isinstance(high, int) and low <= high):
    raise UserError(f"integers has the range {low!r} to {high!r}, expected whole numbers in order")
  return lambda u: low + int(u * (high - low + 1))


def choice(values: Sequence) -> Distribution:
  """Draws one of these values, all of which are as likely."""
  if not isinstance(values, (list, tuple)) or not values:
    raise UserError(f"choice has {schema.shown(values)}, expected a list of values, such as [1, 4]")
  return lambda u: values[int(u * len(values))]


def where(sweep: Sweep, condition: Condition) -> tuple[dict, ...]:
  """Keeps the trials of which a condition is true.

  Args:
    condition: (setting) -> whether to keep it. A setting is {axis: value}; a section that is an
      axis is also there by its keys, as "method.rank".

  Raises:
    UserError: a condition that is true of no trial, or that reads what a trial does not have.
  """
  trials = grids.expand(sweep)
  kept = [trial for trial in trials if _read(condition, trial)]
  if not kept:
    named = grids.name(trials[0])
    raise UserError(f"a condition of the sweep is true of none of its {len(trials)} trials ({named}"
                    f"{', ...' * (len(trials) > 1)}): correct it or leave it out")  # fmt: skip
  return _listed(kept)


def exclude(sweep: Sweep, *exclusions: Mapping[str, Any]) -> tuple[dict, ...]:
  """Leaves out the trials that have all values of one of the exclusions, {axis: value}.

  Raises:
    UserError: an exclusion that names no axis, hits no trial or, with the others, hits all.
  """
  trials = grids.expand(sweep)
  known, kept = set(itertools.chain.from_iterable(map(_seen, trials))), trials
  for exclusion in exclusions:
    for axis in exclusion:
      check_known("axis in an exclusion:", axis, known)
    (wanted,) = grids.expand(_listed([exclusion]))
    hit = [trial for trial in trials if _seen(trial) | wanted == _seen(trial)]
    if not hit:
      raise UserError(
        f"the exclusion {dict(exclusion)!r} hits none of the {len(trials)} trials of the sweep: "
        "correct it or leave it out"
      )
    kept = [trial for trial in kept if trial not in hit]
  if not kept:
    raise UserError(f"the exclusions hit all {len(trials)} trials of the sweep: leave one out")
  return _listed(kept)


def _read(condition: Condition, trial: dict) -> bool:
  """Says whether a condition is true of a trial."""
  try:
    return bool(condition(_seen(trial)))
  except KeyError as error:
    (axis,) = error.args
    raise UserError(
      f"a condition of the sweep reads {axis!r}, which the trial {grids.name(trial)} does not "
      f"have; {nearest(axis, _seen(trial))} (setting.get(...) reads what only some trials have)"
    ) from error


def _seen(trial: dict) -> dict[str, Any]:
  """Returns the settings of a trial with the keys of its sections."""
  return grids.flatten(trial) | trial


def _listed(trials: Sequence[Mapping[str, Any]]) -> tuple[dict, ...]:
  """Returns the sweep of just these trials."""
  return tuple({axis: [value] for axis, value in trial.items()} for trial in trials)


def _rounded(value: float, low: float, high: float) -> float:
  return float(min(max(float(f"{value:.3g}"), low), high))


def _is_number(value: Any) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool)
