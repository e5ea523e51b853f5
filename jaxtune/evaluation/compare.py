"""Compares judgements on the same examples: intervals, differences, classes, a constant answer."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from jaxtune import metrics
from jaxtune.data import Data, Split
from jaxtune.data.encode import pairs
from jaxtune.evaluation.judge import SUMS, Evaluator, Judged, weights_of
from jaxtune.metrics import intervals
from jaxtune.metrics.kinds import label, preference, tags


class Untuned(NamedTuple):
  """What the base scored before any training, on the examples that trials are judged by.

  Attributes:
    base: its judgement.
    shots: its judgement with demonstrations in the prompts; None if the config asks for none.
    drawn: which demonstrations these are; see `data.shots`.
  """

  base: Judged
  shots: Judged | None = None
  drawn: dict | None = None


def record(judged: Judged, untuned: Untuned, evaluator: Evaluator, dataset: Data) -> dict:
  """Gathers what a result says of a judgement.

  Returns:
    "base" and "final" {metric: value}, "intervals" {metric: [low, high]}, "differences" {"base" and
    "shots": {metric: [difference, low, high]}}, "shots" (its metrics, and "demonstrations"),
    "chance" {metric: value}; for labels and tags "classes", and for labels "confusion", or in place
    of all three, where rows of a task have choices of their own, "guess" {metric: what one of them
    at random scores}; for rewards "calibration", "by_length" and "ties", see
    `metrics.kinds.preference`; for pairs of answers "length" {metric: what the longer answer
    scores, or the shorter one}.
  """
  names, resamples = evaluator.metrics, evaluator.options.resamples
  train = dataset.train  # The answers of a stream are not known beforehand.
  seen = evaluator.objective.references(dataset, train) if isinstance(train, Split) else ()
  kind = metrics.kind_of(evaluator.objective.METRICS[0])
  guess = {} if kind == "text" else _guess(judged, dataset)  # there they are people's
  result = {
    "base": untuned.base.metrics,
    "final": judged.metrics,
    "intervals": metric_intervals(judged, names, resamples),
    "differences": {"base": differences(judged, untuned.base, names, resamples)},
    "chance": {} if guess else chance(judged, names, seen),
  }
  result |= guess or _classes(judged, kind, dataset.labels or None)
  result |= _pairs(judged, kind, dataset)
  if untuned.shots is not None:
    result["differences"]["shots"] = differences(judged, untuned.shots, names, resamples)
    result["shots"] = untuned.shots.metrics
    result["demonstrations"] = untuned.drawn
  return result


def _guess(judged: Judged, dataset: Data) -> dict:
  """Returns what a choice at random scores; {} unless rows of a task have choices of their own."""
  split = getattr(dataset, judged.split, None)
  if judged.predictions is None or split is None or not split.own_choices:
    return {}
  mean = float(np.mean([1 / len(options) for options in split.choices]))
  return {"guess": {f"{judged.split}_accuracy": 100 * mean}}


def _classes(judged: Judged, kind: str, names: Sequence[str] | None) -> dict:
  """Makes the table of the classes, or of the types of span, and the confusion matrix."""
  if judged.predictions is None or kind not in ("label", "tags"):
    return {}
  predictions, references = judged.predictions, judged.references
  if kind == "tags":
    return {"classes": [row._asdict() for row in tags.per_class(predictions, references)]}
  confusion = label.confusion(predictions, references, names)
  return {
    "classes": [row._asdict() for row in label.per_class(predictions, references, names)],
    "confusion": {"labels": list(confusion.labels), "counts": confusion.counts_CC.tolist()},
  }


def _pairs(judged: Judged, kind: str, dataset: Data) -> dict:
  """Makes what is said of pairs of answers: by length alone, and of their rewards."""
  split = getattr(dataset, judged.split, None)
  if split is None or "difference" not in split.arrays:
    return {}
  longer, of = pairs.longer_chosen(dataset.train)
  right, judged_pairs = pairs.longer_chosen(split)
  found = {}
  if of and judged_pairs:
    share = right / judged_pairs if 2 * longer >= of else 1 - right / judged_pairs
    found["length"] = {f"{judged.split}_accuracy": 100 * share}
  predictions = judged.predictions if kind == "preference" else None
  if predictions is not None and np.isfinite(predictions).all():
    both = predictions, judged.references
    found |= {name: getattr(preference, name)(*both) for name in ("calibration", "by_length")}
    found["ties"] = preference.ties(*both)
  return found


def metric_intervals(
  judged: Judged, names: Sequence[str], resamples: int
) -> dict[str, list[float]]:
  """Returns the 95 % interval over examples of the judged split's metrics, {name: [low, high]}."""
  return {
    name: list(intervals.between(values))
    for name, values in draws(judged, names, resamples).items()
  }


