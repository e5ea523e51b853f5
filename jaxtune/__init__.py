"""jaxtune: fine-tune language models efficiently in JAX, and compare the ways of doing it honestly.

import jaxtune

config = jaxtune.load_config("configs/quickstart.py")
results = jaxtune.sweep(config, "runs/quickstart")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from jaxtune.api.analyse import analyse as analyse
  from jaxtune.api.complete import complete as complete
  from jaxtune.api.compose import compose_runs as compose_runs
  from jaxtune.api.dry_run import dry_run as dry_run
  from jaxtune.api.evaluate import evaluate as evaluate
  from jaxtune.api.evaluate import judge_ranks as judge_ranks
  from jaxtune.api.evaluate import knock_out as knock_out
  from jaxtune.api.export import export_run as export_run
  from jaxtune.api.extract import extract as extract
  from jaxtune.api.feedback import export_votes as export_votes
  from jaxtune.api.feedback import feedback as feedback
  from jaxtune.api.feedback import vote_results as vote_results
  from jaxtune.api.fit import fit as fit
  from jaxtune.api.follow import follow as follow
  from jaxtune.api.import_adapter import import_adapter as import_adapter
  from jaxtune.api.launch.ray import on_ray as on_ray
  from jaxtune.api.launch.slurm import on_slurm as on_slurm
  from jaxtune.api.plan import plan as plan
  from jaxtune.api.propose import propose as propose
  from jaxtune.api.report import report as report
  from jaxtune.api.show import show as show
  from jaxtune.api.status import status as status
  from jaxtune.api.sweep import sweep as sweep
  from jaxtune.config import load_config as load_config
  from jaxtune.runs.finished import Run as Run
  from jaxtune.runs.finished import load_run as load_run
  from jaxtune.runs.finished import load_runs as load_runs

# Where each public name is defined. It is imported when it is first asked for: the whole package
# takes seconds to load, and no command needs all of it.
_HOMES = {
  "Run": "runs.finished",
  "analyse": "api.analyse",
  "complete": "api.complete",
  "compose_runs": "api.compose",
  "dry_run": "api.dry_run",
  "evaluate": "api.evaluate",
  "export_run": "api.export",
  "export_votes": "api.feedback",
  "extract": "api.extract",
  "feedback": "api.feedback",
  "fit": "api.fit",
  "follow": "api.follow",
  "import_adapter": "api.import_adapter",
  "judge_ranks": "api.evaluate",
  "knock_out": "api.evaluate",
  "load_config": "config",
  "load_run": "runs.finished",
  "load_runs": "runs.finished",
  "on_ray": "api.launch.ray",
  "on_slurm": "api.launch.slurm",
  "plan": "api.plan",
  "propose": "api.propose",
  "report": "api.report",
  "show": "api.show",
  "status": "api.status",
  "sweep": "api.sweep",
  "vote_results": "api.feedback",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
  if name in _HOMES:
    return getattr(importlib.import_module(f"jaxtune.{_HOMES[name]}"), name)
  raise AttributeError(f"module 'jaxtune' has no attribute {name!r}")
