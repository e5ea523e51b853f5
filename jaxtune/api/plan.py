"""Describes what a config would do, and trains nothing."""

from __future__ import annotations

import json
import sys
from typing import Any

from jaxtune import config as configs
from jaxtune import data
from jaxtune.api import sweep
from jaxtune.preflight import checks, cost, targets
from jaxtune.runs.trial import outline, with_config
from jaxtune.sweeps import groups


def plan(config: Any, most_trials: int = sweep.MOST_TRIALS) -> str:
  """Describes what a config would do, without reading weights: groups, targets, memory, FLOPs.

  Args:
    most_trials: as for `sweep`.
  """
  if configs.to_dict(config).get("sweep"):
    names, _, completed = sweep.expand(config, most_trials)
  else:
    names, completed = ["run"], [configs.complete(config)]
  parts, found = [], groups.groups(completed)
  for number, group in enumerate(found, 1):
    first = outline(completed[group[0]])
    trials = [with_config(first, completed[i]) for i in group]
    for trial in trials:
      checks.check_options(trial.config, devices=False)
      checks.check(trial)
    print(f"program {number} of {len(found)}: compiling one step", file=sys.stderr, flush=True)
    figures = cost.cost(trials)
    parts += [
      f"program {number}: {len(group)} trials ({names[group[0]]}{', ...' * (len(group) > 1)})",
      targets.describe(first),
      data.describe(first.dataset),
      json.dumps(figures, indent=2),
    ]
  return "\n\n".join(parts)
