"""Every metric by name: what it judges, how it is computed, its title and its direction.

Proportions, correlations and scores of text are in percent, as papers print them.
"""

from __future__ import annotations

import collections
import numbers
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from jaxtune.errors import UserError, nearest
from jaxtune.metrics import labels, regression, spans, text


class Metric(NamedTuple):
  """A metric of predictions against references, one of each an example.

  Attributes:
    kind: what it judges; a key of `KINDS`.
    title: to print, with its unit.
    score: (predictions, references) -> value, by the library.
    statistics: (predictions, references) -> what each example contributes, an array (N, ...).
    combine: (counts_RN, statistics) -> values_R: the metric where resample r has example n
      counts_RN[r, n] times. Where all counts are 1 it is the score.
  """

  kind: str
  title: str
  score: Callable[[Sequence, Sequence], float]
  statistics: Callable[[Sequence, Sequence], np.ndarray]
  combine: Callable[[np.ndarray, np.ndarray], np.ndarray]


KINDS = {
  "text": "a string against a list of accepted strings",
  "label": "a string or an integer against another",
  "number": "a number against another",
  "tags": "a list of IOB2 tags against another",
}


def _mean(kind: str, title: str, each: Callable[[Sequence, Sequence], np.ndarray]) -> Metric:
  score = lambda predictions, references: float(np.mean(each(predictions, references)))
  average = lambda counts_RN, values_N: counts_RN @ values_N / counts_RN.sum(1)
  return Metric(kind, title, score, each, average)


def _of_classes(title: str, score: Callable, pooled: Callable) -> Metric:
  return Metric("label", title, score, labels.counts_NK, partial(labels.pooled, pooled))


METRICS = {
  "exact_match": _mean("text", "exact match (%)", text.exact_N),
  "bleu": Metric("text", "BLEU", text.bleu, text.bleu_NK, text.pooled_bleu),
  "chrf": Metric("text", "chrF", text.chrf, text.chrf_NK, text.pooled_chrf),
  "rouge1": _mean("text", "ROUGE-1", partial(text.rouge_N, "rouge1")),
  "rouge2": _mean("text", "ROUGE-2", partial(text.rouge_N, "rouge2")),
  "rougeL": _mean("text", "ROUGE-L", partial(text.rouge_N, "rougeL")),
  "squad_exact_match": _mean("text", "SQuAD exact match (%)", text.squad_exact_N),
  "squad_f1": _mean("text", "SQuAD F1 (%)", text.squad_f1_N),
  "accuracy": _mean("label", "accuracy (%)", labels.hits_N)._replace(score=labels.accuracy),
  "balanced_accuracy": _of_classes(
    "balanced accuracy (%)", labels.balanced_accuracy, labels.recall_of
  ),
  "macro_f1": _of_classes("macro F1 (%)", labels.macro_f1, labels.f1_of),
  "micro_f1": _mean("label", "micro F1 (%)", labels.hits_N)._replace(score=labels.micro_f1),
  "matthews": _of_classes("Matthews correlation (%)", labels.matthews, labels.matthews_of),
  "pearson": Metric(
    "number",
    "Pearson correlation (%)",
    regression.pearson,
    regression.pairs_N2,
    regression.pooled_pearson,
  ),
  "spearman": Metric(
    "number",
    "Spearman correlation (%)",
    regression.spearman,
    regression.pairs_N2,
    regression.pooled_spearman,
  ),
  "mse": _mean("number", "mean squared error", regression.squares_N)._replace(score=regression.mse),
  "span_f1": Metric("tags", "span F1 (%)", spans.f1, spans.counts_NK, spans.pooled_f1),
  "span_precision": Metric(
    "tags", "span precision (%)", spans.precision, spans.counts_NK, spans.pooled_precision
  ),
  "span_recall": Metric(
    "tags", "span recall (%)", spans.recall, spans.counts_NK, spans.pooled_recall
  ),
}

# Measured with the loss, on every split.
_OF_LOSS = {"loss": "loss", "perplexity": "perplexity"}
_TITLES = _OF_LOSS | {name: metric.title for name, metric in METRICS.items()}
_LOWER = ("loss", "perplexity", "mse")


def of_kind(kind: str) -> list[str]:
  """Lists the metrics that judge `kind`."""
  return [name for name, metric in METRICS.items() if metric.kind == kind]


def check(metrics: Sequence[str], kind: str | None = None) -> None:
  """Raises UserError for a metric that is unknown or does not judge `kind` (default: any)."""
  for name in metrics:
    if name in _OF_LOSS:
      raise UserError(f"{name} is measured on every split: leave it out of evaluate.metrics")
    if name not in METRICS:
      raise UserError(f"unknown metric {name!r}. {nearest(name, of_kind(kind) or METRICS)}")
    if kind is not None and METRICS[name].kind != kind:
      raise UserError(_mismatch(name, f"{kind} ({KINDS[kind]})", [kind]))


