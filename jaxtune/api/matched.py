"""Finds the sizes and numbers of updates that `declare.match` has left open."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from typing_extensions import TypedDict

from jaxtune import config as configs
from jaxtune import peft, schema
from jaxtune.errors import UserError
from jaxtune.files import write_atomically
from jaxtune.peft import unions
from jaxtune.preflight import budgets
from jaxtune.runs import programs
from jaxtune.runs.trial import Trial, outline, with_config
from jaxtune.sweeps import grid, groups, matching, tuning

FILE = "matched.json"
NOTE = "assumed budget"


class Matched(NamedTuple):
  """A config whose sweep leaves nothing open.

  Attributes:
    config: the config, with numbers in place of what was open.
    reached: what each method reached of its budget, in words; () where nothing was open.
    given: the config as it was given, as JSON.
  """

  config: Any
  reached: tuple[str, ...]
  given: str

  @property
  def notes(self) -> dict[str, str]:
    """What a report says of it."""
    return {NOTE: "; ".join(self.reached)} if self.reached else {}


class Kept(TypedDict):
  """What is read of matched.json."""

  __pydantic_config__ = schema.STRICT
  given: str
  sweep: list[dict[str, list]]
  reached: list[str]


def match(config: Any, workdir: Path | None = None) -> Matched:
  """Returns a config with numbers in place of what its sweep leaves open; see `sweeps.matching`.

  Args:
    workdir: the sweep's folder. What an earlier call found is taken from there, as a measured time
      is never the same: for the same config, but for what a run may change when it goes on.

  Raises:
    UserError: a budget that cannot be met, with the nearest that can.
  """
  plain = configs.to_dict(config)
  given = configs.to_json(plain)
  if not matching.is_open(list(grid.plain(plain.get("sweep") or [{"seed": [0]}]))):
    return Matched(config, (), given)
  path = workdir and workdir / FILE
  if path and path.exists():
    kept = schema.read_json(path, Kept, "delete it")
    alike = lambda text: configs.to_json(configs.unplaced(schema.parse_json(text, path)))
    if alike(kept["given"]) == alike(given):
      return Matched(plain | {"sweep": kept["sweep"]}, tuple(kept["reached"]), given)
  loaded: dict[str, Trial] = {}
  known: dict[str, tuple[dict, list[str]]] = {}
  found, reached = [], []
  for setting in grid.expand(plain["sweep"]):
    key = json.dumps({k: v for k, v in setting.items() if k not in ("seed", tuning.PATH)})
    if key not in known:
      known[key] = _solve(partial(_trial, plain, loaded), setting)
    new, said = known[key]
    found.append({axis: [new.get(axis, value)] for axis, value in setting.items()})
    reached += said
  return Matched(plain | {"sweep": found}, tuple(dict.fromkeys(reached)), given)


def keep(matched: Matched, workdir: Path) -> None:
  """Writes matched.json, if anything was open, and prints what was reached."""
  if matched.reached:
    print("equal budgets:", *matched.reached, sep="\n  ")
    kept = {"given": matched.given, "sweep": matched.config["sweep"], "reached": matched.reached}
    write_atomically(workdir / FILE, json.dumps(kept, indent=2))


def _trial(plain: dict, loaded: dict[str, Trial], setting: dict) -> Trial:
  """Returns a trial with the shapes of weights in place of weights."""
  bare = {key: value for key, value in plain.items() if key != "sweep"}
  config = configs.complete(tuning.stated(configs.override(bare, setting).to_dict()))
  key = groups.data_key(config)
  # Whatever the method is, so that a size that it cannot have loads nothing anew.
  if key not in loaded:
    loaded[key] = outline(config | {"method": configs.complete_method({"name": "full"})})
  return with_config(loaded[key], config)


class Gap(NamedTuple):
  """A value of a trial's settings that is left open.

  Attributes:
    axis, path: where it is: in the value of an axis.
    budget, amount: what is to be met, such as "parameters", 74000.
  """

  axis: str
  path: tuple[str, ...]
  budget: str
  amount: float


def _solve(trial_of: Callable[[dict], Trial], setting: dict) -> tuple[dict, list[str]]:
  """Returns what a trial has in place of what is open, by axis, and what it reaches, in words."""
  setting = {axis: _named(value) if axis == "method" else value for axis, value in setting.items()}
  gaps = [gap for axis, value in setting.items() for gap in _gaps(axis, value)]
  sizes = [gap for gap in gaps if gap.budget == "parameters"]
  updates = [gap for gap in gaps if gap.budget != "parameters"]
  for gap in gaps:
    whole = gap in sizes and not gap.path  # an axis of one option, without its method
    if (gap.axis == matching.STEPS) != (gap in updates) or len(sizes) > 1 or whole:
      raise UserError(f"{gap.axis} is left open for {gap.budget}: declare it by declare.match")
  bare = {k: v for k, v in setting.items() if k != matching.STEPS or not updates}
  known, said = bare, []
  for gap in sizes:
    count = lambda n, gap=gap: budgets.parameters(trial_of(_filled(bare, gap, n)))
    number, words = _nearest(count, gap, _method(known), gap.path[-1], _multiple(known, gap))
    known, said = _filled(known, gap, number), [words]
  for gap in updates:
    trial = trial_of(known)
    count, each = getattr(budgets, gap.budget)(trial), programs.updates(trial)
    number, words = _nearest(count, gap, _method(known), "steps", each)
    known, said = known | {gap.axis: number}, [*said, words]
  return {gap.axis: known[gap.axis] for gap in gaps}, said


def _named(section: Any) -> Any:
  """Names the option that is left open, where a section of a method does not: its size."""
  if not isinstance(section, dict) or matching.OPEN not in section:
    return section
  rest = {key: value for key, value in section.items() if key != matching.OPEN}
  name = rest.get("name")
  many = name == "stack" or name in unions.UNIONS
  options = () if many else inspect.signature(peft.constructor(name)).parameters
  size = next((size for size in matching.SIZES if size in options), None)
  if size is None:
    raise UserError(
      f"match: {name!r} has no {', '.join(matching.SIZES[:-1])} or {matching.SIZES[-1]} that meets "
      f'a budget: write "{matching.OPEN}" for the option that is to be found, or leave it out'
    )
  if size in rest:
    raise UserError(f"match: {name!r} has {size}={rest[size]!r} already: leave it out, or "
                    f'write "{matching.OPEN}" for the option that is to be found')  # fmt: skip
  return rest | {size: {matching.OPEN: section[matching.OPEN]}}


def _gaps(axis: str, value: Any) -> list[Gap]:
  is_gap = lambda x: matching.budget_of(x) is not None
  if is_gap(value):
    return [Gap(axis, (), *matching.budget_of(value))]
  path = matching.find(value, is_gap) if isinstance(value, dict) else ()
  inner = functools.reduce(dict.get, path, value)
  return [Gap(axis, path, *matching.budget_of(inner))] if path else []


def _filled(setting: dict, gap: Gap, number: int) -> dict:
  value = matching.put(setting[gap.axis], gap.path, number) if gap.path else number
  return setting | {gap.axis: value}


def _multiple(setting: dict, gap: Gap) -> int:
  """Returns what a size must be a multiple of: a Compacter's width, of its Kronecker products."""
  section = functools.reduce(dict.get, gap.path[:-1], setting[gap.axis])
  if (section.get("name", *gap.path[-2:-1]), gap.path[-1]) != ("compacter", "width"):
    return 1
  default = inspect.signature(peft.constructor("compacter")).parameters["n"].default
  return setting.get(".".join((gap.axis, *gap.path[:-1], "n")), section.get("n", default))


