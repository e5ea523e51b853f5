"""Trains one configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jaxtune import config as configs
from jaxtune.preflight import checks, gradients, targets
from jaxtune.runs import baseline, group, locks, trial


def fit(config: Any, workdir: str | Path) -> dict:
  """Trains one configuration; resumes where an earlier call in the same folder stopped.

  Args:
    config: a ConfigDict or nested dict of the sections that `jaxtune.config` names.
    workdir: the run's folder.

  Returns:
    The content of result.json: metrics of the untuned base and of the tuned model, counts,
    versions and hashes. "diverged_at" is the first step at which training was not finite, or None.
  """
  with locks.held(workdir):
    return _fit(config, Path(workdir))


def _fit(config: Any, workdir: Path) -> dict:
  full = configs.complete({k: v for k, v in configs.to_dict(config).items() if k != "sweep"})
  checks.check_options(full)
  setup = trial.prepare(full)
  checks.check(full, setup)
  gradients.check(full, setup)
  print(targets.describe(full, setup))
  base = baseline.evaluate_base(full, setup)
  return group.train([full], [workdir], [setup], [base], workdir / "checkpoints")[0]
