"""Describes what a config would do, and trains nothing."""

from __future__ import annotations

import json
import re
import sys
from typing import Any, NamedTuple

from jaxtune import config as configs
from jaxtune import data
from jaxtune.api import sweep
from jaxtune.preflight import checks, cost, devices, targets
from jaxtune.runs.trial import outline, with_config
from jaxtune.sweeps import groups


class Program(NamedTuple):
  """What is known of a group of trials before it is trained.

  Attributes:
    trials: their names.
    targets: a table of what every pattern of every method hits.
    data: a table of the splits.
    cost: the figures of a step, from `preflight.cost.cost`, or from `cost_on` for a named device.
  """

  trials: list[str]
  targets: str
  data: str
  cost: dict


class Plan(NamedTuple):
  """The programs of a config; its text is what `jaxtune plan` prints."""

  programs: list[Program]

  def __str__(self) -> str:
    parts = []
    for number, program in enumerate(self.programs, 1):
      more = ", ..." * (len(program.trials) > 1)
      figures = program.cost
      parts += [
        f"program {number}: {len(program.trials)} trials ({program.trials[0]}{more})",
        program.targets,
        program.data,
        _device_text(figures) if "device" in figures else json.dumps(figures, indent=2),
      ]
    return "\n\n".join(parts)


def plan(config: Any, most_trials: int = sweep.MOST_TRIALS, device: str | None = None) -> Plan:
  """Describes what a config would do, without reading weights: groups, targets, memory, FLOPs.

  Args:
    most_trials: as for `sweep`.
    device: a device that need not be here, such as "v5e:4x4" or "h200", whose compiler is asked;
      see `preflight.devices`. By default, and for "cpu", this machine's.
  """
  if configs.to_dict(config).get("sweep"):
    names, _, completed = sweep.expand(config, most_trials)
  else:
    names, completed = ["run"], [configs.complete(config)]
  device = None if device == "cpu" else device
  there = () if device is None else devices.describe(device)[1]
  programs, found = [], groups.groups(completed)
  for number, group in enumerate(found, 1):
    first = outline(completed[group[0]])
    trials = [with_config(first, completed[i]) for i in group]
    for trial in trials:
      checks.check_options(trial.config, there)
      checks.check(trial)
    print(f"program {number} of {len(found)}: compiling one step", file=sys.stderr, flush=True)
    figures = cost.cost(trials) if device is None else cost.cost_on(trials, device)
    programs.append(
      Program(
        [names[i] for i in group], targets.describe(first), data.describe(first.dataset), figures
      )
    )
  return Plan(programs)


def _place(name: str) -> str:
  """Returns the pass and the module of an operation, from the name that jax gives it."""
  passes = {"rematted_computation": "recomputed", "transpose(": "backward"}
  done = next((said for word, said in passes.items() if word in name), "forward")
  # "jit(step)/transpose(jvp(Decoder))/trunk/while/body/closed_call/layers/mlp/up_proj/dot_general"
  noise = r"\w*\(.*\)|while|body|closed_call|checkpoint|rematted_computation|cond|branch_\w+"
  parts = [part for part in name.split("/") if not re.fullmatch(noise, part)]
  return f"{done:10} {'/'.join(parts)}"


def _device_text(cost: dict) -> str:
  """Lays out what `cost_on` found."""
  memory = cost["memory_GB"]
  if "does_not_fit" in cost:
    fitting = cost["would_fit"]
    advice = f"it would fit with {fitting}" if fitting else "neither smaller parts nor remat help"
    return f"one step does not fit {cost['device']} ({cost['does_not_fit']}); {advice}"
  rows = [
    ("base", f"{cost['base_GB']:.2f} GB"),
    ("trained weights and moments", f"{cost['state_GB']:.2f} GB"),
    ("activations and logits", f"{cost['working_GB']:.2f} GB"),
    ("peak", f"{cost['peak_GB']:.2f} GB of {memory:g}, {memory - cost['peak_GB']:.2f} are left"),
    ("FLOPs at the peak rate", f"{cost['floor_ms']:.1f} ms"),
  ]
  if cost["ms"] is not None:
    kernels = f"{cost['kernels_ms']:.1f} of them in kernels, counted at half of the peak rate"
    rows.append(("one step", f"{cost['ms']:.1f} ms, {kernels}"))
  rows += [("exchanged", f"{kind} {size:.2f} GB") for kind, size in cost["exchanged_GB"].items()]
  rows += [("fused kernels", f"{count} {name}") for name, count in cost["kernels"].items()]
  rows += [("dearest", f"{ms:.2f} ms  {_place(name)}") for ms, name in cost["dearest"]]
  spread = f"on each of {cost['devices']} devices" if cost["devices"] > 1 else ""
  head = f"{cost['device']}, by its compiler's estimates {spread}".rstrip() + ":"
  return "\n".join([head, *(f"  {name:28} {text}" for name, text in rows)])
