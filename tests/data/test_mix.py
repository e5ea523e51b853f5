"""Mixtures keep their proportions at any time, and every example of a task comes in turn."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from jaxtune.data import mix
from jaxtune.data.batches import arrange, batch, join
from jaxtune.data.split import Split
from jaxtune.errors import UserError

SIZES = {"big": 90, "middle": 30, "small": 5}


def make_split(sizes=SIZES, width=4):
  """Each example's tokens are its own number, counted within its task from 1."""
  splits = {}
  for task, size in sizes.items():
    tokens = np.arange(1, size + 1, dtype=np.int32)[:, None] * np.ones(width, np.int32)
    ones = np.ones(tokens.shape)
    arrays = {"tokens": tokens, "mask": ones.astype(bool), "weights": ones.astype(np.float32)}
    names = [f"{task}:{n}" for n in range(1, size + 1)]
    splits[task] = Split(arrays, [[1]] * size, [["a"]] * size, [{}] * size, names)
  return join(splits)


def drawn(split, seed, steps, size):
  """Names the example of every draw, (steps, size)."""
  rows = [mix.draw(split.order, seed, step, size)[1] for step in range(steps)]
  return np.array(split.where)[np.array(rows)]


WRONG = [
  ({"mixture": {"bgi": 1}}, "names the task 'bgi'.*did you mean 'big'"),
  ({"mixture": {"big": 1, "small": 1}}, "no weight for middle: 0 leaves"),
  ({"mixture": {"big": 0, "small": 0, "middle": 0}}, "expected a weight above 0"),
  ({"cap": 10}, "data.cap is 10 with .*, expected"),
  ({"mixture": "capped"}, "data.cap is None with data.mixture='capped', expected"),
]


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_wrong_options(options, message):
  with pytest.raises(UserError, match=message) as error:
    arrange(make_split(), **options)
  assert "\n" not in str(error.value)


def test_turns_keep_to_the_shares_at_every_moment():
  rng = np.random.default_rng(0)
  for _ in range(20):
    shares = rng.dirichlet(np.full(rng.integers(2, 16), 0.5))
    whose, before = mix.assign_turns(tuple(shares), 0, 5000)
    had = np.cumsum(whose[:, None] == np.arange(len(shares)), axis=0)
    wanted = np.arange(1, 5001)[:, None] * shares
    assert np.abs(had - wanted).max() < 4
    np.testing.assert_array_equal(before, had[np.arange(5000), whose] - 1)


def test_turns_far_on_are_those_one_would_have_come_to():
  shares = (0.3, 0.0, 0.05, 0.65, 0.0)
  whole = np.array(mix.assign_turns(shares, 0, 3000))
  for start in (0, 1, 17, 2990):
    np.testing.assert_array_equal(mix.assign_turns(shares, start, 10), whole[:, start : start + 10])
  assert set(whole[0]) == {0, 2, 3}
  far = 10**12
  whose, before = mix.assign_turns(shares, far, 1000)
  for k in (0, 2, 3):
    assert abs(before[whose == k][0] - far * shares[k]) < 20


@pytest.mark.parametrize("batches", ["mixed", "task"])
@pytest.mark.parametrize("mixture", ["proportional", "equal"])
def test_each_task_comes_in_permutations_of_its_own(mixture, batches):
  split = arrange(make_split(), mixture=mixture, mixture_batches=batches)
  names = drawn(split, 3, 200, 4)
  if batches == "task":
    assert all(len({name.split(":")[0] for name in row}) == 1 for row in names)
  shares = mix.shares(SIZES, mixture)
  report = mix.counts(split.order, 200, 4)
  for task, size in SIZES.items():
    own = [name for name in names.ravel() if name.startswith(task)]
    for start in range(0, len(own) - size + 1, size):
      assert len(set(own[start : start + size])) == size
    times = Counter(own)
    assert report[task] == {
      "share": pytest.approx(shares[task]), "examples": size, "drawn": len(own),
      "epochs": len(own) / size, "fewest": min(times.values()), "most": max(times.values()),
    }  # fmt: skip
    assert abs(len(own) - 800 * shares[task]) < (4 if batches == "mixed" else 16)


EQUAL = arrange(make_split(), mixture="equal", buckets=2)


@pytest.mark.parametrize("split", [make_split(), EQUAL], ids=["plain", "equal"])
def test_a_batch_depends_on_its_arguments_alone(split):
  first = [batch(split, 5, step, 6)["tokens"] for step in range(12)]
  mix.permutation.cache_clear()
  mix.assign_turns.cache_clear()
  again = [batch(split, 5, step, 6)["tokens"] for step in reversed(range(12))][::-1]
  np.testing.assert_array_equal(first, again)
  other = [batch(split, 6, step, 6)["tokens"] for step in range(12)]
  assert not np.array_equal(first, other)


