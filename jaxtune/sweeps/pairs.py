"""Compares the configurations of a sweep two by two, on the seeds and examples that both have."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxtune import metrics
from jaxtune.metrics.metric import Draws
from jaxtune.runs import scores
from jaxtune.sweeps import paired, stats

MOST_CONFIGURATIONS = 60  # of more, only the pairs with the reference are compared


class Pair(NamedTuple):
  """The comparison of configuration A with configuration B by one metric.

  Attributes:
    a, b: their labels.
    seeds: those that both have the metric with; only these are compared.
    unpaired: those that only one has it with.
    test: of the differences A - B; None where there is none.
    effect: the size of the difference; None with fewer than two seeds.
    better: the probability that the mean of A is better, from `Test.positive`; None without a test.
    wins, ties: with how many seeds A is better than B, and with how many they are equal.
    p_reference: p, adjusted for all comparisons with the reference; None for other pairs. It holds
      for a reference that was named beforehand. For the best one, which the same results have
      chosen, it is too small: among 7 equal configurations 9 % of sweeps find a difference, among
      20 15 % (`experiments/reliability/coverage.csv`).
    p_pairs: p, adjusted for all pairs. It holds for comparisons with the best one too.
    p_adjusted: the one of both that holds.
    reason: why there is no test, or no p; else "".
  """

  a: str
  b: str
  seeds: tuple[Any, ...]
  unpaired: tuple[Any, ...]
  test: paired.Test | None = None
  effect: paired.Effect | None = None
  better: float | None = None
  wins: int = 0
  ties: int = 0
  p_reference: float | None = None
  p_pairs: float | None = None
  p_adjusted: float | None = None
  reason: str = ""


def compare(
  rows: Sequence[stats.Row],
  metric: str,
  reference: str,
  known: Mapping[str, scores.Scores],
  *,
  named: bool = False,
) -> list[Pair]:
  """Compares every row with every later one; of many rows, only with the reference.

  Args:
    rows: best first.
    reference: the label of a row.
    known: {folder of a trial: its scores}, as far as there are any.
    named: whether the reference was named beforehand; else it is the best row.
  """
  chosen = list(itertools.combinations(rows, 2))
  if len(rows) > MOST_CONFIGURATIONS:
    chosen = [pair for pair in chosen if reference in (pair[0].label, pair[1].label)]
  made = [_compare(a, b, metric, known) for a, b in chosen]
  ps = [pair.test and pair.test.p for pair in made]
  among = [i for i, pair in enumerate(made) if reference in (pair.a, pair.b)]
  of_reference = dict(zip(among, paired.holm([ps[i] for i in among]), strict=True))
  of_pairs = paired.holm(ps, math.comb(len(rows), 2) - len(made))
  return [
    pair._replace(
      p_reference=of_reference.get(i),
      p_pairs=p,
      p_adjusted=of_reference.get(i, p) if named else p,
    )
    for i, (pair, p) in enumerate(zip(made, of_pairs, strict=True))
  ]


def find(pairs: Sequence[Pair], a: str, b: str) -> Pair | None:
  """Finds the comparison of A with B, turned around where it was made as that of B with A."""
  for pair in pairs:
    if (pair.a, pair.b) == (a, b):
      return pair
    if (pair.b, pair.a) == (a, b):
      return turned(pair)
  return None


def turned(pair: Pair) -> Pair:
  """Returns the comparison of B with A."""
  other = lambda interval: interval and (-interval[1], -interval[0])
  probability = lambda p: None if p is None else 1 - p
  test, effect = pair.test, pair.effect
  return pair._replace(
    a=pair.b,
    b=pair.a,
    test=test
    and test._replace(
      difference=-test.difference,
      interval=other(test.interval),
      positive=probability(test.positive),
    ),
    effect=effect and effect._replace(g=effect.g and -effect.g, interval=other(effect.interval)),
    better=probability(pair.better),
    wins=len(pair.seeds) - pair.wins - pair.ties if test else 0,
  )


def read_scores(results: Sequence[dict]) -> dict[str, scores.Scores]:
  """Reads the scores of those trials that have a "folder", and scores in it."""
  read = {r["folder"]: scores.read(Path(r["folder"]), r) for r in results if r.get("folder")}
  return {folder: one for folder, one in read.items() if one is not None}


def _compare(a: stats.Row, b: stats.Row, metric: str, known: Mapping[str, scores.Scores]) -> Pair:
  first, second = by_seed(a, metric), by_seed(b, metric)
  seeds = [seed for seed in first if seed in second]
  pair = Pair(
    a.label, b.label, tuple(seeds), tuple(s for s in {**first, **second} if s not in seeds)
  )
  diverged = [row.label for row in (a, b) if stats.over_seeds(row.results, metric).diverged]
  if diverged:
    return pair._replace(reason=f"a seed of {diverged[0]} diverged")
  if not seeds:
    return pair._replace(reason=f"they have {metrics.title(metric)} with no common seed")
  results = [(first[seed], second[seed]) for seed in seeds]
  differences = [stats.final(x, metric) - stats.final(y, metric) for x, y in results]
  draws = _draws(results, metric, known)
  test, reason = paired.test(differences, draws), ""
  if len(seeds) == 1 and draws is None:
    test, reason = test._replace(p=None, positive=None), "one common seed, and no scores by example"
  elif test.p is None:
    reason = "neither seeds nor examples change the difference"
  sign = 1 if metrics.higher_is_better(metric) else -1
  better = test.positive if sign > 0 or test.positive is None else 1 - test.positive
  wins, ties = sum(sign * d > 0 for d in differences), sum(d == 0 for d in differences)
  return pair._replace(
    test=test, effect=paired.effect(differences), better=better, wins=wins, ties=ties, reason=reason
  )


def by_seed(row: stats.Row, metric: str) -> dict[Any, dict]:
  """Returns {seed: the first result with it that has the metric}."""
  found: dict[Any, dict] = {}
  for result in row.results:
    if stats.final(result, metric) is not None:
      found.setdefault(result["settings"].get("seed"), result)
  return found


def _draws(
  results: Sequence[tuple[dict, dict]], metric: str, known: Mapping[str, scores.Scores]
) -> Draws | None:
  """Returns the pairs' differences on resamples of the examples, (E, Z).

  None unless all of these trials were judged on the same examples.
  """
  trials = [[known.get(result.get("folder", "")) for result in pair] for pair in results]
  flat = list(itertools.chain(*trials))
  if any(one is None or metric not in one.draws for one in flat):
    return None
  if len({(one.examples, one.draws[metric].shape) for one in flat}) > 1:
    return None
  draws_EZ = np.stack([a.draws[metric] - b.draws[metric] for a, b in trials])
  return draws_EZ if np.isfinite(draws_EZ).all() else None


def write_p(p: float | None) -> str:
  """Writes a p-value with two digits: "p = 0.034"; "no p" for None."""
  if p is None or math.isnan(p):
    return "no p"
  return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"
