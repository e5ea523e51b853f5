"""Confounds in the design of a sweep: differences that are not what the table says they are.

Each function looks for one and returns what it found, as a list of warnings.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

from jaxtune import metrics, objectives
from jaxtune.sweeps import stats
from jaxtune.sweeps.evidence import Caution, Evidence, chained, listed, of_rows
from jaxtune.sweeps.tuning import PATH as RATE

_OBJECTIVE = "objective.name"
_FAR = 10  # times the best perplexity, from which on a base counts as far from the task


def find(evidence: Evidence) -> list[Caution]:
  """Returns what all functions here find."""
  rules = (
    scale, edge, few_seeds, unequal_seeds, selection, other_examples, other_tokens, other_losses,
    far_base,
  )  # fmt: skip
  return chained(rules, evidence)


def scale(evidence: Evidence) -> list[Caution]:
  """Finds ranks that were compared at a fixed alpha, so that LoRA's scale varied with them."""
  ranks_at: dict[tuple, dict[str, int]] = {}
  for result in evidence.results:
    for path in (config := evidence.config(result)):
      section, _, key = path.rpartition(".")
      alpha = config.get(f"{section}.alpha")
      fixed = alpha and not config.get(f"{section}.scale")
      if path.startswith("method.") and key == "rank" and fixed:
        by = "the root of the rank" if config.get(f"{section}.rslora") else "rank"
        ranks_at.setdefault((section, alpha, by), {})[result["trial"]] = config[path]
  return [
    Caution(
      "scale",
      f"The rank axis also changed LoRA's scale: alpha = {stats.show(alpha)} is fixed, so "
      f"alpha / {by} falls as the rank grows (ranks "
      f"{', '.join(map(str, sorted(set(ranks.values()))))}). To compare ranks at one scale, set "
      f"{section}.scale.",
      tuple(ranks),
    )
    for (section, alpha, by), ranks in ranks_at.items()
    if len(set(ranks.values())) > 1
  ]


def edge(evidence: Evidence) -> list[Caution]:
  """Finds best values at an end of those that were tried.

  Of the learning rate that is said for every configuration; of another option of the method, the
  optimizer or the regularisation, with at least three values, for the best configuration.
  """
  found = []
  for path in stats.numeric_axes(evidence.rows):
    if path.split(".")[0] not in ("method", "optim", "regularize"):
      continue
    numeric = lambda row, path=path: isinstance(row.settings.get(path), int | float)
    rows = [row for row in evidence.rows if numeric(row)]
    at_edge = {}
    for label, line in stats.lines_along(rows, path).items():
      best, ends = stats.best_first(line, evidence.metric)[0], (line[0], line[-1])
      wanted = len(line) > 1 if path == RATE else len(line) > 2 and best is evidence.rows[0]
      known = stats.over_seeds(best.results, evidence.metric).mean is not None
      if wanted and known and best in ends:
        end = "lowest" if best is line[0] else "highest"
        named = "" if label in ("", "all") else f" for {label}"
        value = stats.show(best.settings[path])
        at_edge[f"{value}, the {end} of {len(line)}{named}"] = best
    if at_edge:
      found += of_rows("edge", _edge(path, at_edge), at_edge.values())
  chosen = {
    f"{stats.show(curve['chosen'])} for {name}": name
    for name, curve in evidence.curves.items()
    if curve.get("at_edge")
  }
  return found + ([Caution("edge", _edge(RATE, chosen), ())] if chosen else [])


def _edge(path: str, where: Iterable[str]) -> str:
  return (
    f"The best {path} is at an edge of the values that were tried: {listed(where)}. A better one "
    "may lie beyond: widen the axis."
  )


def few_seeds(evidence: Evidence) -> list[Caution]:
  """Finds configurations of fewer than three seeds."""
  few = [row for row in evidence.rows if len(row.results) < 3]
  if not few:
    return []
  named = [f"{row.label} ({len(row.results)})" for row in few]
  text = (
    f"Fewer than 3 seeds: {listed(named)}. One seed does not show how much another would differ, "
    "and the interval of two is 12.7 standard errors on either side."
  )
  return of_rows("few_seeds", text, few)


def unequal_seeds(evidence: Evidence) -> list[Caution]:
  """Finds configurations that do not have the metric with the same seeds."""
  apart = [pair for pair in evidence.pairs if pair.unpaired]
  if not apart:
    return []
  named = {label for pair in apart for label in (pair.a, pair.b)}
  rows = [row for row in evidence.rows if row.label in named]
  text = (
    f"Not all configurations have {metrics.title(evidence.metric)} with the same seeds: "
    f"{len(apart)} of {len(evidence.pairs)} comparisons use only the seeds that both have, while "
    "means are over all seeds of each."
  )
  return of_rows("unequal_seeds", text, rows)


def selection(evidence: Evidence) -> list[Caution]:
  """Finds figures that are optimistic, as they chose what they are said of."""
  metric, rows = evidence.metric, evidence.rows
  if metric.startswith("test_") and (len(rows) > stats.count_tasks(rows) or _same_test(evidence)):
    text = (
      f"The best of {len(rows)} configurations by a test metric is chosen on the test set, so its "
      f"figure is optimistic; {_by_validation(evidence)}."
    )
    return of_rows("selection", text, rows[:1])
  if metric.startswith("validation_"):
    kept = any(evidence.config(r).get("train.keep") == "best" for r in evidence.results)
    step = " and the step whose weights were kept" * kept
    text = (
      f"Validation chose the configurations' order{step}, so these figures are optimistic; report "
      "a test metric of the best configuration."
    )
    return of_rows("selection", text, rows[:1])
  return []