def differences(
  judged: Judged, other: Judged, names: Sequence[str], resamples: int
) -> dict[str, list[float]]:
  """Returns {metric: [judged - other, low, high]}, paired by example.

  Metrics that either lacks are left out.
  """
  mine, theirs = (draws(one, names, resamples) for one in (judged, other))
  return {
    name: [
      judged.metrics[name] - other.metrics[name],
      *intervals.between(mine[name] - theirs[name]),
    ]
    for name in mine
    if name in theirs and name in other.metrics
  }


def draws(judged: Judged, names: Sequence[str], resamples: int) -> dict[str, np.ndarray]:
  """Returns each metric of the judged split on resamples, which are the same for every metric."""
  found: dict[str, np.ndarray] = {}
  if not judged.split or not resamples:
    return found
  rows, loss = judged.rows, f"{judged.split}_loss"
  ratio = partial(intervals.ratio_draws, resamples=resamples, units=judged.units.get("rows"))
  if loss in judged.metrics:
    found[loss] = ratio(rows["loss"], rows["weight"])
  if f"{judged.split}_perplexity" in judged.metrics:
    found[f"{judged.split}_perplexity"] = np.exp(found[loss])
  if f"{judged.split}_accuracy" in judged.metrics:  # of tokens; of labels, see below
    found[f"{judged.split}_accuracy"] = 100 * ratio(rows["correct"], rows["weight"])
  for name in rows:  # an objective's own sums
    if name not in SUMS and f"{judged.split}_{name}" in judged.metrics:
      found[f"{judged.split}_{name}"] = _with_some(ratio(rows[name], rows[weights_of(name, rows)]))
  if judged.predictions is not None:
    for name in (name for name in names if f"{judged.split}_{name}" in judged.metrics):
      found[f"{judged.split}_{name}"] = intervals.draws(
        name, judged.predictions, judged.references, resamples=resamples,
        units=judged.units.get("predictions"),
      )  # fmt: skip
  return found


def _with_some(draws_Z: np.ndarray) -> np.ndarray:
  """Replaces resamples without any example that counts by others, unless most are without one."""
  finite_Z = np.isfinite(draws_Z)
  if 2 * finite_Z.sum() < len(draws_Z):
    return draws_Z
  return np.where(finite_Z, draws_Z, np.resize(draws_Z[finite_Z], len(draws_Z)))


def chance(judged: Judged, names: Sequence[str], seen: Sequence[Any]) -> dict[str, float]:
  """Scores the most frequent answer of the training data, given to every example.

  Returns:
    {"test_accuracy": 52.1, ...}; {} if the training data have no answers (plain text), or if they
    are not known (a stream).
  """
  seen = [one for one in seen if one != []]  # plain text has no answers
  names = [name for name in names if hasattr(metrics.KINDS[metrics.kind_of(name)], "baseline")]
  if judged.predictions is None or not seen:
    return {}
  scores = metrics.baseline(judged.references, names, seen)
  return {f"{judged.split}_{name}": value for name, value in scores.items()}
