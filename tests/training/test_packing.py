"""Packed rows lose what their examples lose alone: nothing is seen, or counted, across a border."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from support import tiny

from jaxtune import peft
from jaxtune.data.pack import pack
from jaxtune.data.split import Split
from jaxtune.objectives import sft
from jaxtune.training import step

METHODS = {"llama": {"name": "prefix", "length": 3}, "gpt2": {"name": "lora", "rank": 2}}


def make_split(count=9, width=16):
  rng = np.random.default_rng(0)
  lengths = rng.integers(2, width + 1, count)
  mask = np.arange(width) < lengths[:, None]
  weights = mask & (np.arange(width) >= rng.integers(1, lengths)[:, None])
  tokens = np.where(mask, rng.integers(0, tiny.VOCABULARY, mask.shape), 0).astype(np.int32)
  arrays = {"tokens": tokens, "mask": mask, "weights": weights.astype(np.float32)}
  return Split(arrays, [], [[]] * count, [], [f"f:{n}" for n in range(count)])


@pytest.fixture(scope="module", params=list(METHODS))
def program(request):
  """Losses of rows, and logits, of a model with a trained method over it."""
  pretrained = request.getfixturevalue(request.param)
  adapted = tiny.lay(pretrained, METHODS[request.param], noise=0.1)
  made = step.Program(pretrained.model, adapted.methods, sft.loss, None, 1)
  forward = step.forward(made, adapted.overlay, adapted.base)
  losses = jax.jit(lambda batch: sft.loss(forward, batch))
  logits = jax.jit(
    lambda batch: peft.apply(
      pretrained.model, adapted,
      batch["tokens"], batch["mask"], segments=batch["segments"],
    )
  )  # fmt: skip
  return losses, logits


def test_packed_losses_equal_unpacked_ones(program):
  losses, _ = program
  split = make_split()
  packed, report = pack(split, 32)
  assert report["rows"] < 6
  alone, others = losses(split.arrays)
  together, sums = losses(packed.arrays)
  assert float(sums["weight"].sum()) == split.arrays["weights"].sum()
  for row, entry in enumerate(packed.rows):
    members = np.array(entry["examples"])
    np.testing.assert_allclose(together[row], alone[members].sum(), rtol=1e-5)
    for name in sums:
      np.testing.assert_allclose(sums[name][row], others[name][members].sum(), rtol=1e-6)
  leaking, _ = losses({name: x for name, x in packed.arrays.items() if name != "segments"})
  assert (np.abs(leaking - together) > 1e-2).all()  # which is what the segments prevent


def test_a_segment_sees_itself_and_nothing_else(program):
  _, logits = program
  packed, _ = pack(make_split(), 32)
  batch = packed.arrays
  segments = batch["segments"]
  assert (segments.max(1) >= 2).any()
  before = np.asarray(logits(batch))
  for changed in (1, 2):
    here = segments == changed
    first = here & (np.cumsum(here, 1) == 1)  # the segment's first token
    after = np.asarray(logits(batch | {"tokens": (batch["tokens"] + first) % tiny.VOCABULARY}))
    np.testing.assert_array_equal(after[(segments > 0) & ~here], before[(segments > 0) & ~here])
    assert (np.abs(after - before).max(-1)[here] > 1e-6).all()
