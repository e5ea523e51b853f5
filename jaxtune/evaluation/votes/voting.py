"""Votes on pairs: who joins, what is shown next, what is kept.

A vote is on disk when `vote` returns; see `store`.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from jaxtune import schema
from jaxtune.errors import UserError
from jaxtune.evaluation.votes import order
from jaxtune.evaluation.votes.store import Store

Choice = Literal["left", "right", "tie", "skip"]


class Refused(UserError):
  """A request that cannot be met; its HTTP status is 404 for the unknown, 409 for a conflict."""

  def __init__(self, message: str, status: int):
    super().__init__(message)
    self.status = status


class Vote(NamedTuple):
  """A rater's choice: the source "a" or "b", "tie" or "skip"; `left` is the source on the left."""

  rater: str
  pair: int
  choice: str
  left: str
  reason: str
  at: float


def join(store: Store, rater: str) -> None:
  """Adds a rater, if there is none of the name."""
  with _writing(store) as connection:
    connection.execute("INSERT OR IGNORE INTO raters VALUES (?, ?)", (rater, time.time()))


def vote(store: Store, rater: str, pair: int, choice: Choice, reason: str = "") -> None:
  """Keeps a rater's vote; the same vote again changes nothing.

  Raises:
    Refused: for an unknown rater or pair, and a pair on which the rater has voted otherwise.
  """
  with _writing(store) as connection:
    _check_known(store, rater, pair)
    left = order.left(store.project.seed, rater, pair)
    sides = {"left": left, "right": "b" if left == "a" else "a"}
    said = sides.get(choice, choice)
    connection.execute(
      'INSERT OR IGNORE INTO votes (rater, pair, choice, "left", reason, at) '
      "VALUES (?, ?, ?, ?, ?, ?)",
      (rater, pair, said, left, reason, time.time()),
    )
    found = connection.execute(
      "SELECT choice FROM votes WHERE rater = ? AND pair = ?", (rater, pair)
    )
    if found.fetchone()[0] != said:
      raise Refused("you have judged this pair already, and otherwise: undo that vote first", 409)


def undo(store: Store, rater: str, pair: int) -> None:
  """Deletes the vote on a pair, if it is the rater's latest one; the same again changes nothing.

  Raises:
    Refused: for an unknown rater or pair, and a vote that is not the latest.
  """
  with _writing(store) as connection:
    _check_known(store, rater, pair)
    query = "SELECT pair FROM votes WHERE rater = ? ORDER BY id DESC"
    given = [number for (number,) in connection.execute(query, (rater,))]
    if pair in given[1:]:
      raise Refused("this is not your latest vote: only that one can be undone", 409)
    connection.execute("DELETE FROM votes WHERE rater = ? AND pair = ?", (rater, pair))


def state(store: Store, rater: str) -> dict[str, Any]:
  """Returns what a rater's page shows next, without a word of where an answer is from.

  Returns:
    {"done", "total": counts of pairs, "skipped": how many of the done ones were skipped, "latest":
    the pair that `undo` takes, "pair": {"number", "prompt", "left", "right"}, None at the end}.
  """
  with store.lock:
    _check_known(store, rater)
    found = store.connection.execute(
      "SELECT pair, choice FROM votes WHERE rater = ? ORDER BY id", (rater,)
    )
    given = dict(found.fetchall())
  shown = next((number for number in store.order if number not in given), None)
  return {
    "done": len(given),
    "total": len(store.order),
    "skipped": sum(choice == "skip" for choice in given.values()),
    "latest": next(reversed(given), None),
    "pair": None if shown is None else _shown(store, rater, shown),
  }


def votes(store: Store) -> list[Vote]:
  """Returns all votes, in the order in which they were given."""
  query = 'SELECT rater, pair, choice, "left", reason, at FROM votes ORDER BY id'
  with store.lock:
    return [Vote(*row) for row in store.connection.execute(query)]


def _shown(store: Store, rater: str, number: int) -> dict[str, Any]:
  pair = store.project.pairs[number - 1]
  a, b = (_trimmed(answer) for answer in pair.answers)
  first, second = (a, b) if order.left(store.project.seed, rater, number) == "a" else (b, a)
  return {"number": number, "prompt": _trimmed(pair.prompt), "left": first, "right": second}


def _trimmed(text: str) -> str:
  """Takes empty lines off, and keeps the first line's indentation, as code needs it."""
  return text.strip("\r\n").rstrip()


def _check_known(store: Store, rater: str, pair: int | None = None) -> None:
  if not store.connection.execute("SELECT 1 FROM raters WHERE name = ?", (rater,)).fetchone():
    raise Refused(f"there is no rater {schema.shown(rater)}: give your name first", 404)
  if pair is not None and not 1 <= pair <= len(store.order):
    raise Refused(f"there is no pair {pair}: expected 1 to {len(store.order)}", 404)


@contextlib.contextmanager
def _writing(store: Store) -> Iterator[sqlite3.Connection]:
  """Makes one transaction of a block, which is on disk at its end, or leaves no trace."""
  with store.lock:
    store.connection.execute("BEGIN IMMEDIATE")
    try:
      yield store.connection
      store.connection.execute("COMMIT")
    except BaseException:
      if store.connection.in_transaction:
        store.connection.execute("ROLLBACK")
      raise
