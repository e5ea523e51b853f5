"""Metrics of generated text by the libraries that papers cite, with several references each.

Predictions are X texts, references X lists of accepted texts, of any lengths. Metrics are in
percent.
"""

from __future__ import annotations

import collections
import itertools
import re
import string
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import sacrebleu
from jaxtyping import Float

from jaxtune import libraries
from jaxtune.errors import UserError
from jaxtune.metrics.metric import Counts, Draws, Metric, mean

rouge_scorer = libraries.Lazy("rouge_score.rouge_scorer")
EXPECTED = "a string against a list of accepted strings"
References = Sequence[Sequence[str]]


def fits(prediction: Any, reference: Any) -> bool:
  accepted = isinstance(reference, (list, tuple)) and all(isinstance(x, str) for x in reference)
  return isinstance(prediction, str) and accepted


def check(prediction: str, reference: Sequence[str]) -> None:
  """Raises UserError where no text is accepted."""
  if not reference:
    raise UserError(
      "has no reference to score against: leave out the metrics of text "
      "(evaluate.metrics=()) or use data with answers"
    )


def baseline(references: References, seen: References) -> list[str]:
  """Returns the most frequent first reference for every example."""
  firsts = collections.Counter(accepted[0] for accepted in seen)
  return [firsts.most_common(1)[0][0]] * len(references)


def exact_match(said: str, accepted: str) -> bool:
  """Compares texts by all but white space: ends are stripped, any run of it counts as one space."""
  return _squeeze(said) == _squeeze(accepted)


def squad_exact_match(said: str, accepted: str) -> bool:
  """Compares texts as SQuAD does: without case, punctuation, English articles and white space.

  It is computed here as the libraries that have it need a download or PyTorch (Rajpurkar et al.
  2016).
  """
  return _normal(said) == _normal(accepted)


def squad_f1(said: str, accepted: str) -> float:
  """Returns the F1 of the words that two texts share, from 0 to 1, normalised as in SQuAD.

  An empty answer (SQuAD 2.0's unanswerable question) is right against an empty one alone.
  """
  ours, theirs = _normal(said).split(), _normal(accepted).split()
  if not ours or not theirs:
    return float(ours == theirs)
  shared = sum((collections.Counter(ours) & collections.Counter(theirs)).values())
  return 2 * shared / (len(ours) + len(theirs))


def _squeeze(text: str) -> str:
  return " ".join(text.split())


def _normal(text: str) -> str:
  bare = "".join(c for c in text.lower() if c not in string.punctuation)
  return _squeeze(re.sub(r"\b(a|an|the)\b", " ", bare))


def _best_X(
  score: Callable[[str, str], float], predictions: Sequence[str], references: References
) -> Float[np.ndarray, " X"]:
  """Returns each prediction's best score over its references, in percent."""
  pairs = zip(predictions, references, strict=True)
  return 100 * np.array(
    [max(float(score(said, text)) for text in accepted) for said, accepted in pairs]
  )


def rouge_X(
  kind: str, predictions: Sequence[str], references: References
) -> Float[np.ndarray, " X"]:
  """Returns ROUGE's F-measure (Lin 2004) in percent, best over references, without stemming.

  rouge-score keeps a-z and 0-9 only: text in other scripts scores 0.

  Args:
    kind: "rouge1", "rouge2" or "rougeL".
  """
  scorer = rouge_scorer.RougeScorer([kind], use_stemmer=False)
  pairs = zip(predictions, references, strict=True)
  return 100 * np.array(
    [scorer.score_multi(accepted, said)[kind].fmeasure for said, accepted in pairs]
  )


def _of_corpus(title: str, metric: Any) -> Metric:
  """Makes a metric of a whole corpus of one of sacrebleu's, with its counts as the statistics.

  sacrebleu's own significance tests use the same two methods, which have no public names.
  """

  def score(predictions: Sequence[str], references: References) -> float:
    return metric.corpus_score(list(predictions), _streams(references)).score

  def statistics(predictions: Sequence[str], references: References) -> Float[np.ndarray, "X J"]:
    counts = metric._extract_corpus_statistics(list(predictions), _streams(references))
    return np.array(counts, np.float64)

  def combine(counts_ZX: Counts, statistics_XJ: np.ndarray) -> Draws:
    sums_ZJ = np.rint(counts_ZX @ statistics_XJ).astype(int).tolist()
    return np.array([metric._compute_score_from_stats(sums).score for sums in sums_ZJ])

  return Metric(title, score, statistics, combine)


def of_one(name: str, said: str, accepted: Sequence[str]) -> float:
  """Returns a metric of one text alone, from 0 to 1.

  BLEU leaves out n-grams longer than the text, which a corpus has and "yes" does not: with them a
  text of less than four words would score 0, even a perfect one.
  """
  if name == "bleu":
    return sacrebleu.BLEU(effective_order=True).sentence_score(said, accepted).score / 100
  return METRICS[name].score([said], [accepted]) / METRICS[name].high


def _streams(references: References) -> list[tuple[str | None, ...]]:
  """Returns the first reference of every example, then the second ...; None where there is none."""
  return list(itertools.zip_longest(*references))


METRICS = {
  "exact_match": mean("exact match (%)", partial(_best_X, exact_match)),
  # As sacrebleu's defaults give them. BLEU (Papineni et al. 2002): cased, 13a tokenization,
  # exponential smoothing (Post 2018). chrF2 (Popović 2015).
  "bleu": _of_corpus("BLEU", sacrebleu.BLEU(force=True)),
  "chrf": _of_corpus("chrF", sacrebleu.CHRF()),
  "rouge1": mean("ROUGE-1", partial(rouge_X, "rouge1")),
  "rouge2": mean("ROUGE-2", partial(rouge_X, "rouge2")),
  "rougeL": mean("ROUGE-L", partial(rouge_X, "rougeL")),
  "squad_exact_match": mean("SQuAD exact match (%)", partial(_best_X, squad_exact_match)),
  "squad_f1": mean("SQuAD F1 (%)", partial(_best_X, squad_f1)),
}