def _same_test(evidence: Evidence) -> bool:
  """Says whether two configurations have one base and were judged on one set of examples.

  Their data sets may differ in the template of the prompts, say.
  """
  scores = lambda result: evidence.scores.get(result.get("folder", ""))
  tasks = [
    {(r.get("base_fingerprint"), one.examples) for r in row.results if (one := scores(r))}
    for row in evidence.rows
  ]
  return sum(map(len, tasks)) > len(set().union(*tasks))


def _by_validation(evidence: Evidence) -> str:
  """Says which configuration validation chooses, and what it has on test."""
  chosen = stats.best_first(evidence.rows, "validation_loss")[0]
  mean = lambda name: stats.over_seeds(chosen.results, name).mean
  if mean("validation_loss") is None or mean(evidence.metric) is None:
    return "choose by a validation metric to report it"
  return (
    f"to report a figure, choose by validation: its lowest loss is that of {chosen.label}, with a "
    f"{metrics.title(evidence.metric)} of {mean(evidence.metric):.4g}"
  )


def other_examples(evidence: Evidence) -> list[Caution]:
  """Finds trials that were judged on different examples."""
  known = [(r, evidence.scores.get(r.get("folder", ""))) for r in evidence.results]
  sets: dict[str, list[str]] = {}
  for result, one in known:
    if one is not None:
      sets.setdefault(one.examples, []).append(result["trial"])
  if len(sets) < 2:
    return []
  text = (
    f"Trials were judged on {len(sets)} different sets of examples: their figures are not of the "
    f"same task, and tests between them are over seeds alone. One each: "
    f"{listed(trials[0] for trials in sets.values())}."
  )
  return [Caution("other_examples", text, tuple(t for trials in sets.values() for t in trials))]


def other_tokens(evidence: Evidence) -> list[Caution]:
  """Finds losses and perplexities that are per token of different tokenizers."""
  known = {result["data"].get("tokenizer") for result in evidence.results if "data" in result}
  name = evidence.metric.partition("/")[0]
  split, _, measure = name.rpartition("_")
  # A loss is per token where the split has a perplexity; others are per example, word or pair.
  per_token = any(f"{split}_perplexity" in result["final"] for result in evidence.results)
  if len(known) < 2 or measure not in ("loss", "perplexity") or not per_token:
    return []
  text = (
    f"The models have different tokenizers, and {metrics.title(name)} is per token: it cannot be "
    "compared between them. Compare metrics of the text that they write, or of their answers."
  )
  return of_rows("other_tokens", text, evidence.rows)


def other_losses(evidence: Evidence) -> list[Caution]:
  """Finds losses that are not the same function, as of other objectives, references or rewards."""
  sections = [_judged_by(evidence.config(result)) for result in evidence.results]
  keys = dict.fromkeys(itertools.chain(*sections))
  differ = [key for key in keys if len({str(one.get(key)) for one in sections}) > 1]
  name = evidence.metric.partition("/")[0]
  if not differ or not name.endswith("_loss"):
    return []
  text = (
    f"Trials differ in {listed([_OBJECTIVE] if _OBJECTIVE in differ else differ)}, on which their "
    f"{metrics.title(name)} depends whatever they have learnt: it cannot be compared between them. "
    "Compare accuracies, or metrics of the text that they write."
  )
  return of_rows("other_losses", text, evidence.rows)


def _judged_by(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the options by which losses are judged, as far as a config says them."""
  if config.get(_OBJECTIVE) is None:
    return {}
  of = lambda name: {k.partition(".")[2]: x for k, x in config.items() if k.startswith(f"{name}.")}
  return objectives.losses_of(of("objective"), of("rollout"), of("method"))


def far_base(evidence: Evidence) -> list[Caution]:
  """Finds a base whose perplexity is more than ten times that of the best configuration.

  Then most of what training does is to make the base speak the language of the task at all. Heads
  that are new score by chance before training, and have no perplexity: nothing is said of them.
  """
  name = f"{evidence.metric.partition('_')[0]}_perplexity"
  best = stats.over_seeds(evidence.rows[0].results, name).mean
  base = stats.of_base(evidence.rows[0].results, name).mean
  if best is None or base is None or base <= _FAR * best:
    return []
  text = (
    f"The base is far from the task: its {metrics.title(name)} of {base:.4g} is {base / best:.3g} "
    f"times that of the best configuration (this warning appears from {_FAR} times on). What is "
    "compared is mostly how fast methods recover from that, and not how well they adapt a model "
    "that knows the language of the task."
  )
  return of_rows("far_base", text, evidence.rows[:1])


def replicates(evidence: Evidence) -> str:
  """Says what differs between the seeds of a configuration, and so what intervals are over."""
  config = evidence.config(evidence.results[0])
  if max(len(row.results) for row in evidence.rows) == 1:
    return (
      "One seed each: intervals and tests are over the judged examples alone, and say nothing of "
      "how another seed would come out."
    )
  drawn = [
    "the first weights of the method and of a new head",
    "the order of the training examples",
  ]
  drawn.append("dropout")
  if "model.path" in config and config["model.path"] is None:
    drawn.append("the weights of the base")
  if config.get("evaluate.shots"):
    drawn.append("the demonstrations")
  if config.get("evaluate.temperature"):
    drawn.append("the generated text")
  return (
    f"Replicates differ in the seed, which draws {listed(drawn)} all at once: intervals are over "
    "all of these together, and do not tell them apart."
  )
