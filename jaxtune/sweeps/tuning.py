"""Learning rates that a sweep chooses by itself, for each configuration on its validation split.

  config.optim.learning_rate = declare.tune([1e-4, 1e-3, 1e-2])

Every configuration is trained with every rate, with seeds of its own (`search.tune_seeds`), so
that the seeds of the results have no part in the choice. The rate with the lowest mean validation
loss is then that of its trials, and stays so once one of them has begun.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxtune.errors import UserError
from jaxtune.sweeps import grid

SECTION, KEY = "optim", "learning_rate"
PATH = f"{SECTION}.{KEY}"


class Curve(NamedTuple):
  """The choice of a configuration's rate.

  Attributes:
    rates: in ascending order.
    losses: the mean validation loss with each, over seeds; None where a trial failed, diverged or
      could not be judged.
    chosen: the rate of its trials, which had the lowest one when they began.
  """

  rates: list[float]
  losses: list[float | None]
  chosen: float

  @property
  def at_edge(self) -> bool:
    """Says whether a rate beyond those that were tried might be better."""
    return len(self.rates) > 1 and self.chosen in (self.rates[0], self.rates[-1])


def tune(rates: Sequence[float]) -> dict[str, list[float]]:
  """Returns a value for `optim.learning_rate`, in a config or as an axis' value of a sweep."""
  return {"tune": sorted(map(float, rates))}


def rates_of(config: Mapping[str, Any]) -> list[float]:
  """Returns the rates that a config leaves to choose from; [] if it states one.

  Raises:
    UserError: rates that are no positive numbers, or fewer than two.
  """
  section = config.get(SECTION)
  value = section.get(KEY) if isinstance(section, Mapping) else None
  if not isinstance(value, Mapping):
    return []
  rates = value.get("tune")
  real = lambda x: isinstance(x, int | float) and not isinstance(x, bool) and 0 < x < math.inf
  if set(value) != {"tune"} or not isinstance(rates, list | tuple) or not all(map(real, rates)):
    raise UserError(
      f"{PATH} is {dict(value)!r}, expected a number, or tune([1e-4, 1e-3]) with positive "
      "numbers to choose from"
    )
  if len(set(rates)) < 2:
    raise UserError(f"{PATH} has {len(set(rates))} rate to choose from, expected two or more")
  return sorted(set(map(float, rates)))


def with_rate(config: dict, rate: float) -> dict:
  """Returns a config with this learning rate."""
  return config | {SECTION: config[SECTION] | {KEY: rate}}


def stated(config: dict) -> dict:
  """Returns a config whose rate, if it was left open, is the lowest one."""
  rates = rates_of(config)
  return with_rate(config, rates[0]) if rates else config


def named(setting: dict) -> dict:
  """Returns a trial's settings as its name says them: a rate that is left open is "tuned"."""
  return {k: "tuned" if k == PATH and isinstance(v, Mapping) else v for k, v in setting.items()}


def label(config: dict) -> str:
  """Names a trial of `trials` among those of its configuration."""
  return f"{KEY}={grid.brief(config[SECTION][KEY])},seed={config['seed']}"


def trials(config: dict, rates: Sequence[float], seeds: Sequence[int]) -> list[dict]:
  """Returns the completed configs of the trials that a choice needs, rate after rate.

  They generate no text: only their validation losses are read.

  Raises:
    UserError: without a seed.
  """
  if not seeds:
    raise UserError("search.tune_seeds is empty, expected seeds to choose a learning rate with")
  evaluate = config["evaluate"]
  nothing = {"generate": False, "shots": 0, "resamples": 0}
  quiet = {
    "evaluate": evaluate | nothing | ({"metrics": None} if evaluate["generate"] else {}),
    "search": config["search"] | {"early_exit": None},
  }
  return [with_rate(config, rate) | quiet | {"seed": seed} for rate in rates for seed in seeds]


def choose(name: str, rates: Sequence[float], losses: Sequence[float | None]) -> Curve:
  """Chooses a rate.

  Args:
    name: of the configuration, for the error.
    losses: of the trials, in the order of `trials`; None where one has none.

  Raises:
    UserError: if no rate has finite losses.
  """
  known = np.array([math.inf if x is None else x for x in losses], float)
  means = known.reshape(len(rates), -1).mean(1)
  if not np.isfinite(means).any():
    shown = ", ".join(f"{rate:g}" for rate in rates)
    raise UserError(
      f"no {PATH} of {shown} trains {name} without divergence or failure, to a validation loss: "
      "give lower ones, see the failed.json of its trials in the folder tuning, or give "
      "data.validation examples that count (pairs of answers that tie do not)"
    )
  finite = [mean if math.isfinite(mean) else None for mean in means.tolist()]
  return Curve(list(rates), finite, float(rates[int(np.argmin(means))]))
