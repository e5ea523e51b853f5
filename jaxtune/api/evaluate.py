"""Judges finished runs: whole, without one of their methods, and cut to lower ranks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from jaxtune import config as configs
from jaxtune import schema, sharding, tree
from jaxtune.compose import knockout, low_rank
from jaxtune.errors import UserError
from jaxtune.evaluation import compare, judge
from jaxtune.preflight import checks
from jaxtune.runs import baseline, programs, trial
from jaxtune.runs.finished import Run, check_free, keep


def evaluate(run: Run, overrides: dict[str, Any] | None = None) -> dict:
  """Judges a finished run and its untuned base on the same examples.

  Args:
    run: from `load_run`.
    overrides: keys of the data and evaluate sections to change, such as
      {"data.test": "other.jsonl"}.

  Returns:
    {"base": metrics, "final": metrics} and what `compare.record` adds.
  """
  config, setup = _data_of(run, overrides)
  evaluator = _evaluator(run, config, setup)
  pairs = jax.tree.map(lambda x: x[None], (run.tuned, run.hyper))
  final = judge.test(evaluator, pairs, run.base, [setup.dataset], [run.config["seed"]])[0]
  untuned = baseline.evaluate_base(config, setup, evaluator.parallel)
  found = {"base": untuned.base.metrics, "final": final.metrics}
  return found | compare.record(final, untuned, evaluator, setup.dataset)


def knock_out(run: Run, overrides: dict[str, Any] | None = None) -> dict[str, dict]:
  """Judges a stack of methods whole, without each of its methods, and its untuned base.

  Args:
    overrides: as for `evaluate`.

  Returns:
    {"all": metrics, "without NAME": metrics, ..., "base": metrics}, on the same examples.
  """
  names = knockout.parts(run)
  config, setup = _data_of(run, overrides)
  ways = {"all": run} | {f"without {name}": knockout.without(run, name) for name in names}
  found = {}
  for way, part in ways.items():
    pairs = jax.tree.map(lambda x: x[None], (part.tuned, part.hyper))
    evaluator = _evaluator(part, config, setup)
    judged = judge.test(evaluator, pairs, part.base, [setup.dataset], [run.config["seed"]])
    found[way] = judged[0].metrics
  untuned = baseline.evaluate_base(config, setup, evaluator.parallel)
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
  config, setup = _data_of(run, overrides)
  first = next(iter(cuts.values()))[0]
  evaluator = _evaluator(first, config, setup)
  trees = [(cut.tuned, cut.hyper) for cut, _ in cuts.values()]
  datasets, seeds = [setup.dataset] * len(trees), [run.config["seed"]] * len(trees)
  judged = judge.test(evaluator, tree.stack(trees), first.base, datasets, seeds)
  for rank, (cut, _) in cuts.items() if folder is not None else ():
    keep(cut, Path(folder) / f"rank={rank}")
  return {
    rank: one.metrics | {"kept_norm": min(kept.values())}
    for (rank, (_, kept)), one in zip(cuts.items(), judged, strict=True)
  }


def _data_of(run: Run, overrides: dict[str, Any] | None):
  """Completes a run's config with other data or another evaluation, and loads the data."""
  for key in overrides or {}:
    if key.split(".")[0] not in ("data", "evaluate"):
      raise UserError(f"config key {key} cannot be changed after training; only data and evaluate")
  config = configs.complete(configs.override(run.config, overrides or {}))
  if run.labels:  # other data may lack some of them
    config["data"] |= {"labels": list(run.labels)}
  checks.check_options(config, devices=False)
  setup = trial.prepare(config, run.pretrained)
  # Other data may end their answers otherwise than those that the run was trained on.
  setup = setup._replace(dataset=setup.dataset._replace(stop_tokens=run.stop_tokens))
  checks.check(config, setup)
  return config, setup


def _evaluator(run: Run, config: dict, setup):
  compiled = programs.make_program(config, setup, False)._replace(methods=run.methods)
  return programs.make_evaluator(config, compiled, sharding.make("jit", {"data": 1}), 1, setup)
