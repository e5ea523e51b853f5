"""Judges finished runs: whole, without one of their methods, and cut to lower ranks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxtune import config as configs
from jaxtune import schema, sharding, tree
from jaxtune.compose import knockout, low_rank
from jaxtune.errors import UserError
from jaxtune.evaluation import compare, judge
from jaxtune.preflight import checks
from jaxtune.runs import baseline, programs, reference, sources
from jaxtune.runs.finished import Run, check_free, keep
from jaxtune.runs.trial import Trial, prepare


def evaluate(run: Run, overrides: dict[str, Any] | None = None) -> dict:
  """Judges a finished run and its untuned base on the same examples.

  Args:
    run: from `load_run`.
    overrides: keys of the data and evaluate sections to change, such as
      {"data.test": "other.jsonl"}. "data.labels" are what the data call the run's labels, in the
      order of these.

  Returns:
    What `compare.record` gathers: "base" and "final" metrics, intervals and differences.
  """
  trial = _trial(run, overrides)
  evaluator, (final,) = _judge([run], trial)
  (untuned,) = baseline.evaluate_bases([trial], evaluator.parallel)
  return compare.record(final, untuned, evaluator, trial.dataset)


def knock_out(run: Run, overrides: dict[str, Any] | None = None) -> dict[str, dict]:
  """Judges a stack of methods whole, without each of its methods, and its untuned base.

  Args:
    overrides: as for `evaluate`.

  Returns:
    {"all": metrics, "without NAME": metrics, ..., "base": metrics}, on the same examples.
  """
  names = knockout.removable(run)
  trial = _trial(run, overrides)
  ways = {"all": run} | {f"without {name}": knockout.without(run, name) for name in names}
  found = {}
  for way, part in ways.items():
    evaluator, (judged,) = _judge([part], trial)
    found[way] = judged.metrics
  (untuned,) = baseline.evaluate_bases([trial], evaluator.parallel)
  return found | {"base": untuned.base.metrics}


def judge_ranks(
  run: Run,
  ranks: Sequence[int],
  overrides: dict[str, Any] | None = None,
  folder: str | Path | None = None,
) -> dict[int, dict]:
  """Judges a trained LoRA cut to lower ranks, all in one compiled program.

  Args:
    overrides: as for `evaluate`.
    folder: where the cut runs are kept, as rank=N; None for nowhere.

  Returns:
    {rank: metrics and "kept_norm", the smallest share of a site's squared norm that is kept}.
  """
  check_ranks(ranks, folder)
  cuts = {rank: low_rank.truncate(run, rank) for rank in ranks}
  trial, runs = _trial(run, overrides), [cut for cut, _ in cuts.values()]
  _, judged = _judge(runs, trial)
  for rank, (cut, _) in cuts.items() if folder is not None else ():
    keep(cut, Path(folder) / f"rank={rank}")
  return {
    rank: one.metrics | {"kept_norm": min(kept.values())}
    for (rank, (_, kept)), one in zip(cuts.items(), judged, strict=True)
  }


def check_ranks(ranks: Sequence[int], folder: str | Path | None) -> None:
  """Raises UserError unless `judge_ranks` takes these options, whatever the run is."""
  schema.check("ranks", ranks, Sequence[schema.Count])
  for rank in ranks if folder is not None else ():
    check_free(Path(folder) / f"rank={rank}")


def check_overrides(overrides: dict[str, Any] | None) -> None:
  """Raises UserError for a key that cannot be changed once a run is trained."""
  for key in overrides or {}:
    if key.split(".")[0] not in ("data", "evaluate"):
      raise UserError(f"config key {key} cannot be changed after training; only data and evaluate")


def _trial(run: Run, overrides: dict[str, Any] | None) -> Trial:
  """Completes a run's config with other data or another evaluation, and loads the data."""
  check_overrides(overrides)
  config = configs.complete(configs.override(run.config, overrides or {}))
  if run.labels:  # other data may lack some of them, or call them otherwise
    labels = config["data"]["labels"] or run.labels
    if len(labels) != len(run.labels):
      raise UserError(
        f"data.labels has {len(labels)} names, expected {len(run.labels)} in the order of the "
        f"run's: {', '.join(run.labels)}"
      )
    stated = config["data"]["labels"] is not None
    config["data"] |= {"labels": list(labels), "numbered_labels": stated}
  if "label_smoothing" in config["objective"]:  # of training alone
    config["objective"] |= {"label_smoothing": 0.0}
  config["train"] |= {"patience": None}  # these are of training, and need a validation split
  config["search"] |= {"early_exit": None}
  sources.check_foreign(config, run.folder)  # before its rewards are looked for
  checks.check_options(config, devices=())
  sources.check_start(config, run.folder)
  (trial,) = reference.added([prepare(config, run.pretrained)], sharding.ALONE)
  # Other data may end their answers otherwise than those that the run was trained on.
  trial = trial._replace(dataset=trial.dataset._replace(stop_tokens=run.stop_tokens))
  checks.check(trial)
  return trial


def _judge(runs: list[Run], trial: Trial) -> tuple[judge.Evaluator, list[judge.Judged]]:
  """Judges runs of the same methods over one base on a trial's data, in one compiled program."""
  parallel = sharding.ALONE
  evaluator = programs.make_evaluator(trial, parallel, methods=runs[0].adapted.methods)
  overlays = tree.stack([run.adapted.overlay for run in runs])
  datasets, seeds = [trial.dataset] * len(runs), [trial.config["seed"]] * len(runs)
  base = runs[0].adapted.base
  return evaluator, judge.judge_splits(evaluator, overlays, base, datasets, seeds)
