"""Describes a sweep before it runs: trials, why programs differ, tokens, memory and time."""

from __future__ import annotations

from typing import Any, NamedTuple

from jaxtune import data
from jaxtune.api import matched, plan, stages, sweep
from jaxtune.preflight import pace
from jaxtune.runs.programs import rolls_out
from jaxtune.runs.trial import Trial
from jaxtune.sweeps import groups


class Group(NamedTuple):
  """Trials that share a compiled program.

  Attributes:
    trials: their names.
    differs: {config key: value} of this group, where another group has another value.
    tokens: how many tokens a trial is trained on in the mean, about, without padding; None for a
      policy, which draws them.
    memory: {part: MB} of a step, on each device.
    seconds: the least time of all its trials together, without text that is generated; None where
      that is unknown.
    rates: how many further trials are trained first, to choose learning rates.
    splits: {name: counts} of the first trial's data, as its report has them.
    leaves: whether a trial may leave before its last step, which takes less time.
  """

  trials: list[str]
  differs: dict[str, Any]
  tokens: int | None
  memory: dict[str, float]
  seconds: float | None
  rates: int
  splits: dict[str, dict]
  leaves: bool = False


class DryRun(NamedTuple):
  """What a sweep would do; its text is what `jaxtune sweep --dry` prints."""

  groups: list[Group]
  device: str | None
  budgets: tuple[str, ...] = ()  # what each method reaches of its budget

  @property
  def trials(self) -> int:
    """The number of trials, also of those that choose learning rates."""
    return sum(len(group.trials) + group.rates for group in self.groups)

  @property
  def tokens(self) -> int | None:
    """The tokens that all trials are trained on, about; None where that is not known."""
    numbers = [(group.tokens, len(group.trials) + group.rates) for group in self.groups]
    return None if any(n is None for n, _ in numbers) else sum(n * of for n, of in numbers)

  @property
  def seconds(self) -> float | None:
    """The least time of all trials; None where that of a group is unknown."""
    parts = [group.seconds for group in self.groups if group.seconds is not None]
    return sum(parts) if len(parts) == len(self.groups) else None

  def __str__(self) -> str:
    keys = dict.fromkeys(key for group in self.groups for key in group.differs)
    why = f", which differ in {', '.join(keys)}" if keys else ""
    head = f"{count(sum(len(g.trials) for g in self.groups), 'trial')} in "
    head += f"{count(len(self.groups), 'compiled program')}{why}"
    blocks = [_lay_out(number, group) for number, group in enumerate(self.groups, 1)]
    totals = f"in all: {count(self.trials, 'trial')}, {_tokens_of(self.tokens)}, "
    totals += f"{duration(self.seconds)} on {self.device or 'this machine'}"
    equal = ["\n".join(["equal budgets:", *(f"  {one}" for one in self.budgets)])] * bool(
      self.budgets
    )
    return "\n\n".join([head, *equal, *blocks, totals])


def dry_run(config: Any, most_trials: int = sweep.MOST_TRIALS, device: str | None = None) -> DryRun:
  """Describes a sweep before it runs; trains and writes nothing.

  Args:
    most_trials: as for `sweep`.
    device: a device that need not be here, as for `plan`.
  """
  device = None if device == "cpu" else device
  config, reached, _ = matched.match(config)
  names, settings, completed = sweep.expand(config, most_trials)
  programs = plan.of_trials(names, completed, device).programs
  differs = groups.differences([program.outlines[0].config for program in programs])
  choosing = _choosing(config, names, settings, completed)
  found = []
  for program, keys in zip(programs, differs, strict=True):
    outlines, first = program.outlines, program.outlines[0].config
    policies = rolls_out(outlines[0])
    tokens = None if policies else round(sum(map(_tokens, outlines)) / len(program.trials))
    leaves = bool(first["search"]["early_exit"] or first["train"]["patience"])
    extra = sum(choosing[name] for name in program.trials)
    seconds, splits = _seconds(program), program.outlines[0].dataset.report["splits"]
    if seconds is not None:
      seconds *= 1 + extra / len(program.trials)
    memory = _memory(program.cost)
    found.append(Group(program.trials, keys, tokens, memory, seconds, extra, splits, leaves))
  return DryRun(found, device, reached)