def score(
  predictions: Sequence,
  references: Sequence,
  metrics: Sequence[str] = ("exact_match", "bleu", "rougeL"),
) -> dict[str, float]:
  """Computes each of `metrics` and returns them by name, in the order given.

  Args:
    predictions, references: one of each an example, as `KINDS` says.

  Raises:
    UserError: an unknown metric, one that judges something else, no predictions, or an example
      without a reference.
  """
  check(metrics)
  for kind in dict.fromkeys(METRICS[name].kind for name in metrics):
    check_examples(kind, predictions, references, metrics)
  return {name: METRICS[name].score(predictions, references) for name in metrics}


def baseline(
  references: Sequence, metrics: Sequence[str], seen: Sequence | None = None
) -> dict[str, float]:
  """Scores one answer given to every example: what a model has to beat.

  The answer is the most frequent label, the most frequent (first) accepted text, the mean of the
  numbers, or "O" for every word.

  Args:
    seen: the references of the training data, which decide the answer; default `references`.
  """
  check(metrics)
  found = {}
  for name in metrics:
    kind, known = METRICS[name].kind, references if seen is None else seen
    if kind == "tags":
      answers: list[Any] = [["O"] * len(tags) for tags in references]
    elif kind == "number":
      answers = [float(np.mean(known))] * len(references)
    else:
      firsts = (accepted[0] for accepted in known) if kind == "text" else known
      answers = [collections.Counter(firsts).most_common(1)[0][0]] * len(references)
    found |= score(answers, references, (name,))
  return found


def higher_is_better(metric: str) -> bool:
  """Says whether more of a metric such as `test_loss` is better."""
  return _bare(metric) not in _LOWER


def bounds(metric: str) -> tuple[float, float]:
  """Returns the least and the largest value that a metric can have."""
  bare = _bare(metric)
  if bare in ("matthews", "pearson", "spearman"):
    return -100.0, 100.0
  return (0.0, float("inf")) if bare in _LOWER else (0.0, 100.0)


def title(metric: str) -> str:
  """Returns the name to print for a metric such as `test_loss`, with its unit and its task."""
  metric, _, task = metric.partition("/")
  bare = _bare(metric)
  before = metric.removesuffix(bare).replace("_", " ")
  of_task = {"": "", "mean": ", mean of tasks"}.get(task, f", {task}")
  return before + _TITLES.get(bare, "") + of_task


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
  for i, (said, true) in enumerate(zip(predictions, references, strict=True)):
    if not _is(kind, said, true):
      name = next((name for name in metrics if METRICS[name].kind == kind), of_kind(kind)[0])
      found = [other for other in KINDS if _is(other, said, true)]
      raise UserError(_mismatch(name, f"example {i}, {_short(said)} against {_short(true)}", found))
    if kind == "text" and not true:
      raise UserError(
        f"example {i} has no reference to score against: leave out the metrics of text "
        "(evaluate.metrics=()) or use data with answers"
      )
    if kind == "tags":
      _check_tags(i, said, true)


def _check_tags(i: int, said: Sequence[str], true: Sequence[str]) -> None:
  if len(said) != len(true):
    raise UserError(f"example {i} has {len(said)} predicted tags for {len(true)} words")
  for tag in (*said, *true):
    if tag != "O" and (tag[:2] not in ("B-", "I-") or len(tag) < 3):
      raise UserError(f"example {i} has the tag {tag!r}; expected 'O', 'B-type' or 'I-type' (IOB2)")


def _is(kind: str, said: Any, true: Any) -> bool:
  both = lambda *types: isinstance(said, types) and isinstance(true, types)
  strings = lambda x: isinstance(x, (list, tuple)) and all(isinstance(one, str) for one in x)
  return {
    "text": isinstance(said, str) and strings(true),
    "label": both(str) or both(numbers.Integral, np.bool_),
    "number": both(numbers.Real),
    "tags": strings(said) and strings(true),
  }[kind]


def _mismatch(name: str, found: str, kinds: Sequence[str]) -> str:
  kind = METRICS[name].kind
  right = "; ".join(f"metrics of {k}: {', '.join(of_kind(k))}" for k in kinds)
  wrong = f"{name} judges {kind}, expected {KINDS[kind]}, not {found}"
  return f"{wrong}; {right}" if right else wrong


def _short(value: Any) -> str:
  shown = repr(value)
  return shown if len(shown) <= 40 else shown[:39] + "…"


def _bare(metric: str) -> str:
  """Returns the longest known metric that the name ends in, "bleu" for "test_bleu", or ""."""
  whole = metric.partition("/")[0]  # "test_bleu/TASK" in a mixture
  return max((name for name in _TITLES if f"_{whole}".endswith(f"_{name}")), key=len, default="")
