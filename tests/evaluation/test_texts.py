"""Prompts are handed to generation by length, and their completions come back in their order."""

import numpy as np
import pytest

from jaxtune.evaluation import texts


@pytest.mark.parametrize(
  ("lengths", "expected"),
  [
    ([3], [(3, [0])]),
    ([3, 100, 7], [(100, [0, 1, 2])]),  # too few for programs of their own
    ([60, 5, 6, 51, 7, 100, 8, 70], [(100, [0, 3, 5, 7]), (8, [1, 2, 4, 6])]),
    ([2, 30, 2, 2, 100, 90], [(100, [0, 1, 2, 3, 4, 5])]),  # two and one are too few
    ([1] * 3 + [9] * 5 + [40] * 4, [(40, [8, 9, 10, 11]), (9, [0, 1, 2, 3, 4, 5, 6, 7])]),
  ],
)
def test_short_prompts_are_not_padded_to_long_ones(lengths, expected):
  assert texts.schedule(lengths, rows=4) == expected


def test_many_prompts_are_several_calls():
  calls = texts.schedule([5] * 20, rows=1)
  assert [len(numbers) for _, numbers in calls] == [8, 8, 4]


def test_completions_come_back_in_order():
  """Two trials with different prompts; a made call repeats each prompt's first token and stops."""
  rng = np.random.default_rng(0)
  prompts = [
    [[int(i)] * int(n) for i, n in enumerate(rng.integers(1, 60, count), 1)] for count in (37, 30)
  ]
  shapes = set()

  def call(batch):
    shapes.add(batch["tokens"].shape)
    last_EN1 = batch["tokens"][:, :, -1:]
    assert batch["mask"][:, :, -1].sum() == batch["count"].sum()
    return np.concatenate([last_EN1, last_EN1 + 1, np.zeros_like(last_EN1)], -1)

  made = texts.complete(call, prompts, rows=4, stop_tokens=(0,))
  assert made == [[[p[0], p[0] + 1] for p in asked] for asked in prompts]
  assert 1 < len(shapes) <= 5, "each length is one program"
