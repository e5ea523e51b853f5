"""All that a report says of a sweep, as plain values: the page and every file are written from it.

  compared = comparison.compare(results, "test_loss", config=shared_config)

`compare` returns a `Comparison`:

  .metric, .higher_is_better   what is compared, and which way it improves
  .reference                   the label of the configuration that the others are compared with
  .configurations              a `Configuration` each, best first, with its seeds, counts and, for
                               every metric, an `Estimate` (mean, deviation, intervals) and its
                               change from the base
  .untrained                   the same of the base, of the base with demonstrations, and of the
                               most frequent answer
  .pairs                       a `pairs.Pair` for every two configurations, A before B as in
                               .configurations: difference, interval, p with both of Holm's
                               corrections (show .p_adjusted), effect size, probability, seeds
                               needed.
                               `pairs.find(compared.pairs, a, b)` turns one around
  .warnings                    an `evidence.Caution` each: kind, text, trials
  .replicates                  a sentence that says what differs between seeds
  .exited, .failed             trials that left early, and {trial: reason} of those that failed;
                               they are in nothing else but .warnings and .columns
  .tables                      {title: `table.Table`} as text: "main" has the five columns to read,
                               "all columns" and "comparisons" what is shown on demand
  .columns                     {name: a value for each trial}: results.csv and results.parquet,
                               from `exports.to_csv` and `exports.to_parquet`

Results are the contents of result.json with "trial" (its name), "settings" (the sweep's axes) and,
where scores by example are to be used, "folder". Another metric is another call. All values are
numbers, text, None, and tuples and dicts of them; NaN stands for a trial that diverged.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxtune import metrics
from jaxtune.errors import UserError, nearest
from jaxtune.sweeps import (
  cautions,
  confounds,
  contrasts,
  exports,
  paired,
  pairs,
  stats,
  table,
  unequal,
)
from jaxtune.sweeps.evidence import Caution, Evidence, read_configs


class Estimate(NamedTuple):
  """A metric, or its change from the base, of a configuration over its seeds.

  Attributes:
    values: of each seed; None where it is missing, NaN where the trial diverged.
    mean: None where no seed has it, or one diverged.
    deviation: the standard deviation over seeds; None with fewer than two.
    interval: of 95 % by Student's t; None with fewer than two seeds.
    bootstrap: of 95 % by resampling seeds; see `paired.bootstrap_interval`.
    examples: of 95 % over the judged examples, of a single seed.
    diverged: how many seeds diverged.
  """

  values: tuple[float | None, ...]
  mean: float | None
  deviation: float | None
  interval: paired.Interval | None
  bootstrap: paired.Interval | None
  examples: paired.Interval | None
  diverged: int


class Configuration(NamedTuple):
  """Trials that differ in the seed alone, or a model that was not trained.

  Attributes:
    label: says what is different from the others: "lora rank=4".
    settings: flat, with "method.name" and without "seed".
    seeds: of `results`, in their order.
    results: the trials' results.
    metrics: {metric: its estimate}.
    changes: {"base" or "shots": {metric: its change from there}}, paired by example.
    trained_parameters, base_parameters: counts.
    seconds: the mean of its trials.
  """

  label: str
  settings: dict[str, Any]
  seeds: tuple[Any, ...]
  results: tuple[dict, ...]
  metrics: dict[str, Estimate]
  changes: dict[str, dict[str, Estimate]] = {}
  trained_parameters: int = 0
  base_parameters: int = 0
  seconds: float | None = None


class Comparison(NamedTuple):
  """See the module."""

  metric: str
  higher_is_better: bool
  reference: str
  configurations: tuple[Configuration, ...]
  untrained: tuple[Configuration, ...]
  pairs: tuple[pairs.Pair, ...]
  warnings: tuple[Caution, ...]
  replicates: str
  exited: tuple[dict, ...]
  failed: dict[str, str]
  tables: dict[str, table.Table]
  columns: dict[str, list[Any]]


def compare(
  results: Sequence[dict],
  metric: str | None = None,
  *,
  reference: str | None = None,
  config: Mapping[str, Any] | None = None,
  failed: Sequence[dict] = (),
  curves: Mapping[str, Mapping] | None = None,
) -> Comparison:
  """Compares the configurations of a sweep.

  Args:
    results: of all trials that finished, also of those that left early.
    metric: decides the order, and what is tested; default the test loss, else that of validation.
    reference: the label, or a trial, of the configuration that others are compared with; default
      the best one.
    config: the completed config that the trials share, for the warnings.
    failed: the trials without a result, with a "detail"; see `collect.read`.
    curves: {configuration: its learning rates, their losses and the chosen one} of a sweep that
      chose its rates, as in its tuning.json.

  Raises:
    UserError: no finished trial, an unknown metric or an unknown reference.
  """
  exited = tuple(result for result in results if result.get("exited_at"))
  finished = [result for result in results if not result.get("exited_at")]
  evidence = _evidence(finished, metric, reference, config or {})
  reasons = {one["trial"]: one["detail"] for one in failed}
  evidence = evidence._replace(exited=exited, failed=reasons, curves=curves or {})
  rows, metric, names = evidence.rows, evidence.metric, table.metric_names(finished)
  return Comparison(
    metric=metric,
    higher_is_better=metrics.higher_is_better(metric),
    reference=evidence.reference,
    configurations=tuple(_configuration(row, names) for row in rows),
    untrained=tuple(_untrained(stats.group_bases(rows), names)),
    pairs=tuple(evidence.pairs),
    warnings=(*cautions.find(evidence), *confounds.find(evidence), *unequal.find(evidence)),
    replicates=confounds.replicates(evidence),
    exited=exited,
    failed=dict(evidence.failed),
    tables=contrasts.tables(evidence),
    columns=exports.columns(results, failed),
  )


def _evidence(
  finished: Sequence[dict],
  metric: str | None,
  reference: str | None,
  config: Mapping[str, Any],
) -> Evidence:
  """Groups the trials that finished, and compares their configurations two by two."""
  if not finished:
    raise UserError("no finished trial to report on: run the sweep first")
  metric = table.choose_metric(finished, metric)
  rows = stats.best_first(stats.group(finished), metric)
  chosen, scores = _reference(rows, reference), pairs.read_scores(finished)
  named, configs = reference is not None, read_configs(finished, config)
  compared = pairs.compare(rows, metric, chosen, scores, named=named)
  counted = {id(result) for row in rows for result in row.results}
  repeated = [result for result in finished if id(result) not in counted]
  return Evidence(rows, metric, chosen, named, compared, scores, configs, repeated=tuple(repeated))


def _reference(rows: Sequence[stats.Row], wanted: str | None) -> str:
  """Returns the label of the best row, or of the one that is named by its label or by a trial."""
  if wanted is None:
    return rows[0].label
  named = {result["trial"]: row.label for row in rows for result in row.results}
  named |= {row.label: row.label for row in rows}
  if wanted not in named:
    raise UserError(f"no configuration is named {wanted!r}; {nearest(wanted, list(named))}")
  return named[wanted]


def _configuration(row: stats.Row, names: Iterable[str]) -> Configuration:
  first = row.results[0]
  final = lambda name: [stats.final(result, name) for result in row.results]
  change = lambda name, key: [stats.change(result, name, key) for result in row.results]
  ends = lambda name, key=None: stats.over_examples(row.results, name, key)
  return Configuration(
    label=row.label,
    settings=row.settings,
    seeds=tuple(result["settings"].get("seed") for result in row.results),
    results=row.results,
    metrics={n: estimate(final(n), ends(n)) for n in names},
    changes={
      key: {n: estimate(change(n, key), ends(n, key)) for n in names}
      for key in ("base", "shots")
      if any(result.get(key) for result in row.results)
    },
    trained_parameters=first["trained_parameters"],
    base_parameters=first["base_parameters"],
    seconds=stats.summarize(result.get("seconds") for result in row.results).mean,
  )


def _untrained(bases: Sequence[stats.Row], names: Iterable[str]) -> Iterable[Configuration]:
  for row in bases:
    for key, label in table.untrained_labels(row).items():
      one = {name: estimate(stats.untrained(row.results, name, key)) for name in names}
      yield Configuration(label, row.settings, (), row.results, one)


def estimate(
  values: Sequence[float | None], over_examples: paired.Interval | None = None
) -> Estimate:
  """Estimates a mean over seeds.

  Args:
    over_examples: the interval over examples, of a single seed.
  """
  summary = stats.summarize(values)
  known = [value for value in values if value is not None]
  mean, half = summary.mean, summary.half_width
  several = half is not None
  return Estimate(
    values=tuple(values),
    mean=mean,
    deviation=float(np.std(known, ddof=1)) if several else None,
    interval=(mean - half, mean + half) if several else None,
    bootstrap=paired.bootstrap_interval(known) if several else None,
    examples=over_examples if mean is not None else None,
    diverged=summary.diverged,
  )
