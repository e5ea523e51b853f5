"""The SQLite database of pairs of answers and of the votes on them: makes it and opens it.

It has a write-ahead log, and every commit waits for the disk. All the answers are written in one
transaction, so that a database holds all or none.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxtune import schema
from jaxtune.errors import UserError
from jaxtune.evaluation.votes import order

NAME = "votes.sqlite"
VERSION = 1
_APPLICATION = 0x6A784662  # "jxFb": marks the file as ours
_TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE pairs (number INTEGER PRIMARY KEY, prompt TEXT NOT NULL, turns TEXT,
  a TEXT NOT NULL, b TEXT NOT NULL, place TEXT NOT NULL);
CREATE TABLE raters (name TEXT PRIMARY KEY, joined REAL NOT NULL);
CREATE TABLE votes (id INTEGER PRIMARY KEY AUTOINCREMENT,
  rater TEXT NOT NULL REFERENCES raters (name), pair INTEGER NOT NULL REFERENCES pairs (number),
  choice TEXT NOT NULL CHECK (choice IN ('a', 'b', 'tie', 'skip')),
  "left" TEXT NOT NULL CHECK ("left" IN ('a', 'b')),
  reason TEXT NOT NULL, at REAL NOT NULL, UNIQUE (rater, pair));
"""


class Pair(NamedTuple):
  """Two answers to one prompt.

  Attributes:
    answers: of the sources a and b.
    place: file and line of the prompt.
    row: the conversation that the prompt is, if it is one: its messages, and tools if it has any.
  """

  prompt: str
  answers: tuple[str, str]
  place: str
  row: dict[str, Any] | None = None


class Project(NamedTuple):
  """What is judged.

  Attributes:
    names: of the sources a and b, as results show them.
    identity: what the answers depend on, as plain data: a database with another one is refused.
    seed: of the order of pairs and of the sides.
    skipped: how many prompts are not judged, by reason.
  """

  names: tuple[str, str]
  identity: dict[str, Any]
  seed: int
  skipped: dict[str, int]
  pairs: Sequence[Pair]


class Store(NamedTuple):
  """An open database.

  Attributes:
    lock: held while the connection is used, which threads share.
    project: what is judged.
    token: the secret of the page's address, which stays the same when the server is started again.
    order: the numbers of the pairs, from 1, in the order in which they are judged.
  """

  connection: sqlite3.Connection
  lock: threading.Lock
  project: Project
  token: str
  order: list[int]


def exists(path: Path) -> bool:
  """Says whether there is a database; one whose making was interrupted is none.

  Raises:
    UserError: where there is a file of something else, or of another version.
  """
  if not path.exists():
    return False
  unchanged = f"{path.resolve().as_uri()}?mode=ro"  # it may be another program's
  with _named(path), contextlib.closing(sqlite3.connect(unchanged, uri=True)) as connection:
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
  if not tables and not application:
    return False
  if application != _APPLICATION:
    raise UserError(f"{path} is a database of another program; give another folder by --out")
  if version != VERSION:
    raise UserError(
      f"{path} has version {version} of the votes, expected {VERSION}: it was written by another "
      "version of jaxtune; export its votes with that one, or give another folder by --out"
    )
  return True


def create(path: Path, project: Project) -> None:
  """Writes a database of a project without votes, which only its owner can read."""
  path.parent.mkdir(parents=True, exist_ok=True)
  os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
  meta = {name: getattr(project, name) for name in ("names", "identity", "seed", "skipped")}
  meta["token"] = secrets.token_urlsafe(24)
  with contextlib.closing(_connect(path)) as connection, _named(path):
    connection.execute("BEGIN IMMEDIATE")
    for statement in _TABLES.split(";\n")[:-1]:
      connection.execute(statement)
    for key, value in meta.items():
      connection.execute("INSERT INTO meta VALUES (?, ?)", (key, json.dumps(value)))
    for number, pair in enumerate(project.pairs, 1):
      spoken = None if pair.row is None else json.dumps(pair.row, ensure_ascii=False)
      values = (number, pair.prompt, spoken, *pair.answers, pair.place)
      connection.execute("INSERT INTO pairs VALUES (?, ?, ?, ?, ?, ?)", values)
    connection.execute(f"PRAGMA application_id = {_APPLICATION}")
    connection.execute(f"PRAGMA user_version = {VERSION}")
    connection.execute("COMMIT")


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Store]:
  """Opens a database, for one process that writes or several that read.

  Raises:
    UserError: where there is none, or one of something else; see `exists`.
  """
  if not exists(path):
    raise UserError(
      f"no votes in {path.parent}: expected the folder that `jaxtune feedback --out` named"
    )
  with contextlib.closing(_connect(path)) as connection, _named(path):
    meta = {key: json.loads(text) for key, text in connection.execute("SELECT * FROM meta")}
    rows = connection.execute("SELECT prompt, a, b, place, turns FROM pairs ORDER BY number")
    pairs = [Pair(p, (a, b), place, spoken and _row(spoken)) for p, a, b, place, spoken in rows]
    token = meta.pop("token")
    project = Project(pairs=pairs, **meta | {"names": tuple(meta["names"])})
    turns = order.pairs(project.seed, len(pairs))
    yield Store(connection, threading.Lock(), project, token, turns)


def _row(spoken: str) -> dict[str, Any]:
  """Reads a conversation; older versions wrote its turns alone."""
  found = json.loads(spoken)
  return {"messages": found} if isinstance(found, list) else found


def check_same(store: Store, identity: dict[str, Any], path: Path) -> None:
  """Raises UserError unless the database was made of the same answers."""
  kept, given = store.project.identity, json.loads(json.dumps(identity))
  for key in dict.fromkeys([*given, *kept]):
    if kept.get(key) != given.get(key):
      raise UserError(
        f"{path} holds votes on other answers: its {key} is {schema.shown(kept.get(key))}, here "
        f"{schema.shown(given.get(key))}; give another folder by --out"
      )


def _connect(path: Path) -> sqlite3.Connection:
  with _named(path):
    connection = sqlite3.connect(path, timeout=10, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    return connection


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
  try:
    yield
  except sqlite3.Error as error:
    raise UserError(f"{path} cannot be used as a database of votes: {error}") from error
