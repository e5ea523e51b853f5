"""Training computes logits where a token is predicted that has a weight, and nowhere else."""

from __future__ import annotations

import jax
import matrix
import numpy as np
import pytest
from support import tiny

from jaxtune import peft
from jaxtune.objectives import dpo, sft
from jaxtune.runs import costs
from jaxtune.training import step

ROWS, LENGTH, MOST = 3, 12, 4
RNG = np.random.default_rng(0)


def batch(*answers):
  shape = (ROWS, *answers, LENGTH)
  weights = np.zeros(shape, np.float32)
  for row in np.ndindex(shape[:-1]):  # anywhere, at the first and the last token too
    weights[row][RNG.choice(LENGTH, RNG.integers(1, MOST + 1), replace=False)] = 1
  weights[0, ..., -1] = weights[1, ..., 0] = 1
  weights[1, ..., 5:] = weights[0, ..., : LENGTH - MOST] = 0
  made = {"tokens": RNG.integers(2, tiny.VOCABULARY, shape).astype(np.int32), "weights": weights}
  made |= {"mask": np.ones(shape, bool), "difference": np.ones(ROWS, np.float32)}
  return made | {"reference": np.full((ROWS, 2), -9, np.float32)}


@pytest.mark.parametrize(("objective", "answers"), [(sft.loss, ()), (dpo.loss, (2,))])
@pytest.mark.parametrize("scored_tokens", [None, 2])
def test_losses_and_gradients_are_the_same(objective, answers, scored_tokens):
  pretrained = tiny.make("llama", scored_tokens=scored_tokens)
  methods, state, base = matrix.lay(pretrained, {"name": "stack", "lora": {"rank": 2}, "full": {}})
  rows = batch(*answers)

  def loss(tuned, targets):
    program = step.Program(pretrained.model, methods, objective, None, 1, targets=targets)
    call = step.forward(program, peft.Overlay(tuned, state.hyper), base, backward=True)
    losses, sums = objective(call, rows)
    return losses.sum(), (losses, sums)

  found = {}
  for targets in (None, MOST, LENGTH):
    run = jax.value_and_grad(lambda tuned, n=targets: loss(tuned, n), has_aux=True)
    work = costs.products(jax.make_jaxpr(run)(state.tuned).jaxpr)
    (_, aux), gradients = jax.jit(run)(state.tuned)
    found[targets] = work, aux, gradients
  assert found[MOST][0] < found[LENGTH][0] == found[None][0]
  close = lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)
  jax.tree.map(close, found[MOST][1:], found[None][1:])
