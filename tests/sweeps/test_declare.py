"""What config files declare trials with, compared with plain loops."""

import math

import numpy as np
import pytest
from support import folders, made_trials

import jaxtune
from jaxtune.api import sweep as sweeps
from jaxtune.config import override
from jaxtune.errors import UserError
from jaxtune.sweeps import declare, grid, groups

RANKS = {"method.rank": [1, 4, 16], "seed": [0, 1]}
METHODS = {"method": [{"name": "lora", "rank": 2}, {"name": "prefix"}], "seed": [0]}

PARTS = (("train", slice(14)), ("test", slice(14, 20)))


def test_combinators_are_what_loops_would_make():
  trials = [{"method.rank": rank, "seed": seed} for rank in (1, 4, 16) for seed in (0, 1)]
  assert grid.expand(declare.grid(RANKS)) == trials
  pairs = declare.zip({"method.rank": [1, 4], "optim.learning_rate": (0.1, 0.2)})
  paired = [{"method.rank": r, "optim.learning_rate": x} for r, x in ((1, 0.1), (4, 0.2))]
  assert grid.expand(pairs) == paired
  assert grid.expand(declare.chain(RANKS, pairs, {"seed": [1, 1]})) == [
    *trials,
    *paired,
    {"seed": 1},
  ]
  crossed = declare.product(pairs, {"seed": [0, 1]}, {"train.steps": [3]})
  assert grid.expand(crossed) == [
    pair | {"seed": seed, "train.steps": 3} for pair in paired for seed in (0, 1)
  ]
  kept = declare.where(RANKS, lambda s: s["method.rank"] < 16 or s["seed"] == 0)
  assert grid.expand(kept) == trials[:5]
  left = declare.exclude(RANKS, {"method.rank": 1}, {"method.rank": 16, "seed": 1})
  assert grid.expand(left) == trials[2:5]


def test_a_section_that_is_an_axis_is_read_by_its_keys():
  low = declare.where(METHODS, lambda s: s["method.name"] == "prefix" or s["method.rank"] < 2)
  assert grid.expand(low) == [{"method": {"name": "prefix"}, "seed": 0}]
  assert declare.exclude(METHODS, {"method.name": "lora"}) == low


def test_a_random_sweep_is_the_same_each_time_and_grows():
  axes = {
    "optim.learning_rate": declare.log_uniform(1e-4, 1e-1),
    "method.dropout": declare.uniform(0, 0.5),
    "method.rank": declare.choice([1, 4, 16]),
    "train.steps": declare.integers(3, 5),
  }
  few, many = declare.random(axes, 5, seed=1), declare.random(axes, 400, seed=1)
  assert many[:5] == few != declare.random(axes, 5, seed=2)
  drawn = {axis: [trial[axis] for trial in grid.expand(many)] for axis in axes}
  logs = np.log10(drawn["optim.learning_rate"])
  # Uniform in [-4, -1]: mean -2.5, standard deviation 3 / sqrt(12); of 400, within 4 errors.
  assert (
    abs(logs.mean() + 2.5) < 4 * 3 / math.sqrt(12 * 400) and logs.min() >= -4 >= logs.min() - 0.1
  )
  assert abs(np.mean(drawn["method.dropout"]) - 0.25) < 4 * 0.5 / math.sqrt(12 * 400)
  assert np.bincount(drawn["train.steps"])[3:].min() > 400 / 3 - 4 * math.sqrt(400 * 2 / 9)
  assert set(drawn["method.rank"]) == {1, 4, 16}
  assert max(len(grid.name(trial)) for trial in grid.expand(many)) <= 60
  assert len(declare.random({"seed": declare.integers(0, 3)}, 4, seed=0)) == 4, "all that there are"


@pytest.mark.parametrize(
  ("make", "says"),
  [
    (lambda: declare.zip({"a": [1, 2], "b": [1]}), "as many values of every axis, but 'a' has 2"),
    (lambda: declare.product(RANKS, {"seed": [3]}), "two sweeps of a product have the axis 'seed'"),
    (lambda: declare.chain(), "the sweep is empty"),
    (lambda: declare.where(RANKS, lambda s: s["seed"] > 1), "true of none of its 6 trials"),
    (
      lambda: declare.where(RANKS, lambda s: s["rank"]),
      "reads 'rank', which the .* choices: method.rank",
    ),
    (
      lambda: declare.where(METHODS, lambda s: s["method.rank"] > 9),
      "trial prefix,seed=0 does",
    ),
    (lambda: declare.exclude(RANKS, {"method.rank": 2}), "hits none of the 6 trials"),
    (lambda: declare.exclude(RANKS, {"method.rnk": 1}), "'method.rnk'; did you mean 'method.rank'"),
    (lambda: declare.exclude(RANKS, {"seed": 0}, {"seed": 1}), "hit all 6 trials"),
    (lambda: declare.random({"seed": declare.integers(0, 9)}, 2), "has no seed"),
    (lambda: declare.random({"seed": declare.integers(0, 9)}, 0, seed=0), "count .* is 0"),
    (lambda: declare.random({"seed": declare.integers(0, 1)}, 3, seed=0), "found 2 different ones"),
    (lambda: declare.random({"seed": [0, 1]}, 2, seed=0), r"is \[0, 1\], expected log_uniform"),
    (lambda: declare.random({}, 2, seed=0), "has no axis"),
    (lambda: declare.log_uniform(0, 1), "range 0 to 1, expected positive numbers"),
    (lambda: declare.log_uniform(1, 0.1), "the lower first"),
    (lambda: declare.uniform(1, 1), "the lower first"),
    (lambda: declare.integers(0, 1.5), "whole numbers in order"),
    (lambda: declare.choice([]), "expected a list of values"),
  ],
)
def test_mistakes_are_named(make, says):
  with pytest.raises(UserError, match=says):
    make()


