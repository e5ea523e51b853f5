"""What the outcomes of a sweep do not show: trials that are missing, differences that are noise.

Each function looks for one thing and returns what it found, as a list of warnings.
"""

from __future__ import annotations

import math

import numpy as np

from jaxtune import metrics
from jaxtune.runs.results import diverged as has_diverged
from jaxtune.sweeps import pairs, stats
from jaxtune.sweeps.evidence import Caution, Evidence, chained, listed, of_results, of_rows


def find(evidence: Evidence) -> list[Caution]:
  """Returns what all functions here find."""
  return chained(
    (failed, repeated, exited, diverged, unresolved, wide, memorized, overfitted), evidence
  )


def failed(evidence: Evidence) -> list[Caution]:
  """Names trials that failed, with their reasons."""
  if not evidence.failed:
    return []
  named = [f"{trial} ({reason})" for trial, reason in evidence.failed.items()]
  text = f"Failed ({len(named)} trials, which have no result): {listed(named)}."
  return [Caution("failed", text, tuple(evidence.failed))]


def repeated(evidence: Evidence) -> list[Caution]:
  """Names trials that are no further replicates."""
  if not evidence.repeated:
    return []
  text = (
    f"Trained more than once ({len(evidence.repeated)} trials, with the settings and the seed of "
    f"another one): a seed counts once. {listed([one['trial'] for one in evidence.repeated])}."
  )
  return of_results("repeated", text, evidence.repeated)


def exited(evidence: Evidence) -> list[Caution]:
  """Names trials that a rule has ended early."""
  if not evidence.exited:
    return []
  total = len(evidence.results) + len(evidence.exited)
  named = [f"{result['trial']} (at step {result['exited_at']})" for result in evidence.exited]
  text = (
    f"Left early ({len(named)} of {total} trials) by search.early_exit: they have a validation "
    f"loss of that step alone, and are in no mean, test or plot. {listed(named)}."
  )
  return of_results("exited", text, evidence.exited)


def diverged(evidence: Evidence) -> list[Caution]:
  """Names trials whose training or whose metrics were not finite."""
  lost = [result for result in evidence.results if has_diverged(result)]
  if not lost:
    return []
  named = [f"{result['trial']} ({_when(result)})" for result in lost]
  text = (
    f"Diverged ({len(lost)} of {len(evidence.results)} trials): training that was not finite at "
    "some step counts as such, whatever the weights kept from before it score, and so does a "
    f"metric that is not finite. {listed(named)}."
  )
  return of_results("diverged", text, lost)


def _when(result: dict) -> str:
  """Says when a trial diverged, and at which step its kept weights were."""
  if result.get("diverged_at") is None:
    return "in its final metrics"
  return f"at step {result['diverged_at']}, best step {result.get('best_step', 0) or 'none'}"


def unresolved(evidence: Evidence) -> list[Caution]:
  """Names configurations that the tests do not tell apart from the reference."""
  named = {}
  for row in evidence.rows:
    pair = pairs.find(evidence.pairs, row.label, evidence.reference)
    if pair is not None and (pair.p_adjusted is None or pair.p_adjusted >= 0.05):
      why = pair.reason or pairs.write_p(pair.p_adjusted)
      needed = (pair.effect and pair.effect.seeds_needed) or 0
      named[f"{row.label} ({why}{f', {needed} seeds needed' * (needed > len(pair.seeds))})"] = row
  if not named:
    return []
  text = (
    f"Not told apart from {evidence.reference} by {metrics.title(evidence.metric)} at 5 % (paired, "
    f"Holm's correction): {listed(named)}. Seeds needed are those with which a t test would find "
    "a difference as large as this one with probability 0.8, before any correction. No number is "
    "given with a single seed, above 1,000, or where that many seeds were already run: there the "
    "correction for several comparisons, or the choice of few test examples, hides the difference."
  )
  return of_rows("unresolved", text, named.values())


def wide(evidence: Evidence) -> list[Caution]:
  """Names metrics whose intervals over seeds are wider than the range of all configurations."""
  split = evidence.metric.partition("_")[0] + "_"
  names = dict.fromkeys(name for result in evidence.results for name in result["final"])
  found = []
  for name in names:
    summaries = [stats.over_seeds(row.results, name) for row in evidence.rows]
    means = [one.mean for one in summaries if one.mean is not None]
    widths = [2 * one.half_width for one in summaries if one.half_width is not None]
    of_split = name.startswith(split) and "/" not in name
    if of_split and len(means) > 1 and widths and np.ptp(means) < np.median(widths):
      found.append(metrics.title(name))
  if not found:
    return []
  text = (
    f"By {listed(found)} the configurations differ less, from the best to the worst, than one of "
    "them varies over seeds (the median width of their 95 % intervals): no order by it means much."
  )
  return of_rows("wide", text, evidence.rows)


def memorized(evidence: Evidence) -> list[Caution]:
  """Names trials whose loss on training examples is less than half of that on held-out ones."""
  known = [result for result in evidence.results if _memorized(result["final"])]
  if not known:
    return []
  text = (
    f"Learnt by heart ({len(known)} of {len(evidence.results)} trials): the loss on training "
    "examples is less than half of that on held-out ones. Fewer steps, train.patience, regularize "
    f"or a smaller method may help: {listed(result['trial'] for result in known)}."
  )
  return of_results("memorized", text, known)


def overfitted(evidence: Evidence) -> list[Caution]:
  """Names trials of which the last weights were kept, long after validation was at its best."""
  late = [
    result
    for result in evidence.results
    if evidence.config(result).get("train.keep") == "last"
    and 0 < (result.get("best_step") or 0) <= 0.5 * result["stopped_at"]
  ]
  if not late:
    return []
  named = [f"{r['trial']} (step {r['best_step']} of {r['stopped_at']})" for r in late]
  text = (
    f"Overfitted ({len(late)} of {len(evidence.results)} trials): the validation loss was lowest "
    "in the first half of the updates, and the last weights were kept. With train.keep='best' "
    f"each has its own best step. {listed(named)}."
  )
  return of_results("overfitted", text, late)


def _memorized(final: dict) -> bool:
  held_out = final.get("validation_loss", final.get("test_loss", 0.0))
  # Where answers are rewarded, losses are negative rewards, of which no half says anything.
  return 0 < final.get("train_loss", math.inf) < 0.5 * held_out