def test_a_task_s_turn_does_not_depend_on_the_seed():
  tasks = lambda seed: [[name.split(":")[0] for name in row] for row in drawn(EQUAL, seed, 12, 6)]
  assert tasks(5) == tasks(6)


def test_one_task_alone_is_drawn_as_if_it_were_not_arranged():
  split = make_split({"only": 23})
  plain = [batch(split, 4, step, 5)["tokens"] for step in range(12)]
  np.testing.assert_array_equal(
    plain, [batch(arrange(split), 4, step, 5)["tokens"] for step in range(12)]
  )


def test_starved_tasks_are_refused_and_left_out_ones_are_not():
  split = arrange(make_split(), mixture={"big": 1000, "middle": 1, "small": 0})
  assert mix.counts(split.order, 400, 8)["small"]["drawn"] == 0
  mix.check(split.order, 400, 8)
  with pytest.raises(UserError, match=r"1 of 3 tasks .* 80 examples .* drawn: middle \(0.0999%"):
    mix.check(split.order, 10, 8)


@pytest.mark.parametrize("batches", ["mixed", "task"])
def test_a_bucket_of_tasks_that_are_left_out_is_never_drawn(batches):
  parts = {task: make_split({task: size}, 4 + 16 * (task != "big")) for task, size in SIZES.items()}
  weights = {"big": 1, "middle": 0, "small": 0}
  split = arrange(join(parts), mixture=weights, buckets=2, mixture_batches=batches)
  assert len(split.order) == (2 if batches == "mixed" else 3)
  found = mix.counts(split.order, 10, 8)
  assert {task: (one["share"], one["drawn"]) for task, one in found.items()} == {
    "big": (1.0, 80), "middle": (0.0, 0), "small": (0.0, 0)
  }  # fmt: skip
  mix.check(split.order, 10, 8)
  assert {name.split(":")[0] for name in drawn(split, 0, 10, 8).ravel()} == {"big"}


def test_a_temperature_near_0_draws_the_largest_task_and_leaves_none_out():
  for mixture, cap in (("proportional", None), ("capped", 10**5)):
    shares = mix.shares({"big": 10**5, "small": 10}, mixture, 0.001, cap)
    assert shares["big"] == 1.0 and 0 < shares["small"] < 1e-200


def test_variants_alternate_over_the_epochs():
  """Of 3 variants of 7 examples, each is seen once in any three epochs of its example."""
  split = make_split({"a": 21})
  variants = np.arange(21).reshape(7, 3)
  split = arrange(split, variants=variants)
  rows = np.concatenate([mix.draw(split.order, 1, step, 7)[1] for step in range(6)])
  epochs = rows.reshape(6, 7)
  assert all(sorted(epoch // 3) == list(range(7)) for epoch in epochs)
  assert sorted(epochs[:3].ravel()) == list(range(21)) == sorted(epochs[3:].ravel())
  assert len(set(epochs[0] % 3)) > 1  # not the same variant of all
  assert mix.counts(split.order, 6, 7)["a"]["examples"] == 7


def test_join_pads_to_the_widest_and_refuses_other_objectives():
  one, two = make_split({"x": 2}, width=3), make_split({"y": 3}, width=5)
  both = join({"x": one, "y": two})
  assert both.arrays["tokens"].shape == (5, 5)
  assert both.arrays["tokens"].dtype == np.int32 and both.arrays["mask"].dtype == bool
  assert not both.arrays["mask"][:2, 3:].any() and not both.arrays["weights"][:2, 3:].any()
  assert both.tasks == ["x"] * 2 + ["y"] * 3 and both.where[2] == "y:1"
  other = two._replace(arrays=two.arrays | {"labels": np.zeros(3, np.int32)})
  with pytest.raises(UserError, match="'x' and 'y' cannot be mixed"):
    join({"x": one, "y": other})


def test_a_run_draws_tomorrow_what_it_draws_today():
  """A checkpoint holds the step's number alone: a newer version must go on with the same rows."""
  variants = np.arange(24).reshape(8, 3)
  share = {"a": 0.7, "b": 0.3}
  order = mix.order(variants, ["a"] * 5 + ["b"] * 3, share, np.zeros(8, int), [{}])
  found = [mix.draw(order, -7, step, 6)[1].tolist() for step in (0, 1, 10**6)]
  assert found == [[0, 6, 14, 20, 9, 4], [15, 7, 21, 1, 12, 18], [23, 9, 14, 21, 0, 4]]
  assert [x.tolist() for x in mix.permuted(6, 5, np.arange(8, 14))] == [
    [1, 1, 1, 1, 2, 2], [0, 3, 2, 5, 3, 0],
  ]  # fmt: skip
