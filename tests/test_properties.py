"""What holds of any sweep, config and adapter: expanded, named, completed, written and read."""

import json
import math
from pathlib import Path

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict
from support import tiny

from jaxtune import config, formats, peft, tree
from jaxtune.api.export import export
from jaxtune.errors import UserError
from jaxtune.sweeps import grid
from jaxtune.training import checkpoint

words = st.text(st.sampled_from("ab_=,.-/~+ é'\"0"), max_size=6)
plain = st.none() | st.booleans() | st.integers() | st.floats(-1e9, 1e9) | words
values = plain | st.lists(plain, max_size=3) | st.dictionaries(words, plain, max_size=2)
paths = st.sampled_from(["seed", "a.b", "a.c", "d.b", "method", "x.y.z"])
grids = st.dictionaries(paths, st.lists(values, min_size=1, max_size=3), min_size=1, max_size=3)


def expanded(sweep):
  try:
    return grid.expand(sweep)
  except UserError:
    assume(False)


@given(st.lists(grids, min_size=1, max_size=2))
def test_a_sweep_is_every_combination_once_each_under_a_name_of_its_own(sweep):
  found = expanded(sweep)
  whole = [json.dumps(setting, sort_keys=True) for setting in found]
  assert len(set(whole)) == len(whole) <= grid.count(sweep)
  for one in sweep:
    made = [s for s in found if s.keys() == one.keys()]
    distinct = [{json.dumps(v, sort_keys=True) for v in axis} for axis in one.values()]
    assert len(made) >= math.prod(map(len, distinct))
    for axis, choices in one.items():
      seen = {json.dumps(s[axis], sort_keys=True) for s in made}
      assert {json.dumps(v, sort_keys=True) for v in choices} <= seen
  axes = [axis for one in sweep for axis in one]
  names = [grid.name(setting, axes) for setting in found]
  assert len({*names}) == len(names)
  assert all(Path(name).name == name and len(name.encode()) <= 180 for name in names)


finite = st.floats(allow_nan=False, allow_infinity=False)  # the others are no literals
literals = st.none() | st.booleans() | st.integers() | finite | words
literals = st.recursive(
  literals,
  lambda x: st.lists(x, max_size=3) | st.dictionaries(words, x, max_size=3),
  max_leaves=6,
)


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map(".".join), literals)
def test_an_override_is_what_python_would_write(key, value):
  """`repr` of a value behind --config.key= is that value, and lands at its key alone."""
  assume(not isinstance(value, str))  # text needs no quotes
  parsed = config.parse_overrides([f"--config.{key}={value!r}"])
  assert parsed == {key: value}
  before = {"z": {"y": 1}}
  after = config.override(ConfigDict(before), parsed).to_dict()
  place = after
  for name in key.split("."):
    place = place[name]
  assert place == value and after["z"] == before["z"] and set(after) == {"z", key[0]}


options = st.fixed_dictionaries(
  {"data": st.just({"train": "train.jsonl"})},
  optional={
    "seed": st.integers(0, 2**31 - 1),
    "optim": st.fixed_dictionaries(
      {},
      optional={
        "learning_rate": st.floats(1e-9, 10),
        "name": st.sampled_from(["adamw", "sgd", "lion"]),
        "clip": st.none() | st.floats(0.1, 5),
      },
    ),
    "method": st.fixed_dictionaries(
      {"name": st.sampled_from(["lora", "loha"])}, optional={"rank": st.integers(1, 64)}
    ),
    "train": st.fixed_dictionaries({}, optional={"steps": st.integers(1, 10**6)}),
  },
)


@given(options)
def test_a_completed_config_keeps_what_was_given_and_is_complete(given_):
  full = config.complete(given_)
  assert config.complete(full) == full
  assert config.complete(json.loads(config.to_json(full))) == json.loads(config.to_json(full))
  for section, inner in given_.items():
    if isinstance(inner, dict):
      assert inner.items() <= full[section].items()
    else:
      assert full[section] == inner


@given(literals, literals)
def test_differences_are_none_of_equals_alone(old, new):
  """An entry that is None, and one that is not there, are the same."""
  assert checkpoint.differences(old, old) == ""
  if checkpoint.differences(old, new) == "":
    assert old == new or "None" in repr((old, new))
  else:
    assert old != new


@settings(max_examples=8)
@given(
  rank=st.integers(1, 5),
  alpha=st.integers(1, 32),
  targets=st.sets(st.sampled_from(["q_proj", "o_proj", "down_proj"]), min_size=1),
  form=st.sampled_from(["lora", "loha", "ia3"]),
  seed=st.integers(0, 99),
)
def test_an_adapter_that_is_written_is_read_bit_by_bit(tmp_path_factory, llama, **drawn):
  section = {"name": drawn["form"]}
  if drawn["form"] != "ia3":
    section |= {"rank": drawn["rank"], "alpha": drawn["alpha"], "targets": sorted(drawn["targets"])}
  methods, tuned, hyper, base = tiny.lay(llama, section, seed=drawn["seed"], noise=0.1)
  folder = tmp_path_factory.mktemp("written")
  export(llama, peft.Adapted(methods, tuned, hyper, base), folder / "adapter")
  _, back, _, _ = formats.adapt(formats.read(folder / "adapter", llama), llama)
  theirs, ours = tree.flatten(back["peft"]), tree.flatten(tuned["peft"])
  assert theirs.keys() == ours.keys()
  for path, x in ours.items():
    np.testing.assert_array_equal(np.asarray(theirs[path]), np.asarray(x), err_msg=path)
