"""Metrics of generated text, by the libraries that papers cite, and every metric's direction.

All are in percent, 0 to 100, as papers print them.
"""

from __future__ import annotations

from collections.abc import Sequence

import sacrebleu
from rouge_score import rouge_scorer

from jaxtune.errors import UserError, nearest

_TITLES = {
  "loss": "loss (nats/token)",
  "accuracy": "token accuracy",
  "bleu": "BLEU",
  "exact_match": "exact match (%)",
  "rouge1": "ROUGE-1",
  "rouge2": "ROUGE-2",
  "rougeL": "ROUGE-L",
}
_LOWER = ("loss", "perplexity")
_SPLITS = ("train", "validation", "test")


def exact_match(predictions: list[str], references: list[list[str]]) -> float:
  """Returns the percentage of predictions that equal one of their references.

  White space is stripped at the ends and any run of it counts as one space; case and
  punctuation count.
  """
  _check(predictions, references)
  hits = sum(
    _squeeze(prediction) in map(_squeeze, accepted)
    for prediction, accepted in zip(predictions, references, strict=True)
  )
  return 100 * hits / len(predictions)


def bleu(predictions: list[str], references: list[list[str]]) -> float:
  """Returns corpus BLEU (Papineni et al. 2002) as sacrebleu's defaults give it, 0 to 100.

  Cased, 13a tokenization, exponential smoothing (Post 2018). The number of references may
  differ from example to example.
  """
  _check(predictions, references)
  most = max(map(len, references))
  streams = [
    [accepted[i] if i < len(accepted) else None for accepted in references] for i in range(most)
  ]
  return float(sacrebleu.corpus_bleu(predictions, streams, force=True).score)


def rouge1(predictions: list[str], references: list[list[str]]) -> float:
  """Returns the mean ROUGE-1 F-measure (Lin 2004), best over references, 0 to 100."""
  return _rouge("rouge1", predictions, references)


def rouge2(predictions: list[str], references: list[list[str]]) -> float:
  """Returns the mean ROUGE-2 F-measure (Lin 2004), best over references, 0 to 100."""
  return _rouge("rouge2", predictions, references)


def rougeL(predictions: list[str], references: list[list[str]]) -> float:
  """Returns the mean ROUGE-L F-measure (Lin 2004), best over references, 0 to 100."""
  return _rouge("rougeL", predictions, references)


_METRICS = {
  "exact_match": exact_match,
  "bleu": bleu,
  "rouge1": rouge1,
  "rouge2": rouge2,
  "rougeL": rougeL,
}


def score(
  predictions: list[str],
  references: list[list[str]],
  metrics: Sequence[str] = ("exact_match", "bleu", "rougeL"),
) -> dict[str, float]:
  """Computes each of `metrics` and returns them by name, in the order given.

  Raises:
    UserError: an unknown metric, no predictions, or an example without a reference.
  """
  for metric in metrics:
    if metric not in _METRICS:
      raise UserError(f"unknown text metric {metric!r}. {nearest(metric, _METRICS)}")
  return {metric: _METRICS[metric](predictions, references) for metric in metrics}


def higher_is_better(metric: str) -> bool:
  """Says whether more of `metric` is better: not for loss and perplexity, of any split."""
  return _unsplit(metric)[1] not in _LOWER


def title(metric: str) -> str:
  """Returns the name to print for a metric such as `test_loss`, with its unit."""
  split, bare = _unsplit(metric)
  return " ".join(filter(None, (split, _TITLES.get(bare, bare.replace("_", " ")))))


def _unsplit(metric: str) -> tuple[str, str]:
  split, _, bare = metric.partition("_")
  return (split, bare) if split in _SPLITS and bare else ("", metric)


def _squeeze(text: str) -> str:
  return " ".join(text.split())


def _rouge(kind: str, predictions: list[str], references: list[list[str]]) -> float:
  # rouge-score keeps a-z and 0-9 only: text in other scripts scores 0.
  _check(predictions, references)
  scorer = rouge_scorer.RougeScorer([kind], use_stemmer=False)
  total = sum(
    scorer.score_multi(accepted, prediction)[kind].fmeasure
    for prediction, accepted in zip(predictions, references, strict=True)
  )
  return 100 * total / len(predictions)


def _check(predictions: list[str], references: list[list[str]]) -> None:
  if len(predictions) != len(references):
    raise UserError(
      f"{len(predictions)} predictions for {len(references)} lists of references: "
      "give one list for each prediction"
    )
  if not predictions:
    raise UserError("no predictions to score: the split is empty")
  for i, accepted in enumerate(references):
    if isinstance(accepted, str):
      raise UserError(f"the references of example {i} are one string; expected a list of strings")
    if not accepted:
      raise UserError(
        f"example {i} has no reference to score against: leave out the text metrics "
        "(evaluate.metrics=()) or use data with answers"
      )
