"""Methods at equal budgets: sizes, and numbers of updates, that a sweep solves for by itself.

  config.sweep = declare.product(
    declare.match(
      ["lora", "prefix", {"name": "adapter", "placement": "parallel"}],
      parameters=74_000,
      learning_rate=declare.tune([1e-3, 1e-2, 1e-1]),
    ),
    {"seed": [0, 1, 2]},
  )

A config file knows neither the model nor the data, so that `match` leaves what is to be found open;
`api.matched` finds it before the trials are listed. Methods of one size, each with its own rate,
chosen on validation, are what a comparison of methods on test should be made of.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from jaxtune.errors import UserError
from jaxtune.sweeps.tuning import PATH

OPEN = "match"  # the key of what is left open, and what stands in place of a size to be found
STEPS = "train.steps"
SIZES = ("rank", "length", "width")  # options that are sizes, where none is named
MOST = 2**40  # beyond which nothing is tried
MOST_AT_LEAST = 4096  # beyond which the least number is not looked for
BUDGETS = {"parameters": "trained parameters", "flops": "FLOPs", "seconds": "seconds of training"}


class Solution(NamedTuple):
  """The whole number whose count is the nearest to a budget.

  Attributes:
    number: at least 1.
    reached: its count.
  """

  number: int
  reached: float


def match(
  methods: Sequence[str | Mapping[str, Any]],
  *,
  parameters: int | None = None,
  flops: float | None = None,
  seconds: float | None = None,
  learning_rate: Any = None,
) -> tuple[dict, ...]:
  """Declares trials of methods at the same budgets.

  Args:
    methods: names or sections. With `parameters`, one option of each is left open: the one that is
      "match", as in {"name": "adalora", "target_rank": 2, "init_rank": "match"}, also within a
      stack, or else its rank, length or width.
    parameters: trained parameters, with those of a task's head, that all get; the nearest size is
      taken.
    flops: FLOP of training (see `runs.costs`) that all get, by their number of updates.
    seconds: the same for the time of updates, measured on this machine in a short run.
    learning_rate: of all of them, or {name of a method: rate}; a rate may be `tune([...])`.

  Raises:
    UserError: no budget, one that is not positive, or both FLOPs and seconds.
  """
  budgets = {"parameters": parameters, "flops": flops, "seconds": seconds}
  given = {name: value for name, value in budgets.items() if value is not None}
  for name, value in given.items():
    _check_amount(name, value)
  if not given or len(given) == 3 or {"flops", "seconds"} <= given.keys():
    said = ", ".join(given) or "no budget"
    raise UserError(f"match has {said}, expected parameters, flops or seconds, not both of these")
  if isinstance(methods, str | Mapping) or not methods:
    raise UserError(
      f"match has the methods {methods!r}, expected a list such as ['lora', 'prefix']"
    )
  sections = [{"name": one} if isinstance(one, str) else dict(one) for one in methods]
  rates = learning_rate if _by_method(learning_rate) else None
  axes: list[dict] = []
  for section in sections:
    one: dict[str, list] = {"method": [section]}
    if parameters is not None:
      one = {"method": [_opened(section, {OPEN: {"parameters": parameters}})]}
    if rates is not None and section["name"] not in rates:
      raise UserError(f"match has no learning_rate for {section['name']!r}: add one")
    if learning_rate is not None:
      one[PATH] = [rates[section["name"]] if rates is not None else learning_rate]
    updates = {name: value for name, value in given.items() if name != "parameters"}
    axes.append(one | ({STEPS: [{OPEN: updates}]} if updates else {}))
  return tuple(axes)


def _check_amount(name: str, value: Any) -> None:
  if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
    raise UserError(f"match has {name}={value!r}, expected a positive number")


def _by_method(rate: Any) -> bool:
  return isinstance(rate, Mapping) and "tune" not in rate


def _opened(section: Mapping[str, Any], budget: dict) -> dict:
  """Returns a section in which the budget stands for what is open."""
  path = find(section, lambda value: value == OPEN)
  return put(section, path, budget) if path else {**section, OPEN: budget[OPEN]}


def is_open(value: Any) -> bool:
  """Says whether a value, or anything in it, is left open."""
  if isinstance(value, Mapping):
    return OPEN in value or any(map(is_open, value.values()))
  return isinstance(value, list | tuple) and any(map(is_open, value))


def budget_of(value: Any) -> tuple[str, float] | None:
  """Returns the (name, amount) of the budget by which a value is to be found, if it is.

  Raises:
    UserError: where a config that was written by hand states no budget, several, or a wrong one.
  """
  if not isinstance(value, Mapping) or not isinstance(value.get(OPEN), Mapping):
    return None
  if len(value[OPEN]) != 1 or not value[OPEN].keys() <= BUDGETS.keys():
    said = ", ".join(map(str, value[OPEN])) or "no budget"
    raise UserError(f"match has {said}, expected one of {', '.join(BUDGETS)}")
  ((name, amount),) = value[OPEN].items()
  _check_amount(name, amount)
  return name, amount


def find(section: Mapping[str, Any], chosen: Callable[[Any], bool]) -> tuple[str, ...]:
  """Returns the path of the first chosen value in a section of sections; () if there is none."""
  for key, value in section.items():
    if chosen(value):
      return (key,)
    if isinstance(value, Mapping) and (rest := find(value, chosen)):
      return key, *rest
  return ()


def put(section: Mapping[str, Any], path: Sequence[str], value: Any) -> dict:
  """Returns a section with a value at a path."""
  key, *rest = path
  return {**section, key: put(section[key], rest, value) if rest else value}


def solve(count: Callable[[int], float], budget: float) -> tuple[Solution, str]:
  """Finds the whole number whose count is the nearest to a budget, of two the lower one.

  Args:
    count: does not fall with its argument, and raises UserError for one that is too small or too
      large.

  Returns:
    (the solution, "" or why no number comes nearer to a budget that is out of reach).
  """
  least, below = _least(count)
  low, high = least, 2 * least
  if below > budget:
    return Solution(least, below), "this is the least"
  above, why = _tried(count, high)
  while above <= budget and high < MOST:
    low, below, high = high, above, 2 * high
    above, why = _tried(count, high)
  if above <= budget:
    return Solution(low, below), "it does not grow with it"
  while high - low > 1:
    middle = (low + high) // 2
    between, said = _tried(count, middle)
    if between > budget:
      high, above, why = middle, between, said
    else:
      low, below = middle, between
  if above - budget < budget - below:
    return Solution(high, above), ""
  last = below - count(low - 1) if low > least else 0.0
  return Solution(low, below), "" if budget - below <= last / 2 else why


def _least(count: Callable[[int], float]) -> Solution:
  """Finds the least number that has a count; raises the error of 1 where there is none."""
  if (first := _tried(count, 1)[0]) < math.inf:
    return Solution(1, first)
  low, high = 1, 2
  while (reached := _tried(count, high)[0]) == math.inf:
    low, high = high, 2 * high
    if low > MOST_AT_LEAST:
      return Solution(1, count(1))
  while high - low > 1:
    middle = (low + high) // 2
    found = _tried(count, middle)[0]
    low, high, reached = (middle, high, reached) if found == math.inf else (low, middle, found)
  return Solution(high, reached)


def _tried(count: Callable[[int], float], number: int) -> tuple[float, str]:
  """Returns a count, or infinity and why there is none."""
  try:
    return count(number), ""
  except UserError as error:
    return math.inf, str(error)
