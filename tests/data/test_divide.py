"""Who belongs where: stable, together, and never in two places."""

from __future__ import annotations

import random

import pytest

from jaxtune.data import divide
from jaxtune.data.templates import Example
from jaxtune.errors import UserError


def examples(count=200, source="f"):
  return [
    Example(f"q{n}", [f"a{n}"], {"q": f"q{n}", "a": f"a{n}", "id": n}, f"{source}:{n + 1}")
    for n in range(count)
  ]


def names(part):
  return {one.row["q"] for one in part}


@pytest.mark.parametrize("size", [0.2, 40])
def test_membership_survives_shuffling(size):
  rows = examples()
  rest, drawn = divide.draw(rows, size, "validation", 0)
  shuffled = random.Random(1).sample(rows, len(rows))
  rest_again, drawn_again = divide.draw(shuffled, size, "validation", 0)
  assert names(drawn) == names(drawn_again) and names(rest) == names(rest_again)
  assert len(rest) + len(drawn) == 200 and not names(rest) & names(drawn)
  assert 25 < len(drawn) < 55 if size < 1 else len(drawn) == 40
  assert [one.row["id"] for one in rest] == sorted(one.row["id"] for one in rest)
  assert names(divide.draw(rows, size, "validation", 1)[1]) != names(drawn)


def test_a_fraction_is_stable_when_rows_are_added():
  _, few = divide.draw(examples(150), 0.2, "test", 0)
  _, many = divide.draw(examples(200), 0.2, "test", 0)
  assert names(few) == {name for name in names(many) if int(name[1:]) < 150}


def test_equal_rows_stay_together():
  rows = examples(60)
  copies = [
    one._replace(prompt="?", row={"null": None} | one.row | {"q": f"  {one.row['q'].upper()} "})
    for one in rows
  ]
  rest, drawn = divide.draw(rows + copies, 0.3, "validation", 0)
  assert not {n.strip().lower() for n in names(rest)} & {n.strip().lower() for n in names(drawn)}
  assert len(drawn) % 2 == 0


def test_the_row_as_it_was_read_decides():
  """Not what an objective adds to it, nor how a template reads it."""
  rows = examples(60)
  read = [
    one._replace(prompt=None, answers=[], row={"text": n}, source=one.row)
    for n, one in enumerate(rows)
  ]
  kept = lambda part, name: [getattr(one, name)["id"] for one in part]
  drawn = (divide.draw(some, 20, "test", 0) for some in (rows, read))
  for one, other in zip(*drawn, strict=True):
    assert kept(one, "row") == kept(other, "source")
  assert kept(divide.limited(rows, 9, 0), "row") == kept(divide.limited(read, 9, 0), "source")


def test_every_cell_decides_whatever_its_order():
  place = lambda row: divide._position(Example(None, [], row, "f:1"), "salt")
  row = {"a": [["x"], "y"], "b": {"c": 1, "d": 2}}
  assert place(row) == place({"b": {"d": 2, "c": 1}, "a": [["X "], "y"]})
  for change in ({"a": ["x", "y"]}, {"a": [["x", "y"]]}, {"b": {"c": 2, "d": 1}}, {"c": ""}):
    assert place(row) != place(row | change), change


@pytest.mark.parametrize("size", [200, 1000])
def test_refused_sizes(size):
  with pytest.raises(UserError, match="data.validation is "):
    divide.draw(examples(), size, "validation", 0)


def test_an_empty_split_is_refused():
  with pytest.raises(UserError, match="validation split is empty"):
    divide.draw(examples(5), 0.001, "validation", 0)
  with pytest.raises(UserError, match="train split is empty"):
    divide.draw(examples(5), 0.999, "validation", 0)


def test_limit_is_stable_under_shuffling():
  rows = examples()
  some = divide.limited(rows, 30, 0)
  assert len(some) == 30 and names(some) == names(divide.limited(rows[::-1], 30, 0))
  assert names(some) <= names(divide.limited(rows, 60, 0))


def test_overlap_is_refused_dropped_or_allowed():
  train, test = examples(6), examples(20, "t")[5:]
  test[3] = Example("Q2 ", ["other", " A2"], {}, "t:x")
  parts = {"train": train, "test": test}
  with pytest.raises(UserError, match="2 examples of train are in test too: f:3 = t:x; f:6 = t:6"):
    divide.separate(parts, "error")
  kept, report = divide.separate(parts, "drop")
  assert names(kept["train"]) == {"q0", "q1", "q3", "q4"} and kept["test"] == test
  assert report == {"train/test": {"shared": 2, "dropped": 2, "same_prompt": 0}}
  kept, report = divide.separate(parts, "allow")
  assert kept == parts and report["train/test"]["shared"] == 2


def test_prompts_without_an_answer_are_compared_too():
  train, test = ([one._replace(answers=[]) for one in examples(3, name)] for name in "ft")
  with pytest.raises(UserError, match="1 examples of train are in test too: f:2 = t:2"):
    divide.separate({"train": train, "test": test[1:2]}, "error")
  _, report = divide.separate({"train": examples(3), "test": test}, "error")
  assert report["train/test"]["same_prompt"] == 3


def test_all_wordings_of_a_row_are_dropped():
  train = [
    Example(wording + one.prompt, one.answers, one.row, one.where)
    for one in examples(4)
    for wording in ("", "Please: ")
  ]
  kept, report = divide.separate({"train": train, "test": examples(2, "t")}, "drop")
  assert names(kept["train"]) == {"q2", "q3"} and len(kept["train"]) == 4
  assert report["train/test"] == {"shared": 2, "dropped": 4, "same_prompt": 0}


def test_an_equal_prompt_with_another_answer_is_no_overlap():
  parts = {"train": examples(3), "validation": [Example("q1", ["z"], {}, "v:1")]}
  _, report = divide.separate(parts, "error")
  assert report == {"train/validation": {"shared": 0, "dropped": 0, "same_prompt": 1}}


def test_dropping_all_of_train_is_refused():
  with pytest.raises(UserError, match="train split is empty"):
    divide.separate({"train": examples(3), "test": examples(3)}, "drop")
