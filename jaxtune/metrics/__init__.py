"""Scores predictions against references by metrics that are found by name.

`kinds` holds the metrics. Proportions, correlations and scores of text are in percent, as papers
print them.
"""

from __future__ import annotations

import importlib
import math
import pkgutil
from collections.abc import Sequence

from jaxtune import schema
from jaxtune.errors import UserError, nearest
from jaxtune.metrics import kinds

KINDS = {m.name: importlib.import_module(f"{kinds.__name__}.{m.name}")
         for m in pkgutil.iter_modules(kinds.__path__)}  # fmt: skip
METRICS = {name: metric for kind in KINDS.values() for name, metric in kind.METRICS.items()}
_LOSSES = ("loss", "perplexity")  # measured on every split, without predictions
# Measures of preferences that fall as a policy learns: `objectives.preferred` and KTO have them.
_FALLING = ("_rejected", "_down", "_drift")


def of_kind(kind: str) -> list[str]:
  """Returns the names of the metrics that judge `kind`."""
  return list(KINDS[kind].METRICS)


def kind_of(metric: str) -> str:
  """Returns the kind that a metric judges."""
  return next(kind for kind, module in KINDS.items() if metric in module.METRICS)


def check(metrics: Sequence[str], kind: str | None = None) -> None:
  """Raises UserError for a metric that is unknown or does not judge `kind` (default: any)."""
  for name in metrics:
    if name in _LOSSES:
      raise UserError(f"{name} is measured on every split: leave it out of evaluate.metrics")
    if name not in METRICS:
      choices = METRICS if kind is None else of_kind(kind)
      raise UserError(f"unknown metric {name!r}; {nearest(name, choices)}")
    if kind is not None and kind_of(name) != kind:
      raise UserError(_mismatch(name, f"{kind} ({KINDS[kind].EXPECTED})", [kind]))


def score(
  predictions: Sequence,
  references: Sequence,
  metrics: Sequence[str] = ("exact_match", "bleu", "rougeL"),
) -> dict[str, float]:
  """Computes each of `metrics` and returns them by name, in the order given.

  Args:
    predictions, references: one of each for every example, as their kind expects.

  Raises:
    UserError: an unknown metric, one of another kind, no predictions, or an example without a
      reference.
  """
  check(metrics)
  for kind in dict.fromkeys(map(kind_of, metrics)):
    check_examples(kind, predictions, references, metrics)
  return {name: METRICS[name].score(predictions, references) for name in metrics}


def baseline(
  references: Sequence, metrics: Sequence[str], seen: Sequence | None = None
) -> dict[str, float]:
  """Scores the same answer to every example, which a model has to beat.

  The answer is the most frequent label, the most frequent (first) accepted text, the mean of the
  numbers, or "O" for every word.

  Args:
    seen: the references of the training data, which decide the answer; default `references`.
  """
  check(metrics)
  scores = {}
  for name in metrics:
    answers = KINDS[kind_of(name)].baseline(references, references if seen is None else seen)
    scores |= score(answers, references, (name,))
  return scores


def higher_is_better(metric: str) -> bool:
  """Says whether a model improves as a metric such as `test_loss` rises."""
  name = _base_name(metric)
  if name in METRICS:
    return METRICS[name].higher_is_better
  whole = metric.partition("/")[0]
  return name not in _LOSSES and ("reward_" in whole or not whole.endswith(_FALLING))


def bounds(metric: str) -> tuple[float, float]:
  """Returns the least and the largest value that a metric can have.

  The loss of a policy is below 0 all the same: it is the negative of its reward.
  """
  name = _base_name(metric)
  if name in METRICS:
    return METRICS[name].low, METRICS[name].high
  return 0.0 if name in _LOSSES else -math.inf, math.inf


def title(metric: str) -> str:
  """Returns the name to print for a metric such as `test_loss`, with its unit and its task."""
  metric, _, task = metric.partition("/")
  name = _base_name(metric)
  split = metric.removesuffix(name).replace("_", " ")
  of_task = {"": "", "mean": ", mean of tasks"}.get(task, f", {task}")
  return split + (METRICS[name].title if name in METRICS else name) + of_task


def _base_name(metric: str) -> str:
  """Returns the longest known name that a metric ends in, "bleu" for "test_bleu/TASK", or "".

  A reward has a unit of its own, also where it is named like a metric.
  """
  whole = metric.partition("/")[0]
  if "reward_" in whole:
    return ""
  known = [name for name in (*METRICS, *_LOSSES) if f"_{whole}".endswith(f"_{name}")]
  return max(known, key=len, default="")


def check_examples(
  kind: str, predictions: Sequence, references: Sequence, metrics: Sequence[str] = ()
) -> None:
  """Raises UserError unless every example is a prediction and a reference of `kind`."""
  if len(predictions) != len(references):
    raise UserError(
      f"{len(predictions)} predictions for {len(references)} references: "
      "give one of each for each example"
    )
  if not len(predictions):
    raise UserError("no predictions to score: the split is empty")
  judge = KINDS[kind]
  for i, (prediction, reference) in enumerate(zip(predictions, references, strict=True)):
    if not judge.fits(prediction, reference):
      name = next((name for name in metrics if kind_of(name) == kind), of_kind(kind)[0])
      fitting = [other for other in KINDS if KINDS[other].fits(prediction, reference)]
      pair = f"{schema.shown(prediction)} against {schema.shown(reference)}"
      raise UserError(_mismatch(name, f"example {i}, {pair}", fitting))
    try:
      if hasattr(judge, "check"):
        judge.check(prediction, reference)
    except UserError as error:
      raise UserError(f"example {i} {error}") from error


def _mismatch(name: str, given: str, kinds: Sequence[str]) -> str:
  """Words the error of a metric that does not judge what is given, and names those that do."""
  kind = kind_of(name)
  wrong = f"{name} judges {kind}, expected {KINDS[kind].EXPECTED}, not {given}"
  return "; ".join([wrong, *(f"metrics of {k}: {', '.join(of_kind(k))}" for k in kinds)])
