"""Trains one configuration."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

from jaxtune import config as configs
from jaxtune import schema
from jaxtune.errors import UserError
from jaxtune.preflight import checks, cost, gradients, targets
from jaxtune.runs import baseline, compilations, group, identity, locks, reference
from jaxtune.runs.trial import prepare
from jaxtune.sweeps import tuning
from jaxtune.training import checkpoint

CHECKPOINTS = "checkpoints"  # in a run's folder


def fit(config: Any, workdir: str | Path, during: AbstractContextManager | None = None) -> dict:
  """Trains one configuration; resumes where an earlier call in the same folder stopped.

  Args:
    config: a ConfigDict or nested dict of the sections that `jaxtune.config` names.
    workdir: the run's folder.
    during: is entered while the trial trains; see `follow`.

  Returns:
    The content of result.json: metrics of the untuned base and of the tuned model, counts,
    versions and hashes. "diverged_at" is the first step at which training was not finite, or None.

  Raises:
    UserError: for a mistake in the config, and for a folder that holds a run without a checkpoint.
  """
  workdir = Path(workdir)
  checkpoint.check_folder(workdir)
  with locks.held(workdir):
    _check_resumes(workdir)
    if tuning.rates_of(configs.to_dict(config)):
      raise UserError(f"{tuning.PATH} is to be chosen, which a sweep does: train with one number")
    full = configs.complete(config)
    identity.check_configs([full])
    checks.check_options(full)
    checks.warn([full])
    compilations.keep(full["train"]["compilation_cache"])
    trial = prepare(full)
    identity.check_same([trial])
    checks.check(trial)
    (trial,) = reference.added([trial])
    gradients.check([trial])
    print(targets.describe(trial))
    (untuned,) = baseline.evaluate_bases([trial])
    trials = cost.with_remat([trial])
    with during or nullcontext():
      return group.train(trials, [workdir], [untuned], workdir / CHECKPOINTS)[0]


def _check_resumes(workdir: Path) -> None:
  """Raises UserError for a run that cannot be resumed, and so would be trained over.

  It was imported, composed or extracted, is a trial of a sweep, or has lost its checkpoints.
  """
  place = workdir.absolute().parent
  if place.name in ("trials", "tuning") and _is_sweep(place.parent):
    raise UserError(
      f"{workdir} is that of a trial of the sweep {place.parent}, which trains it; give another "
      "workdir"
    )
  held = [name for name in ("tuned.safetensors", "result.json") if (workdir / name).exists()]
  if held and not checkpoint.exists(workdir / CHECKPOINTS):
    raise UserError(
      f"{workdir} holds a run already, whose {held[0]} would be lost: no checkpoint is there to "
      "resume it from; give another workdir"
    )


def _is_sweep(folder: Path) -> bool:
  """Says whether a folder has the config.json of a sweep."""
  with suppress(UserError):  # it is another program's, or there is none
    content = schema.read_json(folder / "config.json", dict)
    return "sweep" in content and content.keys() <= configs.KEYS
  return False
