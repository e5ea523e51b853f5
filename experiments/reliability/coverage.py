"""Do intervals cover, and does Holm's correction hold the error of a family, in simulations?

python experiments/reliability/coverage.py [--runs N] [--keep]

Differences of two configurations are drawn whose true value is 0: E seeds, all scored on the same
100 examples, with deviations over seeds and over examples as given, and 1 for what both do
together. An interval should hold 0 in 95 % of the runs, and of a family of equal configurations
5 % or less should have any p below 0.05. --keep writes coverage.csv.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from jaxtune.sweeps import paired

HERE = Path(__file__).parent
HEADER = ("what", "seeds", "over seeds", "over examples", "by", "percent", "date")
DESIGNS = ((0.3, 0.5), (0.1, 1.5), (0.02, 3.0))  # deviations over seeds, and over examples
EXAMPLES, RESAMPLES = 100, 200
FEWEST, MOST = 92.5, 99.5  # percent of the runs that the intervals in use must cover


def both(differences_E: np.ndarray, draws_EZ: np.ndarray, draw: np.random.Generator) -> tuple:
  """Returns the interval that reports have."""
  return paired.test(differences_E, draws_EZ).interval


def student(differences_E: np.ndarray, draws_EZ: np.ndarray, draw: np.random.Generator) -> tuple:
  """Returns the interval of the paired t test, which knows seeds alone."""
  return tuple(stats.ttest_1samp(differences_E, 0).confidence_interval(0.95))


def bootstrap(differences_E: np.ndarray, draws_EZ: np.ndarray, draw: np.random.Generator) -> tuple:
  """Returns the percentiles of a bootstrap that resamples seeds and examples."""
  seeds = len(differences_E)
  chosen_ZE = draw.integers(seeds, size=(RESAMPLES, seeds))
  means_Z = np.take_along_axis(draws_EZ.T, chosen_ZE, 1).mean(1)
  return tuple(np.quantile(means_Z, (0.025, 0.975)))


def hillis(differences_E: np.ndarray, draws_EZ: np.ndarray, draw: np.random.Generator) -> tuple:
  """Returns that of Obuchowski and Rockette, with the degrees of freedom of Hillis (2007)."""
  seeds, square = len(differences_E), differences_E.var(ddof=1)
  covariances = np.cov(draws_EZ)
  pairs = seeds * (seeds - 1)
  shared = seeds * max((covariances.sum() - np.trace(covariances)) / pairs, 0)
  freedom = (square + shared) ** 2 / (square**2 / (seeds - 1))
  half = stats.t.ppf(0.975, freedom) * np.sqrt((square + shared) / seeds)
  return differences_E.mean() - half, differences_E.mean() + half


WAYS: dict[str, Callable] = {
  "seeds and examples": both, "t test": student, "bootstrap of both": bootstrap, "Hillis": hillis,
}  # fmt: skip


def crossed(runs: int) -> Iterator[tuple]:
  """Yields how often the interval of a difference holds the true one."""
  for seeds in (2, 3, 5):
    for of_seeds, of_examples in DESIGNS:
      draw, covered = np.random.default_rng(0), dict.fromkeys(WAYS, 0)
      share = np.full(EXAMPLES, 1 / EXAMPLES)
      counts_ZX = draw.multinomial(EXAMPLES, share, RESAMPLES) / EXAMPLES
      for _ in range(runs):
        scores_EX = draw.normal(0, of_examples, EXAMPLES) + draw.normal(0, of_seeds, (seeds, 1))
        scores_EX = scores_EX + draw.normal(0, 1, (seeds, EXAMPLES))
        for name, interval in WAYS.items():
          low, high = interval(scores_EX.mean(1), scores_EX @ counts_ZX.T, draw)
          covered[name] += low < 0 < high
      for name, count in covered.items():
        yield "interval of a difference", seeds, of_seeds, of_examples, name, 100 * count / runs


def means(runs: int) -> Iterator[tuple]:
  """Yields how often intervals of a mean over seeds hold the true one."""
  for seeds in (2, 3, 5, 8, 12):
    draw = np.random.default_rng(0)
    found = {"Student's t": 0, "expanded percentiles": 0}
    for values in draw.normal(0, 1, (runs, seeds)):
      for name, of in (("Student's t", paired.test), ("expanded percentiles", _percentiles)):
        low, high = of(values).interval if name == "Student's t" else of(values)
        found[name] += low < 0 < high
    for name, count in found.items():
      yield "interval of a mean", seeds, 1, "", name, 100 * count / runs


def _percentiles(values_E: np.ndarray, resamples: int = 500) -> tuple:
  """Returns the 95 % interval of a mean by resampling its values.

  Percentiles are taken further out, as far as Student's t is from the normal distribution
  ("expanded percentiles", Hesterberg 2015), as a resample of E values varies too little.
  """
  count = len(values_E)
  means = values_E[np.random.default_rng(0).integers(count, size=(resamples, count))].mean(1)
  quantile = stats.t.ppf(0.975, count - 1) * np.sqrt(count / (count - 1))
  share = stats.norm.cdf(-quantile)
  return tuple(np.quantile(means, (share, 1 - share)))


def families(runs: int) -> Iterator[tuple]:
  """Yields how often any of K equal configurations, of five seeds each, is told apart."""
  for count in (7, 20):
    values, (a, b) = (
      np.random.default_rng(0).normal(0, 1, (runs, count, 5)),
      np.triu_indices(count, 1),
    )
    best = values.mean(2).argmin(1)[:, None]
    ps = stats.ttest_1samp(values[:, a] - values[:, b], 0, axis=2).pvalue  # of all pairs
    with_first, with_best = np.broadcast_to(a == 0, ps.shape), (a == best) | (b == best)
    family = f"family of {count} configurations"
    yield family, 5, 1, "", "one that was named, no correction", _error(ps[:, : count - 1])
    yield family, 5, 1, "", "one that was named, Holm", _error(_holm(ps, with_first))
    yield family, 5, 1, "", "the best one, Holm for its comparisons", _error(_holm(ps, with_best))
    adjusted = [paired.holm(p) for p in ps]
    of_best = [np.array(p)[of] for p, of in zip(adjusted, with_best, strict=True)]
    yield family, 5, 1, "", "the best one, Holm for all pairs", _error(of_best)


def _holm(ps: np.ndarray, chosen: np.ndarray) -> list[list]:
  return [paired.holm(p[of]) for p, of in zip(ps, chosen, strict=True)]


def _error(ps: Any) -> float:
  """Returns in how many percent of the runs any p is below 0.05."""
  return 100 * float(np.mean([min(p) < 0.05 for p in ps]))


def wrong(rows: list[tuple]) -> list[str]:
  """Lists rates of what reports use that are not nominal."""
  used = lambda row: row[4] in ("seeds and examples", "Student's t")
  kept = ("one that was named, Holm", "the best one, Holm for all pairs")
  found = [row for row in rows if used(row) and not FEWEST <= row[5] <= MOST]
  found += [row for row in rows if row[4] in kept and row[5] > 100 - FEWEST]
  return [", ".join(map(str, row)) for row in found]


def main() -> None:
  options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  options.add_argument("--runs", type=int, default=4000)
  options.add_argument("--keep", action="store_true", help="write coverage.csv")
  chosen = options.parse_args()
  rows, today = [], datetime.date.today().isoformat()
  for part in (crossed, means, families):
    for row in part(chosen.runs):
      rows.append((*row[:5], round(float(row[5]), 1), today))
      print(*rows[-1], sep=", ", flush=True)
  if chosen.keep:
    with (HERE / "coverage.csv").open("w", newline="") as file:
      csv.writer(file, lineterminator="\n").writerows([HEADER, *rows])
  if found := wrong(rows):
    sys.exit("not nominal: " + "; ".join(found))


if __name__ == "__main__":
  main()
