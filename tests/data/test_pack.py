"""Packing keeps every token, once, and trains on none across a border."""

from __future__ import annotations

import numpy as np
import pytest

from jaxtune.data.pack import pack
from jaxtune.data.split import Split
from jaxtune.errors import UserError


def make_split(count=200, width=32, seed=0, tasks=None):
  """Right-padded rows with a token of weight 0 first and then random weights."""
  rng = np.random.default_rng(seed)
  lengths = rng.integers(1, width + 1, count)
  mask = np.arange(width) < lengths[:, None]
  tokens = np.where(mask, rng.integers(1, 1000, (count, width)), 7).astype(np.int32)
  weights = (mask & (rng.random((count, width)) < 0.7)).astype(np.float32)
  arrays = {"tokens": tokens, "mask": mask, "weights": weights}
  where = [f"f:{n}" for n in range(count)]
  return Split(arrays, [[1]] * count, [["a"]] * count, [{}] * count, where, tasks)


@pytest.mark.parametrize("width", [32, 33, 100])
def test_every_example_survives_once(width):
  split = make_split()
  packed, report = pack(split, width)
  arrays = packed.arrays
  assert packed.width == width and {a.shape for a in arrays.values()} == {(report["rows"], width)}
  np.testing.assert_array_equal(arrays["mask"], arrays["segments"] > 0)
  seen = []
  for row, entry in enumerate(packed.rows):
    assert arrays["segments"][row].max() == len(entry["examples"])
    for segment, n in enumerate(entry["examples"], 1):
      here, real = arrays["segments"][row] == segment, split.arrays["mask"][n]
      np.testing.assert_array_equal(np.diff(np.flatnonzero(here)), 1)
      np.testing.assert_array_equal(arrays["tokens"][row, here], split.arrays["tokens"][n, real])
      weights = split.arrays["weights"][n, real]
      np.testing.assert_array_equal(arrays["weights"][row, here][1:], weights[1:])
      assert arrays["weights"][row, here][0] == 0
      seen.append(n)
    assert packed.where[row] == " + ".join(split.where[n] for n in entry["examples"])
  assert sorted(seen) == list(range(200))
  assert (
    set(arrays["tokens"][~arrays["mask"]]) <= {7} and not arrays["weights"][~arrays["mask"]].any()
  )
  tokens = split.arrays["mask"].sum()
  assert report == {
    "examples": 200, "rows": len(packed.rows), "tokens": tokens,
    "efficiency": tokens / (len(packed.rows) * width), "unpacked": tokens / (200 * 32),
  }  # fmt: skip
  # Of decreasing best fit one knows: at most 11/9 of the best possible, plus 4.
  assert report["rows"] <= 11 / 9 * np.ceil(tokens / width) + 4


def test_the_same_examples_are_packed_in_the_same_way():
  one, two = pack(make_split())[0], pack(make_split())[0]
  assert one.rows == two.rows
  np.testing.assert_array_equal(one.arrays["tokens"], two.arrays["tokens"])


def test_rows_hold_one_task():
  tasks = [("a", "b", "c")[n % 3] for n in range(200)]
  packed, _ = pack(make_split(tasks=tasks))
  for task, entry in zip(packed.tasks, packed.rows, strict=True):
    assert {tasks[n] for n in entry["examples"]} == {task}


def test_what_cannot_be_packed():
  split = make_split()
  with pytest.raises(UserError, match=r"f:\d+: 32 tokens do not fit into packed rows of 31"):
    pack(split, 31)
  labelled = split._replace(arrays=split.arrays | {"labels": np.zeros(200, np.int32)})
  with pytest.raises(UserError, match="data.pack is for objective 'sft'.*labels"):
    pack(labelled)
