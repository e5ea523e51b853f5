"""All that a report says of a sweep, as plain values: the page and every file are written from it.

  compared = comparison.compare(results, "test_loss", config=shared_config)

`compare` returns a `Comparison`:

  .metric, .higher_is_better   what is compared, and which way it improves
  .reference                   the label of the configuration that the others are compared with
  .configurations              a `stats.Row` each, best first, with the results of its seeds
  .pairs                       a `pairs.Pair` for every two configurations, A before B as in
                               .configurations: difference, interval, p with both of Holm's
                               corrections (show .p_adjusted), effect size, probability, seeds
                               needed.
                               `pairs.find(compared.pairs, a, b)` turns one around
  .warnings                    an `evidence.Caution` each: kind, text, trials
  .replicates                  a sentence that says what differs between seeds
  .tables                      {title: `table.Table`} as text: "main" has the five columns to read,
                               "all columns" and "comparisons" what is shown on demand
  .columns                     {name: a value for each trial}: results.csv and results.parquet,
                               from `exports.to_csv` and `exports.to_parquet`

Trials that left early or failed are in nothing but .warnings and .columns.

Results are the contents of result.json with "trial" (its name), "settings" (the sweep's axes) and,
where scores by example are to be used, "folder". Another metric is another call. All values are
numbers, text, None, and tuples and dicts of them; NaN stands for a trial that diverged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxtune import metrics
from jaxtune.errors import UserError, nearest
from jaxtune.sweeps import (
  cautions,
  confounds,
  contrasts,
  exports,
  pairs,
  stats,
  table,
  unequal,
)
from jaxtune.sweeps.evidence import Caution, Evidence, read_configs


class Comparison(NamedTuple):
  """See the module."""

  metric: str
  higher_is_better: bool
  reference: str
  configurations: tuple[stats.Row, ...]
  pairs: tuple[pairs.Pair, ...]
  warnings: tuple[Caution, ...]
  replicates: str
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
  return Comparison(
    metric=evidence.metric,
    higher_is_better=metrics.higher_is_better(evidence.metric),
    reference=evidence.reference,
    configurations=tuple(evidence.rows),
    pairs=tuple(evidence.pairs),
    warnings=(*cautions.find(evidence), *confounds.find(evidence), *unequal.find(evidence)),
    replicates=confounds.replicates(evidence),
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
