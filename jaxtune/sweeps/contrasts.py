"""The tables of comparisons: the one that a person reads, and all tests behind it."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtune import metrics
from jaxtune.sweeps import pairs as pairs_
from jaxtune.sweeps import stats, table
from jaxtune.sweeps.evidence import Evidence


def tables(evidence: Evidence) -> dict[str, table.Table]:
  """Makes the tables that show a comparison: "main", "all columns" and "comparisons"."""
  return {
    "main": main(evidence, evidence.reference if evidence.named else "the best"),
    "all columns": table.build(evidence.results, evidence.metric),
    "comparisons": comparisons(evidence.pairs, evidence.metric, evidence.reference),
  }


def main(evidence: Evidence, named: str) -> table.Table:
  """Makes the table that a person reads: five columns, the untuned base first, then best first.

  A configuration's metric is compared with that of the reference, or, where it is alone, with the
  base's.

  Args:
    named: how the reference is named.
  """
  rows, metric, results = evidence.rows, evidence.metric, evidence.results
  digits = table.decimals(results, metric)
  alone = len(rows) == 1
  change = f"change of {metrics.title(metric)} from base"
  header = [
    "configuration",
    "trained parameters",
    table.title(metric),
    change if alone else f"difference from {named} (p by Holm)",
    "seconds per trial",
  ]
  bases = [cells for cells in table.untrained(rows, {metric: digits}) if cells[4] != "-"]
  body = [[cells[0], "0", cells[4], "-", "-"] for cells in bases]
  for row in rows:
    seconds = stats.summarize(result["seconds"] for result in row.results).mean
    pair = pairs_.find(evidence.pairs, row.label, evidence.reference)
    against = named if row.label == evidence.reference else pair and _difference(pair, digits)
    body.append(
      [
        row.label,
        f"{row.results[0]['trained_parameters']:,}",
        table.measured(row.results, metric, digits),
        table.measured(row.results, metric, digits, "base") if alone else against or "-",
        f"{seconds:.1f}",
      ]
    )
  return table.Table(header, body, len(bases))


def comparisons(pairs: Sequence[pairs_.Pair], metric: str, reference: str) -> table.Table:
  """Makes the table of comparisons, those with the reference first.

  Of more than a hundred the others are left out.
  """
  first = [pair for pair in pairs if reference in (pair.a, pair.b)]
  others = [pair for pair in pairs if reference not in (pair.a, pair.b)]
  header = [
    "A",
    "B",
    f"A - B, {metrics.title(metric)}",
    "95 % interval",
    "p",
    "p (Holm, with the reference)",
    "p (Holm, all pairs)",
    "Hedges' g [95 %]",
    "P(A is better)",
    "A better with",
    "seeds for power 0.8",
    "varied",
  ]
  shown = first + others if len(pairs) <= 100 else first
  return table.Table(header, [_comparison(pair) for pair in shown])


def _comparison(pair: pairs_.Pair) -> list[str]:
  test, effect = pair.test, pair.effect
  if test is None:
    return [pair.a, pair.b, pair.reason, *["-"] * 9]
  number = lambda x, form: "-" if x is None else f"{x:{form}}"
  between = lambda interval, form: "[{}]".format(", ".join(f"{x:{form}}" for x in interval))
  needed = "-" if effect is None else effect.seeds_needed or "> 1000"
  return [
    pair.a,
    pair.b,
    f"{test.difference:+.4g}",
    between(test.interval, "+.4g") if test.interval else "-",
    *(number(p, ".3g") for p in (test.p, pair.p_reference, pair.p_pairs)),
    f"{number(effect.g, '+.2f')} {between(effect.interval, '.2f')}" if effect else "-",
    number(pair.better, ".3f"),
    f"{pair.wins} of {len(pair.seeds)}" + (f", {pair.ties} equal" if pair.ties else ""),
    str(needed),
    pair.reason or test.varied,
  ]


def _difference(pair: pairs_.Pair, digits: int) -> str:
  """Writes a difference with its interval and its adjusted p."""
  if pair.test is None:
    return "-"
  cell = f"{pair.test.difference:+.{digits}f}"
  if pair.test.interval is not None:
    cell += f" ± {pair.test.interval[1] - pair.test.difference:.{digits}f}"
  return cell if pair.p_adjusted is None else f"{cell}, {pairs_.write_p(pair.p_adjusted)}"