def _method(setting: dict) -> str:
  """Names a method with the sizes that are known."""
  section = setting.get("method", {})
  sizes = [f"{k}={v}" for k, v in section.items() if k in matching.SIZES and isinstance(v, int)]
  return " ".join([section.get("name", "the method"), *sizes])


def _nearest(
  count: Callable[[int], float], gap: Gap, method: str, option: str, each: int = 1
) -> tuple[int, str]:
  """Returns the number that comes nearest to a budget, and what it reaches, in words.

  Args:
    each: what the number is a multiple of: the updates of a rollout, or `_multiple`.

  Raises:
    UserError: where none comes near.
  """
  (times, reached), why = matching.solve(lambda times: count(each * times), gap.amount)
  number = each * times
  amount, unit = _shown(gap.amount), matching.BUDGETS[gap.budget]
  if why:
    limit = "at most" if reached < gap.amount else "at least"
    raise UserError(
      f"match: {method} cannot have {gap.budget}={amount}, expected {limit} {_shown(reached)} "
      f"{unit}, those of {option}={number}: {why}"
    )
  off = f"{100 * (reached / gap.amount - 1):+.2g} %"
  return number, f"{method} {option}={number}: {_shown(reached)} of {amount} {unit} ({off})"


def _shown(amount: float) -> str:
  return f"{amount:,}" if isinstance(amount, int) and amount < 1e9 else f"{amount:.4g}"
