"""Metrics of generated text by the libraries that papers cite; several references each.

Every metric takes predictions (N texts) and references (N lists of accepted texts, of any lengths)
and is in percent. What ends in `_N` or `_NK` is what each example contributes, for resampling.
"""

from __future__ import annotations

import collections
import re
import string
from collections.abc import Callable, Sequence

import numpy as np
import sacrebleu

from jaxtune import lazy

rouge_scorer = lazy.Module("rouge_score.rouge_scorer")
References = Sequence[Sequence[str]]


def exact_N(predictions: Sequence[str], references: References) -> np.ndarray:
  """Returns 100 where a prediction equals one of its references, else 0.

  White space is stripped at the ends and any run of it counts as one space; case and
  punctuation count.
  """
  return _best(lambda said, accepted: _squeeze(said) == _squeeze(accepted), predictions, references)


def squad_exact_N(predictions: Sequence[str], references: References) -> np.ndarray:
  """Returns 100 where a prediction is a reference once both are normalised as in SQuAD, else 0.

  Case, punctuation, English articles and white space do not count (Rajpurkar et al. 2016). No
  library at hand computes this without a download or PyTorch, hence ours.
  """
  return _best(lambda said, accepted: _normal(said) == _normal(accepted), predictions, references)


def squad_f1_N(predictions: Sequence[str], references: References) -> np.ndarray:
  """Returns the F1 of the words shared with the best reference, normalised as in SQuAD.

  An empty answer (SQuAD 2.0's unanswerable question) is right against an empty one alone.
  """
  return _best(_overlap, predictions, references)


def rouge_N(kind: str, predictions: Sequence[str], references: References) -> np.ndarray:
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


def bleu_NK(predictions: Sequence[str], references: References) -> np.ndarray:
  """Returns sacrebleu's counts: lengths, and n-grams matched and said."""
  return _corpus_statistics(sacrebleu.BLEU(force=True), predictions, references)


def chrf_NK(predictions: Sequence[str], references: References) -> np.ndarray:
  """Returns sacrebleu's counts: character n-grams said, accepted and matched, of each order."""
  return _corpus_statistics(sacrebleu.CHRF(), predictions, references)


def pooled_bleu(counts_RN: np.ndarray, statistics_NK: np.ndarray) -> np.ndarray:
  """Returns the BLEU of each resample."""
  return _pooled(sacrebleu.BLEU(force=True), counts_RN, statistics_NK)


def pooled_chrf(counts_RN: np.ndarray, statistics_NK: np.ndarray) -> np.ndarray:
  """Returns the chrF of each resample."""
  return _pooled(sacrebleu.CHRF(), counts_RN, statistics_NK)


# sacrebleu's own significance tests stand on these two methods, which have no public name.
def _corpus_statistics(metric, predictions: Sequence[str], references: References) -> np.ndarray:
  return np.array(
    metric._extract_corpus_statistics(list(predictions), _streams(references)), np.float64
  )


def _pooled(metric, counts_RN: np.ndarray, statistics_NK: np.ndarray) -> np.ndarray:
  sums_RK = np.rint(counts_RN @ statistics_NK).astype(int).tolist()
  return np.array([metric._compute_score_from_stats(sums).score for sums in sums_RK])


def _streams(references: References) -> list[list[str | None]]:
  """Transposes references to sacrebleu's streams; None where an example has fewer."""
  most = max(map(len, references))
  return [
    [accepted[i] if i < len(accepted) else None for accepted in references] for i in range(most)
  ]


def _best(
  score: Callable[[str, str], float], predictions: Sequence[str], references: References
) -> np.ndarray:
  pairs = zip(predictions, references, strict=True)
  return 100 * np.array(
    [max(float(score(said, one)) for one in accepted) for said, accepted in pairs]
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
