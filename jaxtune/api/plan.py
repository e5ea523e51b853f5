"""Describes what a config would do, and trains nothing."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

from jaxtune import config as configs
from jaxtune import data
from jaxtune.api import matched, plan_text, sweep, trials
from jaxtune.errors import UserError
from jaxtune.files import write_atomically
from jaxtune.preflight import cost, devices, elsewhere, targets
from jaxtune.runs import compilations, locks
from jaxtune.runs.trial import Trial, outline
from jaxtune.sweeps import groups


class Program(NamedTuple):
  """What is known of a group of trials before it is trained.

  Attributes:
    trials: their names.
    targets: a table of what every pattern of every method hits.
    data: a table of the splits.
    cost: the figures of a step, from `preflight.cost.cost`, or for a named device from
      `preflight.elsewhere.cost_on`.
    outlines: the trials themselves, with the shapes of weights in place of weights.
  """

  trials: list[str]
  targets: str
  data: str
  cost: dict
  outlines: list[Trial]


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
        plan_text.lay_out(figures) if "device" in figures else json.dumps(figures, indent=2),
      ]
    return "\n\n".join(parts)


def plan(
  config: Any,
  most_trials: int = sweep.MOST_TRIALS,
  device: str | None = None,
  text: str | Path | None = None,
) -> Plan:
  """Describes what a config would do, without reading weights: groups, targets, memory, FLOPs.

  Args:
    most_trials: as for `sweep`.
    device: a device that need not be here, such as "v5e:4x4" or "h200", whose compiler is asked;
      see `preflight.devices`; "cpu" stands for this machine's. By default the devices that jax
      finds, with fewer figures.
    text: a file for the compiled modules of a named device, one after another.
  """
  if configs.to_dict(config).get("sweep"):
    names, _, completed = sweep.expand(matched.match(config).config, most_trials)
  else:
    names, completed = ["run"], [configs.complete(config)]
  if text is not None and device is None:
    raise UserError("--text is for compiled modules: name the device with --device, such as v5e")
  if text is not None:
    locks.check_writable(Path(text).parent)
  return of_trials(names, completed, device, text)


def of_trials(
  names: list[str],
  completed: list[dict],
  device: str | None = None,
  text: str | Path | None = None,
) -> Plan:
  """Describes the programs of trials, given by their names and completed configs; see `plan`."""
  there = () if device is None else devices.describe(device)[1]
  loaded = trials.load(completed, outline, there)
  programs, texts, found = [], [], groups.groups(completed)
  for number, group in enumerate(found, 1):
    members = [loaded[i] for i in group]
    print(f"group {number} of {len(found)}: compiling", file=sys.stderr, flush=True)
    folder = compilations.plans(members[0].config["train"]["compilation_cache"])
    figures = cost.cost(members) if device is None else elsewhere.cost_on(members, device, folder)
    for kind, program in figures.get("programs", {}).items():
      texts.append(f"// group {number}, {kind}, {device}\n{program.pop('text')}\n")
    programs.append(
      Program(
        [names[i] for i in group],
        targets.describe(members[0]),
        data.describe(members[0].dataset),
        figures,
        members,
      )
    )
  if text is not None:
    write_atomically(Path(text), "\n".join(texts))
  return Plan(programs)