def _choosing(
  config: Any, names: list[str], settings: list[dict], completed: list[dict]
) -> dict[str, int]:
  """Returns {trial: how many trials choose the rate of its configuration, if it is the first}."""
  seen, found = set(), {}
  rates = sweep.open_rates(config, settings)
  rows = zip(names, stages.configurations(settings), rates, completed, strict=True)
  for name, configuration, some, full in rows:
    new = configuration not in seen
    found[name] = len(some) * len(full["search"]["tune_seeds"]) * new
    if some:
      seen.add(configuration)
  return found


def _tokens(trial: Trial) -> int:
  """Returns how many tokens a trial is trained on, without padding; of a stream, at most."""
  split, train = trial.dataset.train, trial.config["train"]
  seen = data.tokens_seen(split, trial.config["seed"], train["steps"], train["batch_size"])
  return split.width * train["batch_size"] * train["steps"] if seen is None else seen


def _memory(cost: dict) -> dict[str, float]:
  """Returns {part of the memory: MB} of a step, from `cost.cost` or `elsewhere.cost_on`."""
  if "device" not in cost:
    named = {"base": "frozen_MB", "trained": "trained_state_MB", "working": "working_MB"}
    return {part: cost[key] for part, key in named.items()}
  step = cost["programs"]["training step"]
  return {part: 1000 * size for part, size in step.get("parts_GB", {}).items()}


def _seconds(program: plan.Program) -> float | None:
  """Returns the least time of a group's trials, here or on the device of its figures."""
  trials, programs = program.outlines, program.cost.get("programs")
  if programs is None:
    return pace.seconds(trials)
  total = 0.0
  rounds = pace.rounds(trials[0])
  rounds["training step"] *= pace.turns(trials)
  for kind, often in rounds.items():
    if often and kind in programs:
      if "does_not_fit" in programs[kind]:
        return None
      total += often * _milliseconds(programs[kind]) / 1000
  return total


def _milliseconds(figures: dict) -> float:
  """Returns the time of a program by its compiler, or what its products or its traffic take."""
  return figures["ms"] or max(figures["floor_ms"], figures["traffic_ms"])


def _lay_out(number: int, group: Group) -> str:
  """Lays out a group as a block of lines."""
  why = ", ".join(f"{key}={value!r}" for key, value in group.differs.items())
  lines = [f"program {number}: {count(len(group.trials), 'trial')}{f' with {why}' * bool(why)}"]
  lines += [f"  {name}" for name in group.trials]
  if group.rates:
    lines.append(f"  and before them {count(group.rates, 'trial')} that choose learning rates")
  trials = len(group.trials) + group.rates
  memory = ", ".join(f"{part} {size:.1f}" for part, size in group.memory.items())
  memory = f"{sum(group.memory.values()):,.1f} MB: {memory}" if memory else "does not fit"
  lines += [
    f"  tokens    {_tokens_of(group.tokens, trials)}",
    f"  memory    {memory}",
    f"  time      {duration(group.seconds)}{', if no trial leaves early' * group.leaves}",
  ]
  return "\n".join(lines)


def _tokens_of(each: int | None, trials: int | None = None) -> str:
  """Writes the tokens of one of some trials, or of all."""
  if each is None:
    return "as many tokens as the policies draw"
  return f"{each:,} tokens" if trials is None else f"{each:,} a trial, {each * trials:,} in all"


def count(number: int, what: str) -> str:
  """Writes a number of things: "1 trial", "1,200 trials"."""
  return f"{number:,} {what}{'s' * (number != 1)}"


def duration(seconds: float | None) -> str:
  """Writes the least time of something, in seconds, minutes or hours."""
  if seconds is None:
    return "unknown time"
  scale, unit = next((s, u) for s, u in ((3600, "hours"), (60, "minutes"), (1, "seconds"))
                     if seconds >= 1.5 * s or s == 1)  # fmt: skip
  return f"at least {seconds / scale:.1f} {unit}"
