"""What `import jaxtune` offers; the command line is a thin shell over these functions."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from jaxtune import config as configs
from jaxtune import data, locks, preflight, probe, programs, schema, sharding, train, tree
from jaxtune import setup as setups
from jaxtune.adapters import (
  check_free,
  compose_runs,
  export_run,
  extract,
  import_adapter,
  keep,
  load_runs,
)
from jaxtune.completion import complete
from jaxtune.compose import knockout, low_rank
from jaxtune.config import load_config
from jaxtune.data import show as shows
from jaxtune.errors import UserError
from jaxtune.evaluators import compare
from jaxtune.evaluators import evaluate as evaluators
from jaxtune.models import hf
from jaxtune.runs import Run
from jaxtune.runs import load as load_run
from jaxtune.sweeps import plan as plans
from jaxtune.sweeps import run as sweeps

__all__ = [
  "Run", "complete", "compose_runs", "evaluate", "export_run", "extract", "fit", "import_adapter",
  "judge_ranks", "knock_out", "load_config", "load_run", "load_runs", "plan", "show", "sweep",
]  # fmt: skip


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
  preflight.check_options(full)
  setup = setups.prepare(full)
  preflight.check(full, setup)
  probe.check(full, setup)
  print(plans.describe(full, setup))
  base = programs.evaluate_base(full, setup)
  return train.run([full], [workdir], [setup], [base], workdir / "checkpoints")[0]


def sweep(
  config: Any,
  workdir: str | Path,
  metric: str | None = None,
  most_trials: int = sweeps.MOST_TRIALS,
) -> list[dict]:
  """Trains every trial of `config.sweep` and writes results.csv, report.md, report.html and plots.

  Args:
    config: as for `fit`, with a `sweep`: a tuple of grids {axis: values}.
    workdir: the sweep's folder.
    metric: what results are sorted by; default the test loss.
    most_trials: how many trials the sweep may have; a larger one is refused before it starts.

  Returns:
    Each trial's result, best first, with its "folder".
  """
  return sweeps.run(config, workdir, metric, most_trials)


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
  final = evaluators.test(evaluator, pairs, run.base, [setup.dataset], [run.config["seed"]])[0]
  untuned = programs.evaluate_base(config, setup, evaluator.parallel)
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
    judged = evaluators.test(evaluator, pairs, part.base, [setup.dataset], [run.config["seed"]])
    found[way] = judged[0].metrics
  untuned = programs.evaluate_base(config, setup, evaluator.parallel)
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
  judged = evaluators.test(evaluator, tree.stack(trees), first.base, datasets, seeds)
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
  preflight.check_options(config, devices=False)
  setup = setups.prepare(config, run.pretrained)
  # Other data may end their answers otherwise than those that the run was trained on.
  setup = setup._replace(dataset=setup.dataset._replace(stop_tokens=run.stop_tokens))
  preflight.check(config, setup)
  return config, setup


def _evaluator(run: Run, config: dict, setup):
  program = programs.make_program(config, setup, False)._replace(methods=run.methods)
  return programs.make_evaluator(config, program, sharding.make("jit", {"data": 1}), 1, setup)


def show(config: Any, count: int = 3) -> str:
  """Shows a config's data as the model sees it: examples, what is trained, lengths, doubles.

  Args:
    count: examples of each split.
  """
  schema.check("count", count, schema.Natural)
  full = configs.complete({k: v for k, v in configs.to_dict(config).items() if k != "sweep"})
  tokenizer, *_ = hf.language(**full["model"])
  return shows.show(setups.load_data(full), tokenizer, count)


def plan(config: Any, most_trials: int = sweeps.MOST_TRIALS) -> str:
  """Describes what a config would do, without reading weights: groups, targets, memory, FLOPs.

  Args:
    most_trials: as for `sweep`.
  """
  if configs.to_dict(config).get("sweep"):
    names, _, completed = sweeps.expand(config, most_trials)
  else:
    names, completed = ["run"], [configs.complete(config)]
  parts, found = [], plans.groups(completed)
  for number, group in enumerate(found, 1):
    first = completed[group[0]]
    setup = setups.outline(first)
    for i in group:
      preflight.check_options(completed[i], devices=False)
      preflight.check(completed[i], setup)
    print(f"program {number} of {len(found)}: compiling one step", file=sys.stderr, flush=True)
    cost = preflight.cost([completed[i] for i in group], setup)
    parts += [
      f"program {number}: {len(group)} trials ({names[group[0]]}{', ...' * (len(group) > 1)})",
      plans.describe(first, setup),
      data.describe(setup.dataset),
      json.dumps(cost, indent=2),
    ]
  return "\n\n".join(parts)
