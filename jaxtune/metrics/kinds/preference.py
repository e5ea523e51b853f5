"""Rewards of two answers against which of them people preferred: calibration, ties and length.

The prediction of a pair is (reward of the chosen answer, reward of the rejected one), and its
reference is {"difference": of their ratings, 0 for a tie, "tokens": the length of both}. The
confidence of a reward model in the answer that it prefers is sigmoid(|difference of the rewards|),
from 0.5 to 1 (Bradley & Terry 1952).
"""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxtune.metrics.metric import Counts, Draws, Metric
from jaxtune.metrics.proportions import wilson

EXPECTED = "the rewards of two answers against the difference of their ratings"
BINS = 10  # of equal width, from 0.5 to 1


def fits(prediction: Any, reference: Any) -> bool:
  return (
    isinstance(reference, dict)
    and {"difference", "tokens"} <= reference.keys()
    and isinstance(prediction, list | tuple)
    and len(prediction) == 2
    and all(isinstance(reward, numbers.Real) for reward in prediction)
  )


def bins_XJ(predictions: Sequence, references: Sequence) -> Float[np.ndarray, "X J"]:
  """Returns of each pair that it is in a bin of confidence, is right there, and its confidence.

  Every part has one of `BINS` columns that is not 0; J = 3 BINS. Pairs of equal rewards are half
  right. Those that people call a tie are in no bin.
  """
  margins_X, differences_X = _margins(predictions), _differences(references)
  confidence_X = 1 / (1 + np.exp(-np.abs(margins_X)))
  right_X = (1 + np.sign(margins_X)) / 2
  place_X = 2 * BINS * (np.nan_to_num(confidence_X, nan=0.5) - 0.5)
  inside_XJ = np.eye(BINS)[np.minimum(place_X.astype(int), BINS - 1)]
  inside_XJ *= (differences_X > 0)[:, None]
  parts = (np.ones(len(margins_X)), right_X, confidence_X)
  return np.concatenate([inside_XJ * x_X[:, None] for x_X in parts], 1)


def _ece(counts_ZX: Counts, bins_XJ: np.ndarray) -> Draws:
  """Returns the mean distance of confidence and share that is right, in percent; 0 of no pair."""
  pairs_ZJ, right_ZJ, confidence_ZJ = np.split(counts_ZX @ bins_XJ, 3, axis=1)
  distances_Z = np.abs(right_ZJ - confidence_ZJ).sum(1)
  return 100 * distances_Z / np.maximum(pairs_ZJ.sum(1), 1)


def _score(predictions: Sequence, references: Sequence) -> float:
  statistics_XJ = bins_XJ(predictions, references)
  return float(_ece(np.ones((1, len(statistics_XJ))), statistics_XJ)[0])


def calibration(predictions: Sequence, references: Sequence) -> list[dict[str, float]]:
  """Returns the reliability curve, a row for each bin with pairs in it, in percent.

  Returns:
    [{"confidence": mean, "right": share, "low" and "high": its 95 % interval by Wilson, in which
    several pairs of one prompt count as independent, "pairs": how many}].
  """
  columns = np.split(bins_XJ(predictions, references).sum(0), 3)
  return [
    {"confidence": 100 * confidence / pairs, **_share(right, pairs)}
    for pairs, right, confidence in zip(*(column.tolist() for column in columns), strict=True)
    if pairs
  ]


def by_length(predictions: Sequence, references: Sequence) -> dict[str, dict[str, float]]:
  """Returns how many pairs are right of those whose chosen answer is longer, shorter, as long."""
  differences_X, tokens_X2 = _differences(references), _tokens(references)
  right_X = (1 + np.sign(_margins(predictions))) / 2
  longer_X = np.sign(tokens_X2[:, 0] - tokens_X2[:, 1])
  found = {}
  for name, sign in (("longer", 1), ("shorter", -1), ("as long", 0)):
    chosen_X = (longer_X == sign) & (differences_X > 0)
    if chosen_X.any():
      found[name] = _share(float(right_X[chosen_X].sum()), float(chosen_X.sum()))
  return found


def ties(predictions: Sequence, references: Sequence) -> dict[str, float]:
  """Returns how many pairs people call a tie, and the mean |margin| of "ties" and of "others".

  Returns {} where there are no ties, or no others.
  """
  margins_X, tied_X = np.abs(_margins(predictions)), _differences(references) == 0
  if tied_X.all() or not tied_X.any():
    return {}
  means = {"ties": margins_X[tied_X].mean(), "others": margins_X[~tied_X].mean()}
  return {"pairs": int(tied_X.sum())} | {name: float(mean) for name, mean in means.items()}


def _share(right: float, pairs: float) -> dict[str, float]:
  low, high = wilson(right, pairs)
  ends = {"low": 100 * low, "high": 100 * high}
  return {"right": 100 * right / pairs, **ends, "pairs": round(pairs)}


def _margins(predictions: Sequence) -> Float[np.ndarray, " X"]:
  rewards_X2 = np.asarray(predictions, np.float64)
  with np.errstate(invalid="ignore"):  # of two rewards that are infinite
    return rewards_X2[:, 0] - rewards_X2[:, 1]


def _differences(references: Sequence) -> Float[np.ndarray, " X"]:
  return np.array([reference["difference"] for reference in references], np.float64)


def _tokens(references: Sequence) -> Float[np.ndarray, "X 2"]:
  return np.array([reference["tokens"] for reference in references], np.float64)


METRICS = {
  # Naeini et al. 2015, with bins over the confidences that there can be.
  "ece": Metric("expected calibration error (%)", _score, bins_XJ, _ece, higher_is_better=False),
}
