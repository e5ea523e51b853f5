from __future__ import annotations

import json
import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from jaxtune.errors import UserError
from jaxtune.sweeps import grid


def test_product_in_order_with_the_last_axis_fastest():
  trials = grid.expand({"method.rank": [1, 2], "seed": (0, 1)})
  assert trials == [{"method.rank": r, "seed": s} for r in (1, 2) for s in (0, 1)]


def test_union_drops_duplicates():
  trials = grid.expand(({"seed": [0, 1, 1]}, {"seed": [1, 2]}, {"method.rank": [1]}))
  assert trials == [{"seed": 0}, {"seed": 1}, {"seed": 2}, {"method.rank": 1}]
  assert len(grid.expand({"a": [1, 1.0, True]})) == 3


def test_sections_as_values():
  methods = [{"name": "lora", "rank": 4}, {"name": "prefix", "length": 10}]
  trials = grid.expand({"method": [ConfigDict(methods[0]), methods[1]], "seed": [0]})
  assert [trial["method"] for trial in trials] == methods
  assert [grid.name(trial) for trial in trials] == ["lora-rank=4,seed=0", "prefix-length=10,seed=0"]


@pytest.mark.parametrize(
  "sweep, message",
  [
    ({}, "no axis"),
    ((), "empty"),
    ({"seed": []}, "'seed' is empty"),
    ({"seed": 3}, r"\[3\]"),
    ({"seed": "012"}, "list"),
    ({"seed": {1, 2}}, "list"),
    (3, "dict"),
    ([3], "dict"),
    ({"seed": [object()]}, "finite numbers"),
    ({"seed": [{1, 2}]}, "finite numbers"),
    ({"optim.learning_rate": [float("nan")]}, "finite"),
    ({1: [2]}, "path"),
    ({"a..b": [1]}, "path"),
    ({"method": [{"name": "lora", "rank": len}]}, "method.rank"),
    ({"method.rank": [1], "method": [{"name": "full"}]}, "put 'method' first"),
  ],
)
def test_mistakes_are_named(sweep, message):
  with pytest.raises(UserError, match=message):
    grid.expand(sweep)


def test_name():
  settings = {"method.rank": 4, "optim.learning_rate": 0.001, "seed": 0}
  assert grid.name(settings) == "rank=4,learning_rate=0.001,seed=0"
  assert grid.name({"method.dropout": 0.1, "model.dropout": 0}) == (
    "method.dropout=0.1,model.dropout=0"
  )
  assert grid.name({"method.dropout": 0.1}, ["model.dropout"]) == "method.dropout=0.1"
  assert grid.name({"method.targets": ["q_proj", "v_proj"]}) == "targets=q_proj+v_proj"
  assert grid.name({"method": {"name": "stack", "lora": {"name": "lora", "rank": 4}}}) == (
    "stack-name=lora-rank=4"
  )


def test_no_two_trials_share_a_name():
  """Parts of stacks are told apart by their keys where that is needed; other names stay short."""
  stack = lambda part, length=10: {
    "method": {"name": "stack", "lora": {"rank": 8}, part: {"length": length}}
  }
  trials = [stack("prefix"), stack("prompt"), stack("prompt", 20), stack("prefix")]
  assert grid.names(trials, ["method"]) == [
    "stack-lora.rank=8-prefix.length=10",
    "stack-lora.rank=8-prompt.length=10",
    "stack-rank=8-length=20",
    "stack-lora.rank=8-prefix.length=10",
  ]
  with pytest.raises(UserError, match="two trials of the sweep have the name shares-a_b=1, .*a b"):
    grid.names([{"shares": {"a b": 1}}, {"shares": {"a_b": 1}}], ["shares"])


def test_names_are_safe_and_unique():
  values = [
    "a/b",
    "a_b",
    "a:b",
    "..",
    "",
    "a=1,b=2",
    "ü",
    "x" * 500,
    "x" * 501,
    None,
    "None",
    True,
    "True",
    1,
    "1",
    ["a"],
    "a",
    ["a", "b"],
    "a+b",
    [["a", "b"]],
    {"name": "a", "k": 1},
    {"name": "a-k=1"},
    {"k": 1},
    [{"k": 1}],
    [],
  ]
  names = [grid.name({"axis": value}) for value in values]
  assert len(set(names)) == len(values)
  for name in names:
    assert 0 < len(name.encode()) <= 180 and name not in (".", "..")
    assert not set(name) & set('/\\:*?"<>| \n')
  long = {f"section.key_number_{i}": i for i in range(40)}
  assert grid.name(long) != grid.name(long | {"section.key_number_39": 0})
  assert len(grid.name(long)) <= 180


def test_flatten_and_short_keys():
  assert grid.flatten({"method": {"name": "stack", "lora": {"rank": 4}}, "seed": 1}) == {
    "method.name": "stack",
    "method.lora.rank": 4,
    "seed": 1,
  }
  assert grid.short_keys(["a.x", "b.x", "b.y", "seed"]) == {
    "a.x": "a.x",
    "b.x": "b.x",
    "b.y": "y",
    "seed": "seed",
  }


PARTS = st.from_regex(r"[a-z_]{1,6}", fullmatch=True)
LEAVES = (
  st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
) | st.text(max_size=300)
VALUES = st.recursive(
  LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(PARTS, inner, max_size=3)
)
GRIDS = st.dictionaries(
  st.lists(PARTS, min_size=1, max_size=3).map(".".join),
  st.lists(VALUES, min_size=1, max_size=3), min_size=1, max_size=4,
)  # fmt: skip


@pytest.mark.full
@settings(max_examples=50, deadline=None, derandomize=True)
@given(GRIDS)
def test_any_grid_is_its_product_and_its_names_are_folders(axes):
  try:
    trials = grid.expand(axes)
  except UserError as error:
    assert "would replace" in str(error)
    return
  written = lambda value: json.dumps(value, sort_keys=True)
  counts = [len(set(map(written, values))) for values in axes.values()]
  assert len(trials) == math.prod(counts) == len(set(map(written, trials)))
  assert {tuple(trial) for trial in trials} == {tuple(axes)}
  assert grid.expand(json.loads(json.dumps([{k: [v] for k, v in t.items()} for t in trials]))) == (
    trials
  )
  names = grid.names(trials, axes)
  assert len({name.lower() for name in names}) == len(names)
  assert all(re.fullmatch(r"[\w.+=,~-]{1,180}", name, re.ASCII) for name in names), names
  assert not any(name.startswith(".") for name in names)
