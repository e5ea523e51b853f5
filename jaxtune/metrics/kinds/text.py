"""Metrics of generated text by the libraries that papers cite, with several references each.

Predictions are X texts, references X lists of accepted texts, of any lengths. Metrics are in
percent.
"""

from __future__ import annotations

import collections
import re
import string
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import sacrebleu

from jaxtune import libraries
from jaxtune.errors import UserError
from jaxtune.metrics.metric import Metric, mean

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


def exact_X(predictions: Sequence[str], references: References) -> np.ndarray:
  """Returns 100 where a prediction equals one of its references, else 0.

  White space is stripped at the ends and any run of it counts as one space; case and punctuation
  matter.
  """
  return _best(lambda said, accepted: _squeeze(said) == _squeeze(accepted), predictions, references)


def squad_exact_X(predictions: Sequence[str], references: References) -> np.ndarray:
  """Returns 100 where a prediction is a reference once both are normalised as in SQuAD, else 0.

  Case, punctuation, English articles and white space do not matter (Rajpurkar et al. 2016). It is
  computed here as the libraries that have it need a download or PyTorch.
  """
  return _best(lambda said, accepted: _normal(said) == _normal(accepted), predictions, references)


def squad_f1_X(predictions: Sequence[str], references: References) -> np.ndarray:
  """Returns the F1 of the words shared with the best reference, normalised as in SQuAD.

  An empty answer (SQuAD 2.0's unanswerable question) is right against an empty one alone.
  """
  return _best(_overlap, predictions, references)


def rouge_X(kind: str, predictions: Sequence[str], references: References) -> np.ndarray:
  """Returns ROUGE's F-measure (Lin 2004), best over references, without stemming.

  rouge-score keeps a-z and 0-9 only: text in other scripts scores 0.

  Args:
    kind: "rouge1", "rouge2" or "rougeL".
  """
  scorer = rouge_scorer.RougeScorer([kind], use_stemmer=False)
  pairs = zip(predictions, references, strict=True)
  return 100 * np.array(
    [scorer.score_multi(accepted, said)[kind].fmeasure for said, accepted in pairs]
  )


def bleu(predictions: Sequence[str], references: References) -> float:
  """Returns corpus BLEU (Papineni et al. 2002) as sacrebleu's defaults give it.

  Cased, 13a tokenization, exponential smoothing (Post 2018).
  """
  return sacrebleu.BLEU(force=True).corpus_score(list(predictions), _streams(references)).score


def chrf(predictions: Sequence[str], references: References) -> float:
  """Returns corpus chrF2 (Popović 2015) as sacrebleu's defaults give it."""
  return sacrebleu.CHRF().corpus_score(list(predictions), _streams(references)).score


def bleu_XJ(predictions: Sequence[str], references: References) -> np.ndarray:
  """Returns sacrebleu's counts: lengths, and n-grams that match and that are predicted."""
  return _corpus_statistics(sacrebleu.BLEU(force=True), predictions, references)


def chrf_XJ(predictions: Sequence[str], references: References) -> np.ndarray:
  """Returns sacrebleu's counts, of each order: character n-grams predicted, accepted, matching."""
  return _corpus_statistics(sacrebleu.CHRF(), predictions, references)


# sacrebleu's own significance tests use these two methods, which have no public names.
def _corpus_statistics(
  metric: Any, predictions: Sequence[str], references: References
) -> np.ndarray:
  return np.array(
    metric._extract_corpus_statistics(list(predictions), _streams(references)), np.float64
  )


def _resampled(metric: Any, counts_ZX: np.ndarray, statistics_XJ: np.ndarray) -> np.ndarray:
  sums_ZJ = np.rint(counts_ZX @ statistics_XJ).astype(int).tolist()
  return np.array([metric._compute_score_from_stats(sums).score for sums in sums_ZJ])


def _streams(references: References) -> list[list[str | None]]:
  """Returns the first reference of every example, then the second ...; None where there is none."""
  most = max(map(len, references))
  return [
    [accepted[i] if i < len(accepted) else None for accepted in references] for i in range(most)
  ]


def _best(
  score: Callable[[str, str], float], predictions: Sequence[str], references: References
) -> np.ndarray:
  """Returns each prediction's best score over its references, in percent."""
  pairs = zip(predictions, references, strict=True)
  return 100 * np.array(
    [max(float(score(said, text)) for text in accepted) for said, accepted in pairs]
  )


def _squeeze(text: str) -> str:
  return " ".join(text.split())


def _normal(text: str) -> str:
  bare = "".join(c for c in text.lower() if c not in string.punctuation)
  return _squeeze(re.sub(r"\b(a|an|the)\b", " ", bare))


def _overlap(said: str, accepted: str) -> float:
  ours, theirs = _normal(said).split(), _normal(accepted).split()
  if not ours or not theirs:
    return float(ours == theirs)
  shared = sum((collections.Counter(ours) & collections.Counter(theirs)).values())
  return 2 * shared / (len(ours) + len(theirs))


METRICS = {
  "exact_match": mean("exact match (%)", exact_X),
  "bleu": Metric("BLEU", bleu, bleu_XJ, partial(_resampled, sacrebleu.BLEU(force=True))),
  "chrf": Metric("chrF", chrf, chrf_XJ, partial(_resampled, sacrebleu.CHRF())),
  "rouge1": mean("ROUGE-1", partial(rouge_X, "rouge1")),
  "rouge2": mean("ROUGE-2", partial(rouge_X, "rouge2")),
  "rougeL": mean("ROUGE-L", partial(rouge_X, "rougeL")),
  "squad_exact_match": mean("SQuAD exact match (%)", squad_exact_X),
  "squad_f1": mean("SQuAD F1 (%)", squad_f1_X),
}
