"""The command `jaxtune sweep`: of a config or of a data file alone, or a dry run of either."""

from __future__ import annotations

import argparse
import sys
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jaxtune
from jaxtune import libraries
from jaxtune.errors import UserError
from jaxtune.runs import loggers

cluster = libraries.Lazy("jaxtune.api.launch.cluster")
launch = libraries.Lazy("jaxtune.api.launch")
slurm = libraries.Lazy("jaxtune.api.launch.slurm")
sweeps = libraries.Lazy("jaxtune.api.sweep")  # no other command needs all that trains
follows = libraries.Lazy("jaxtune.api.follow")


def run(options: Namespace) -> None:
  """Runs the command."""
  chosen = {name: value for name in MADE if (value := getattr(options, name)) is not None}
  if bool(options.data) == bool(options.config):
    raise UserError("a sweep is made of one file: give --config FILE, or --data FILE")
  if chosen and not options.data:
    raise UserError(f"--{next(iter(chosen))} goes with --data; a config says it itself")
  if options.device is not None and not options.dry:
    raise UserError("--device goes with --dry: a sweep trains on the devices of this machine")
  if options.data:
    _run_data(options, chosen)
    return
  config = jaxtune.load_config(options.config, options.overrides)
  if config.get("sweep"):
    sweeps.check_overrides(config, options.overrides)
  if options.dry:
    print(jaxtune.dry_run(config, options.most_trials, options.device))
  elif options.workdir is None:
    raise UserError("the following arguments are required: --workdir")
  else:
    _train(config, options.workdir, options)


def _run_data(options: Namespace, chosen: dict[str, Any]) -> None:
  """Makes a sweep of a data file, says what it assumes, and runs it."""
  limits = {"overrides": options.overrides, "most_trials": options.most_trials}
  proposal = jaxtune.propose(options.data, **chosen, **limits)
  print(f"assumed of {options.data}:\n{proposal}", flush=True)
  if options.dry:
    expected = proposal.expected
    if options.device is not None:
      expected = jaxtune.dry_run(proposal.config, options.most_trials, options.device)
    print(f"\n{expected}")
    return
  workdir = options.workdir or f"runs/{Path(options.data).name.partition('.')[0]}"
  notes = {f"assumed {what}": how for what, how in proposal.assumed.items()}
  _train(proposal.config, workdir, options, notes)
  print(f"to change it, edit {workdir}/config.json, and give it by --config with a new --workdir")


def _train(
  config: Any, workdir: str, options: Namespace, notes: dict[str, str] | None = None
) -> None:
  """Runs a sweep and prints its table."""
  if options.group is not None:
    plan = sweeps.plan_of(
      config, options.metric, sys.maxsize
    )  # it was confirmed when the sweep was begun
    slurm.train_group(plan, Path(workdir), options.group)
    return
  during = follows.follow(workdir, loggers=loggers.chosen(vars(options)))
  limits = {"metric": options.metric, "most_trials": options.most_trials, "notes": notes}
  try:
    jaxtune.sweep(config, workdir, **limits, **_launcher(options), during=during)
  except launch.Elsewhere as says:
    print(says)
    return
  report = Path(workdir, "report.md").read_text()
  print(report.partition("\n<details>")[0].partition("\n\n")[2])
  print(f"report: {workdir}/report.html")


def _launcher(options: Namespace) -> dict[str, Any]:
  """Returns the arguments of `sweep` that the options of a launcher make."""
  if options.launcher is None:
    if (option := _given(options, "address", "workers", "resources")) is not None:
      raise UserError(f"--{option} goes with --launcher")
    return {}
  if options.workers is not None and options.workers < 1:
    raise UserError(f"--workers is {options.workers}, expected 1 or more")
  if options.coordinator is not None:
    raise UserError("--launcher and --coordinator are two ways to use several machines: give one")
  wanted = cluster.resources(options.resources) if options.resources else {}
  if options.launcher == "ray":
    return {"launcher": jaxtune.on_ray(options.address, options.workers, wanted)}
  if options.address is not None:
    raise UserError("--address goes with --launcher ray")
  return {"launcher": jaxtune.on_slurm(options.workers, wanted)}


def _given(options: Namespace, *names: str) -> str | None:
  """Returns the first of these options that was given, or None."""
  return next((name for name in names if getattr(options, name) is not None), None)


def _listed(kind: Callable[[str], Any], example: str) -> Callable[[str], list]:
  """Returns the type of an option that lists values with commas between them."""

  def read(text: str) -> list:
    try:
      return [kind(part) for part in text.split(",")]
    except ValueError as error:
      message = f"{text!r} is no list, expected such as {example}"
      raise argparse.ArgumentTypeError(message) from error

  return read


_WHOLE = _listed(int, "1,4,16")
MADE: Mapping[str, dict[str, Any]] = {
  "methods": dict(type=_listed(str, "lora,prefix"), metavar="NAMES",
                  help="methods to compare (default: lora,prefix)"),
  "ranks": dict(type=_WHOLE, metavar="SIZES", help="ranks to compare (default: 1,4,16)"),
  "lengths": dict(type=_WHOLE, metavar="SIZES",
                  help="lengths of prefixes and prompts to compare (default: 4,16)"),
  "widths": dict(type=_WHOLE, metavar="SIZES", help="widths of adapters to compare (default: 16)"),
  "rates": dict(type=_listed(float, "1e-3,1e-2"), help="learning rates to choose from"),
  "seeds": dict(type=_WHOLE, help="seeds of each configuration (default: 0,1,2)"),
  "model": dict(metavar="PATH", help="a model's folder or hub name (default: the bundled one)"),
  "task": dict(help="sft, classify, regression, tokens or qa (default: as the columns suggest)"),
  "prompt": dict(metavar="COLUMN", help="the column of prompts, or of texts"),
  "answer": dict(metavar="COLUMN", help="the column of answers, or of labels"),
  "steps": dict(type=int, metavar="N", help="updates of each trial"),
}  # fmt: skip
OPTIONS: Mapping[str, dict[str, Any]] = {
  "--config": dict(metavar="FILE[:ARG]", help="a config file, or the config.json of a sweep"),
  "--workdir": dict(metavar="DIR", help="the sweep's folder (with --data: runs/NAME by default)"),
  "--metric": dict(help="what the report is sorted by (default: test loss, or validation loss)"),
  "--dry": dict(action="store_true", help="print trials, programs, memory and time; train nothing"),
  "--device": dict(help="with --dry, a device that need not be here, such as v5e:4x4"),
  "--launcher": dict(choices=["ray", "slurm"], help="trains on a Ray cluster, or as a SLURM array"),
  "--address": dict(
    metavar="HOST:PORT", help="of the Ray cluster, or auto (default: one is started)"
  ),
  "--workers": dict(type=int, metavar="N", help="how many programs are trained at a time"),
  "--resources": dict(
    metavar="cpu=4,gpu=1", help="resources of each worker or task; also tpu, memory=16G, time"
  ),
  "--group": dict(metavar="trials/N", help="trains one program of a sweep that was begun"),
  "--data": dict(metavar="FILE", help="in place of a config: JSON lines, CSV, TSV or Parquet"),
  **{f"--{name}": settings for name, settings in MADE.items()},
}
