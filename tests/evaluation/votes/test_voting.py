"""Votes on disk: who sees what, what is kept, and what is refused."""

import sqlite3
import threading

import pytest

from jaxtune.errors import UserError
from jaxtune.evaluation.votes import order, store, voting


def test_sides_are_a_function_of_seed_rater_and_pair_and_balanced():
  sides = [order.left(0, "x", pair) for pair in range(400)]
  assert sides == [order.left(0, "x", pair) for pair in range(400)]
  assert 160 < sides.count("a") < 240  # 4 standard deviations
  for other in [(1, "x"), (0, "y")]:
    same = sum(side == order.left(*other, pair) for pair, side in enumerate(sides))
    assert 160 < same < 240
  assert order.pairs(0, 400) != order.pairs(1, 400) != list(range(1, 401))
  assert sorted(order.pairs(0, 400)) == list(range(1, 401))


def test_a_choice_of_a_side_is_kept_as_the_source_that_stood_there(opened):
  for rater in ("x", "y", "z"):
    voting.join(opened, rater)
    for choice in ("left", "right"):
      pair = voting.state(opened, rater)["pair"]
      voting.vote(opened, rater, pair["number"], choice, "because")
      vote = voting.votes(opened)[-1]
      assert pair[choice].startswith(f"{vote.choice} says") or not pair[choice]
      assert pair["left"].startswith(f"{vote.left} ") or not pair["left"]


def test_a_pair_shows_nothing_of_its_sources(opened):
  voting.join(opened, "x")
  state = voting.state(opened, "x")
  assert state.keys() == {"done", "total", "skipped", "latest", "pair"}
  assert state["pair"].keys() == {"number", "prompt", "left", "right"}
  assert "runs/" not in str(state)


def test_all_pairs_are_judged_once_and_undone_from_the_latest(opened):
  voting.join(opened, "x")
  voting.join(opened, "y")
  seen = []
  while pair := voting.state(opened, "x")["pair"]:
    seen.append(pair["number"])
    voting.vote(opened, "x", pair["number"], "skip" if len(seen) == 2 else "tie")
  assert seen == opened.order
  assert voting.state(opened, "x") == {
    "done": 9, "total": 9, "skipped": 1, "latest": seen[-1], "pair": None,
  }  # fmt: skip
  voting.vote(opened, "y", seen[-1], "left")
  with pytest.raises(voting.Refused, match="not your latest"):
    voting.undo(opened, "x", seen[0])
  for _ in range(2):  # the same request again
    voting.undo(opened, "x", seen[-1])
    assert voting.state(opened, "x")["pair"]["number"] == seen[-1]
    assert voting.state(opened, "x")["latest"] == seen[-2]
  assert [vote.rater for vote in voting.votes(opened)].count("y") == 1


def test_the_same_vote_again_changes_nothing_and_another_is_refused(opened):
  voting.join(opened, "x")
  for _ in range(2):
    voting.vote(opened, "x", 3, "tie")
  assert len(voting.votes(opened)) == 1
  with pytest.raises(voting.Refused, match="judged this pair already") as refused:
    voting.vote(opened, "x", 3, "left")
  assert refused.value.status == 409 and len(voting.votes(opened)) == 1


@pytest.mark.parametrize("rater, pair", [("nobody", 1), ("x", 0), ("x", 10)])
def test_unknown_raters_and_pairs_are_refused(opened, rater, pair):
  voting.join(opened, "x")
  for call in (voting.undo, lambda *known: voting.vote(*known, "tie")):
    with pytest.raises(voting.Refused, match="there is no") as refused:
      call(opened, rater, pair)
    assert refused.value.status == 404
  assert voting.votes(opened) == []


def test_threads_that_vote_at_once_lose_nothing(opened):
  def judge(rater):
    voting.join(opened, rater)
    while pair := voting.state(opened, rater)["pair"]:
      voting.vote(opened, rater, pair["number"], "left")

  threads = [threading.Thread(target=judge, args=(name,)) for name in "xyz"]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert len(voting.votes(opened)) == 27


def test_every_commit_waits_for_the_disk(opened):
  pragma = lambda name: opened.connection.execute(f"PRAGMA {name}").fetchone()[0]
  assert (pragma("journal_mode"), pragma("synchronous")) == ("wal", 2)  # 2 is FULL


def test_a_database_comes_back_as_it_was(tmp_path, project):
  path = tmp_path / "new" / store.NAME
  assert not store.exists(path)
  store.create(path, project)
  assert path.stat().st_mode & 0o077 == 0, "only its owner reads it"
  with store.opened(path) as first, store.opened(path) as second:
    assert second.project == project and first.token == second.token
    voting.join(first, "x")
    voting.vote(first, "x", 1, "tie", "why")
    assert [vote.reason for vote in voting.votes(second)] == ["why"]


def test_databases_of_others_are_refused(tmp_path, project):
  path = tmp_path / store.NAME
  with pytest.raises(UserError, match="no votes in"), store.opened(path):
    pass
  path.write_bytes(b"these are no votes" * 100)
  with pytest.raises(UserError, match="cannot be used as a database"):
    store.exists(path)
  path.unlink()
  with sqlite3.connect(path) as foreign:
    foreign.execute("CREATE TABLE mine (x)")
  before = path.read_bytes()
  with pytest.raises(UserError, match="another program"), store.opened(path):
    pass
  assert path.read_bytes() == before
  path.unlink()
  store.create(path, project)
  with store.opened(path) as opened:
    store.check_same(opened, project.identity, path)
    with pytest.raises(UserError, match="its prompts file is '1', here '2'"):
      store.check_same(opened, project.identity | {"prompts file": "2"}, path)
    opened.connection.execute("PRAGMA user_version = 2")
  with pytest.raises(UserError, match="version 2 of the votes, expected 1"):
    store.exists(path)


def test_a_database_whose_making_was_killed_is_made_anew(tmp_path, project):
  path = tmp_path / store.NAME
  path.touch()
  assert not store.exists(path)
  store.create(path, project)
  assert store.exists(path)
