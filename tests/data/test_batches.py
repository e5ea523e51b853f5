"""Batches are functions of (seed, step), and epochs cover everything once."""

from __future__ import annotations

import numpy as np
import pytest

from jaxtune.data import batch, batches, mix
from jaxtune.data.batches import arrange
from jaxtune.data.split import Split
from jaxtune.errors import UserError


def make_split(count, width=4):
  tokens_NT = np.arange(1, count + 1, dtype=np.int32)[:, None] * np.ones(width, np.int32)
  ones = np.ones((count, width))
  arrays = {"tokens": tokens_NT, "mask": ones.astype(bool), "weights": ones.astype(np.float32)}
  return Split(arrays, [], [], [], [])


@pytest.mark.parametrize(("count", "size"), [(10, 3), (7, 7), (5, 12), (1, 4), (64, 8), (13, 1)])
@pytest.mark.parametrize("seed", [0, 3])
def test_no_example_comes_twice_before_all_have_come(count, size, seed):
  steps, split = 3 * count // size + 3, make_split(count)
  taken = [batch(split, seed, step, size)["tokens"][:, 0] for step in range(steps)]
  order = np.concatenate(taken) - 1
  for start in range(0, len(order) - count + 1, count):
    assert sorted(order[start : start + count]) == list(range(count))


def test_a_batch_is_a_copy():
  split = make_split(20)
  taken = batch(split, 5, 0, 6)
  taken["tokens"][:] = -1
  assert (split.arrays["tokens"] > 0).all()
  assert {k: (v.shape, v.dtype.name) for k, v in taken.items()} == {
    "tokens": ((6, 4), "int32"), "mask": ((6, 4), "bool"), "weights": ((6, 4), "float32"),
  }  # fmt: skip


def test_epochs_differ():
  first, second = (batch(make_split(50), 0, step, 50)["tokens"] for step in (0, 1))
  assert not np.array_equal(first, second)


@pytest.mark.parametrize(("count", "size"), [(10, 4), (8, 4), (3, 8)])
def test_evaluation_sees_every_example_once_in_one_shape(count, size):
  taken = list(batches(make_split(count), size))
  assert {b["tokens"].shape for b in taken} == {(size, 4)}
  assert {b["weights"].dtype.name for b in taken} == {"float32"}
  tokens = np.concatenate([b["tokens"][:, 0] for b in taken])
  weights = np.concatenate([b["weights"][:, 0] for b in taken])
  assert tokens[weights > 0].tolist() == list(range(1, count + 1))
  assert all(b["mask"].any(axis=1).all() for b in taken)
  for one, even in zip(taken, batches(make_split(count), size, 3), strict=True):
    assert len(even["tokens"]) % 3 == 0 and not even["weights"][size:].any()
    np.testing.assert_array_equal(even["tokens"][:size], one["tokens"])


def test_nothing_to_draw_from():
  with pytest.raises(UserError, match="from 0 examples"):
    batch(make_split(0), 0, 0, 4)


def make_ragged(count=150, width=64, seed=0, **more):
  """Each example's first token is its own number, and its length is random."""
  lengths = np.minimum(np.random.default_rng(seed).geometric(0.08, count), width)
  mask = np.arange(width) < lengths[:, None]
  tokens = np.where(mask, np.arange(1, count + 1, dtype=np.int32)[:, None], 0)
  arrays = {"tokens": tokens, "mask": mask, "weights": mask.astype(np.float32)}
  return Split(arrays | more, [], [], [], [])


def test_buckets_crop_to_few_widths_that_no_seed_changes():
  labels = np.arange(150, dtype=np.int32)
  split = arrange(make_ragged(labels=labels, types=np.zeros((150, 64), np.int32)), buckets=4)
  steps = {seed: [batch(split, seed, step, 8) for step in range(60)] for seed in (0, 7)}
  widths = [taken["tokens"].shape[1] for taken in steps[0]]
  assert widths == [taken["tokens"].shape[1] for taken in steps[7]]
  assert 2 < len(set(widths)) <= 4 and all(w % 8 == 0 for w in widths)
  assert widths[0] == max(widths)  # what could be too large for the device comes first
  for taken in steps[0]:
    rows = taken["labels"]
    assert {taken[n].shape for n in ("tokens", "mask", "weights", "types")} == {taken["mask"].shape}
    np.testing.assert_array_equal(taken["mask"].sum(1), split.arrays["mask"].sum(1)[rows])
    np.testing.assert_array_equal(taken["tokens"][:, 0], rows + 1)
  assert sum(len(pool.rows) for kind in split.order for pool in kind.pools) == 150
  assert sum(kind.share for kind in split.order) == pytest.approx(1)
  assert {kind.widths["tokens"] for kind in split.order} == set(widths)


def test_in_buckets_every_example_comes_equally_often():
  split = arrange(make_ragged(), buckets=4)
  steps = 5 * 150 // 8
  rows = [mix.draw(split.order, 2, step, 8)[1] for step in range(steps)]
  times = np.bincount(np.concatenate(rows), minlength=150)
  counted = mix.counts(split.order, steps, 8)[""]
  assert counted["drawn"] == steps * 8
  assert (counted["fewest"], counted["most"]) == (times.min(), times.max())
  assert times.min() >= 4 and times.max() <= 6


def test_buckets_of_a_mixture_keep_its_proportions():
  tasks = ["a"] * 100 + ["b"] * 50
  for batches_ in ("mixed", "task"):
    split = arrange(
      make_ragged()._replace(tasks=tasks), mixture="equal", buckets=3, mixture_batches=batches_
    )
    counted = mix.counts(split.order, 300, 8)
    assert counted["a"]["drawn"] == pytest.approx(1200, abs=60)
    assert counted["a"]["drawn"] + counted["b"]["drawn"] == 2400


def test_encoder_decoders_are_cropped_on_both_sides():
  inputs = make_ragged(seed=1).arrays
  split = make_ragged(inputs=inputs["tokens"], inputs_mask=inputs["mask"])
  split = arrange(split, buckets=3)
  for step in range(20):
    taken = batch(split, 0, step, 4)
    rows = taken["tokens"][:, 0] - 1
    for name, mask in (("tokens", "mask"), ("inputs", "inputs_mask")):
      assert taken[name].shape == taken[mask].shape
      np.testing.assert_array_equal(taken[mask].sum(1), split.arrays[mask].sum(1)[rows])
