"""What votes say: win rate with its interval, bias to a side, agreement between raters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from jaxtune.evaluation.votes.voting import Vote
from jaxtune.metrics.proportions import wilson

CHOICES = ("a", "tie", "b")


def cohen(first: Sequence[str], second: Sequence[str]) -> float | None:
  """Returns Cohen's kappa (1960) of two raters' choices on the same pairs.

  It is None where it is not defined: without a pair, or where both always make one same choice.
  """
  count = len(first)
  if not count:
    return None
  agreed = sum(map(str.__eq__, first, second)) / count
  one, two = Counter(first), Counter(second)
  by_chance = sum(one[choice] * two[choice] for choice in one) / count**2
  return None if by_chance == 1 else (agreed - by_chance) / (1 - by_chance)


def fleiss(counts_XC: Int[np.ndarray, "X C"]) -> float | None:
  """Returns Fleiss' kappa (1971) of X pairs, for each of which C choices were counted.

  Pairs may have different numbers of votes; those with fewer than two are left out. It is None
  where it is not defined: without a pair, or where all votes are one same choice.
  """
  counts_XC = counts_XC[counts_XC.sum(1) > 1]
  if not len(counts_XC):
    return None
  votes_X = counts_XC.sum(1)
  agreed_X = (counts_XC * (counts_XC - 1)).sum(1) / (votes_X * (votes_X - 1))
  by_chance = float(((counts_XC.sum(0) / votes_X.sum()) ** 2).sum())
  return None if by_chance == 1 else float((agreed_X.mean() - by_chance) / (1 - by_chance))


def summarise(votes: Sequence[Vote], names: tuple[str, str], pairs: int) -> dict[str, Any]:
  """Returns what all votes say, as plain data.

  Args:
    names: of the sources a and b.
    pairs: how many there are to judge.

  Returns:
    The entries of `tally` for all votes; "names", "pairs", "judged" (pairs with a vote that is no
    skip), "raters": [{"name", "votes", entries of `tally`}], "agreement": see `agree`.
  """
  raters = list(dict.fromkeys(vote.rater for vote in votes))
  of = {name: [vote for vote in votes if vote.rater == name] for name in raters}
  return tally(votes) | {
    "names": list(names),
    "pairs": pairs,
    "judged": len({vote.pair for vote in _decided(votes)}),
    "raters": [{"name": name, "votes": len(of[name])} | tally(of[name]) for name in raters],
    "agreement": agree(votes),
  }


def tally(votes: Sequence[Vote]) -> dict[str, Any]:
  """Counts votes from the side of source a.

  Returns:
    {"wins", "ties", "losses", "skips"}: counts; "win_rate": (wins + ties / 2) / (wins + ties +
    losses), with its "interval" by Wilson; "left": the share of the left side among the choices of
    a side, with its "left_interval". The interval of the win rate counts pairs and not votes, as
    several votes on one pair are not independent.
  """
  counts = Counter(vote.choice for vote in votes)
  decided = _decided(votes)
  sided = [vote for vote in decided if vote.choice != "tie"]
  lefts = sum(vote.choice == vote.left for vote in sided)
  rate = (counts["a"] + counts["tie"] / 2) / len(decided) if decided else None
  pairs = len({vote.pair for vote in decided})
  return {
    "wins": counts["a"],
    "ties": counts["tie"],
    "losses": counts["b"],
    "skips": counts["skip"],
    "win_rate": rate,
    "interval": None if rate is None else wilson(rate * pairs, pairs),
    "left": lefts / len(sided) if sided else None,
    "left_interval": wilson(lefts, len(sided)) if sided else None,
  }


def agree(votes: Sequence[Vote]) -> dict[str, Any] | None:
  """Measures the agreement of raters on the pairs that several of them judged, without skips.

  Returns:
    {"kind": "Cohen's kappa" for two raters, "Fleiss' kappa" for more; "kappa": a number, or None
    where it is not defined; "pairs": how many count; "agreed": the share of two votes on one pair
    that are equal}; None for fewer than two raters.
  """
  decided = _decided(votes)
  raters = list(dict.fromkeys(vote.rater for vote in decided))
  if len(raters) < 2:
    return None
  of_pair: dict[int, dict[str, str]] = {}
  for vote in decided:
    of_pair.setdefault(vote.pair, {})[vote.rater] = vote.choice
  shared = [choices for choices in of_pair.values() if len(choices) > 1]
  counted = [[list(one.values()).count(choice) for choice in CHOICES] for one in shared]
  counts_XC = np.array(counted, np.int64).reshape(-1, len(CHOICES))
  if len(raters) == 2:
    first, second = ([choices[rater] for choices in shared] for rater in raters)
    kind, kappa = "Cohen's kappa", cohen(first, second)
  else:
    kind, kappa = "Fleiss' kappa", fleiss(counts_XC)
  votes_X = counts_XC.sum(1)
  agreed_X = (counts_XC * (counts_XC - 1)).sum(1) / (votes_X * (votes_X - 1))
  agreed = float(agreed_X.mean()) if len(shared) else None
  return {"kind": kind, "kappa": kappa, "pairs": len(shared), "agreed": agreed}


def _decided(votes: Iterable[Vote]) -> list[Vote]:
  return [vote for vote in votes if vote.choice != "skip"]
