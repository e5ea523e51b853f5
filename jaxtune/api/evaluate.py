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
from jaxtune.runs import baseline, programs
from jaxtune.runs.finished import Run, check_free, keep
from jaxtune.runs.trial import Trial, prepare


def evaluate(run: Run, overrides: dict[str, Any] | None = None) -> dict:
  """Judges a finished run and its untuned base on the same examples.

  Args:
    run: from `load_run`.
    overrides: keys of the data and evaluate sections to change, such as
      {"data.test": "other.jsonl"}.

  Returns:
    {"base": metrics, "final": metrics} and what `compare.record` adds.
  """
  trial = _trial(run, overrides)
  evaluator = _evaluator(run, trial)
  (final,) = _judge(evaluator, [run], trial)
  (untuned,) = baseline.evaluate_bases([trial], evaluator.parallel)
  found = {"base": untuned.base.metrics, "final": final.metrics}
  return found | compare.record(final, untuned, evaluator, trial.dataset)


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
    evaluator = _evaluator(part, trial)
    found[way] = _judge(evaluator, [part], trial)[0].metrics
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
  schema.check("ranks", ranks, Sequence[schema.Count])
  for rank in ranks if folder is not None else ():
    check_free(Path(folder) / f"rank={rank}")
  cuts = {rank: low_rank.truncate(run, rank) for rank in ranks}
  trial, runs = _trial(run, overrides), [cut for cut, _ in cuts.values()]
  judged = _judge(_evaluator(runs[0], trial), runs, trial)
  for rank, (cut, _) in cuts.items() if folder is not None else ():
    keep(cut, Path(folder) / f"rank={rank}")
  return {
    rank: one.metrics | {"kept_norm": min(kept.values())}
    for (rank, (_, kept)), one in zip(cuts.items(), judged, strict=True)
  }


def _trial(run: Run, overrides: dict[str, Any] | None) -> Trial:
  """Completes a run's config with other data or another evaluation, and loads the data."""
  for key in overrides or {}:
    if key.split(".")[0] not in ("data", "evaluate"):
      raise UserError(f"config key {key} cannot be changed after training; only data and evaluate")
  config = configs.complete(configs.override(run.config, overrides or {}))
  if run.labels:  # other data may lack some of them
    config["data"] |= {"labels": list(run.labels)}
  checks.check_options(config, devices=False)
  trial = prepare(config, run.pretrained)
  # Other data may end their answers otherwise than those that the run was trained on.
  trial = trial._replace(dataset=trial.dataset._replace(stop_tokens=run.stop_tokens))
  checks.check(trial)
  return trial


def _evaluator(run: Run, trial: Trial) -> judge.Evaluator:
  """Compiles the judgement of a run on the data of a trial."""
  parallel = sharding.make("jit", {"data": 1})
  return programs.make_evaluator(trial, parallel, methods=run.adapted.methods)


def _judge(evaluator: judge.Evaluator, runs: list[Run], trial: Trial) -> list[judge.Judged]:
  """Judges runs of the same methods over one base, in one compiled program."""
  overlays = tree.stack([run.adapted.overlay for run in runs])
  datasets, seeds = [trial.dataset] * len(runs), [trial.config["seed"]] * len(runs)
  return judge.judge_splits(evaluator, overlays, runs[0].adapted.base, datasets, seeds)