# Every kind of axis: its values, and in how many programs they are trained.
AXES = [
  ("method.rank", [1, 2], 1), ("method.alpha", [8.0, 16.0], 1), ("method.dropout", [0.0, 0.1], 1),
  ("method", [{"name": "prefix", "length": n} for n in (2, 3)], 1),
  ("method", [{"name": "adapter", "width": n} for n in (2, 3)], 1),
  ("optim.learning_rate", [1e-3, 1e-2], 1), ("seed", [0, 1], 1), ("data.limit", [10, 20], 1),
  ("data.template", ["{{ a }}\n", "{{ b }}: "], 1), ("regularize.dropout", [0.1, 0.2], 1),
  ("method.targets", [["q_proj"], ["q_proj", "v_proj"]], 2),
  ("method", [{"name": "lora"}, {"name": "prefix"}], 2), ("model.quantize", [None, "int8"], 2),
  ("model.path", ["a/b", "a/c"], 2), ("regularize.dropout", [0.0, 0.2], 2),
  ("train.parallel", ["jit", "pmap"], 2),
  ("method", [{"name": "stack", "lora": {}}, {"name": "stack", "prefix": {}}], 2),
]  # fmt: skip


@pytest.mark.parametrize(("axis", "values", "programs"), AXES)
def test_any_key_is_an_axis(axis, values, programs):
  config = made_trials.complete({"name": "lora"}) | {"sweep": declare.grid({axis: values})}
  names, _, completed = sweeps.expand(config)
  assert len(set(names)) == 2 and max(map(len, names)) < 60
  assert len(found := groups.groups(completed)) == programs
  differs = groups.differences([completed[group[0]] for group in found])
  assert all(differs) if programs > 1 else not any(differs)
  assert {key.partition(".")[0] for one in differs for key in one} <= {axis.partition(".")[0]}


def test_programs_differ_in_what_the_same_methods_have():
  sections = [{"name": "lora"}, {"name": "lora", "targets": ["q_proj"]}, {"name": "prefix"}]
  config = made_trials.complete({"name": "lora"}) | {"sweep": declare.grid({"method": sections})}
  differs = groups.differences(sweeps.expand(config)[2])
  assert differs == [
    {"method.name": "lora", "method.targets": ("q_proj", "v_proj")},
    {"method.name": "lora", "method.targets": ["q_proj"]},
    {"method.name": "prefix"},
  ]


def test_an_axis_that_does_not_exist_names_the_nearest():
  for axis, nearest in (("method.rnk", "rank"), ("optm.learning_rate", "optim")):
    with pytest.raises(UserError, match=f"did you mean '{nearest}'"):
      sweeps.expand(made_trials.complete({"name": "lora"}) | {"sweep": declare.grid({axis: [1]})})


@pytest.mark.full
def test_shares_of_the_data_bases_and_quantisation_are_compared(tmp_path):
  """Shares of the data in one program, the others in their own; each as it is alone."""
  rows = [{"prompt": f"a{i % 10} b{i // 10} :", "completion": f" b{i % 7}"} for i in range(20)]
  data = {name: folders.write(tmp_path, f"{name}.jsonl", rows[cut]) for name, cut in PARTS}
  other = folders.base(tmp_path, "gpt2")
  config = folders.config(folders.base(tmp_path, "llama"), data, method={"name": "prefix"})
  sweep = declare.chain(
    {"data.limit": [6, 12]}, {"model.quantize": ["int8"]}, {"model.path": [other]}
  )
  results = jaxtune.sweep(config | {"sweep": sweep}, tmp_path / "sweep")
  assert sorted(result["trials_in_program"] for result in results) == [1, 1, 2, 2]
  assert len({result["final"]["test_loss"] for result in results}) == 4
  for number, result in enumerate(results):
    alone = jaxtune.fit(override(config, result["settings"]), tmp_path / str(number))
    for name, value in alone["final"].items():
      assert result["final"][name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
