"""Describes what a config would do, and trains nothing."""

from __future__ import annotations

import json
import sys
from typing import Any

from jaxtune import config as configs
from jaxtune import data
from jaxtune.api import sweep
from jaxtune.preflight import checks, cost, targets
from jaxtune.runs import trial
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
    first = completed[group[0]]
    setup = trial.outline(first)
    for i in group:
      checks.check_options(completed[i], devices=False)
      checks.check(completed[i], setup)
    print(f"program {number} of {len(found)}: compiling one step", file=sys.stderr, flush=True)
    figures = cost.cost([completed[i] for i in group], setup)
    parts += [
      f"program {number}: {len(group)} trials ({names[group[0]]}{', ...' * (len(group) > 1)})",
      targets.describe(first, setup),
      data.describe(setup.dataset),
      json.dumps(figures, indent=2),
    ]
  return "\n\n".join(parts)
