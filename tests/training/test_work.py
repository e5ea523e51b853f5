"""A training step computes nothing that no trained array needs: its matrix products, counted."""

import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import tiny

from jaxtune.objectives import sft
from jaxtune.training import step

WIDTH, HEADS, LAYERS, VOCABULARY, RANK = 32, 4, 6, tiny.VOCABULARY, 3
ROWS, LENGTH = 2, 20
TOKENS = ROWS * LENGTH


@pytest.fixture(scope="module")
def deep():
  """A model of more layers, which stores all that its backward pass needs."""
  return tiny.random(tiny.ARCHITECTURES["gpt2"] | {"n_layer": LAYERS}, remat=False)


def traced(pretrained, section):
  """Traces one step of a method."""
  laid = tiny.lay(pretrained, section)
  batch = {"tokens": np.zeros((1, ROWS, LENGTH), np.int32), "weights": np.ones((1, ROWS, LENGTH))}
  make_optimizer = lambda numbers: optax.sgd(0.1)
  program = step.Program(pretrained.model, laid.methods, sft.loss, make_optimizer, 10)
  numbers, zero = {"head_ratio": jnp.ones(())}, jnp.zeros((), int)
  optimizer = make_optimizer(numbers).init(laid.tuned)
  state = step.State(zero, zero, laid.tuned, laid.hyper, numbers, optimizer)
  run = lambda state, base, batch: step.update(program, state, base, batch)
  return jax.make_jaxpr(run)(state, laid.base, batch).jaxpr


def equations(jaxpr, times: int = 1) -> Iterator[tuple]:
  """Yields (equation, how often it runs) of a program and all that it calls."""
  for equation in jaxpr.eqns:
    yield equation, times
    rounds = equation.params["length"] if equation.primitive.name == "scan" else 1
    for inner in jax.tree.leaves([*equation.params.values()]):
      inner = getattr(inner, "jaxpr", inner)
      if hasattr(inner, "eqns"):
        yield from equations(inner, times * rounds)


def flop(jaxpr) -> float:
  """Sums two operations for each multiplication of all matrix products."""
  total = 0.0
  for equation, times in equations(jaxpr):
    if equation.primitive.name == "dot_general":
      left, right = (x.aval.shape for x in equation.invars)
      (summed, _), (batch, _) = equation.params["dimension_numbers"]
      once = math.prod(left[axis] for axis in (*summed, *batch))
      total += times * 2 * math.prod(left) * math.prod(right) / once
  return total


# Matrix products of one layer: those with weights, 4 D x D and 2 D x 4 D, and two of attention.
WEIGHTS = 2 * TOKENS * 12 * WIDTH**2
ATTENTION = 2 * 2 * ROWS * LENGTH**2 * WIDTH
FORWARD = WEIGHTS + ATTENTION
BACKWARD = WEIGHTS + 2 * ATTENTION  # to the layer's input, without gradients of weights
HEAD = 2 * TOKENS * WIDTH * VOCABULARY
LOW_RANK = 3 * 2 * TOKENS * 2 * WIDTH * RANK  # x @ a @ b forward, and to x, a and b
BASE = LAYERS * FORWARD + 2 * HEAD
LORA = dict(name="lora", rank=RANK, targets=["q_proj", "v_proj"])
REFT = dict(name="reft", rank=RANK, variant="direft", layers=[4])
CASES = {
  "full": (dict(name="full"), BASE + LAYERS * (BACKWARD + WEIGHTS) + HEAD),
  "lora": (LORA, BASE + LAYERS * (BACKWARD + 2 * LOW_RANK)),
  "one last layer": (dict(name="last_layers"), BASE + BACKWARD + WEIGHTS),
  "three last layers": (dict(name="last_layers", layers=3), BASE + 3 * (BACKWARD + WEIGHTS)),
  "edits after layer 4": (REFT, BASE + 2 * (BACKWARD + LOW_RANK)),
  "lora and a last layer": (
    dict(name="stack", lora=LORA, last_layers={}),
    BASE + LAYERS * (BACKWARD + 2 * LOW_RANK) + WEIGHTS,
  ),
}


@pytest.mark.parametrize("case", CASES)
def test_products_are_those_that_trained_arrays_need(deep, case):
  section, expected = CASES[case]
  np.testing.assert_allclose(flop(traced(deep, section)), expected, rtol=1e-6)


def test_frozen_norms_and_embeddings_have_no_gradient(deep):
  """No sum has the shape of one; where they are trained, those that make their gradients do."""
  sums = ("reduce_sum", "scatter-add", "dot_general", "add_any")

  def summed(section):
    made = [equation for equation, _ in equations(traced(deep, section))]
    return {x.outvars[0].aval.shape for x in made if x.primitive.name in sums}

  shapes = {(VOCABULARY, WIDTH), (64, WIDTH), (WIDTH,)}  # tokens, positions, norms
  assert summed({"name": "full"}) >= shapes
  for case in ("lora", "edits after layer 4"):
    assert not summed(CASES[case][0]) & shapes
  assert not summed({"name": "last_layers"}) & (shapes - {(WIDTH,)})
