"""One step, over an objective of a few numbers that plain numpy computes too."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import made_trials

from jaxtune import peft
from jaxtune.runs import baseline, programs
from jaxtune.runs.trial import with_config
from jaxtune.training import loop, optim, progress
from jaxtune.training import step as update


def state(seed=0, step=0, numbers=None, **tuned):
  tuned = {"params": {}, "peft": {"layers": {"probe": {"a": jnp.asarray([1.0, 2.0])}}}} | tuned
  numbers = {"head_ratio": jnp.asarray(1.0)} | (numbers or {})
  hyper = {"layers": {"probe": {"scale": jnp.asarray(3.0)}}}
  made = update.State(jnp.asarray(step), jnp.asarray(seed), tuned, hyper, numbers, None)
  return made._replace(optimizer=optax.sgd(0.5).init(tuned))


def program(methods=(), dropout=False):
  call = lambda forward, rows: forward(rows)
  return update.Program(None, methods, call, lambda numbers: optax.sgd(0.5), 10, dropout)


@pytest.fixture
def losses(monkeypatch):
  """Sets what stands in for the model and its loss."""

  def stand_in(function):
    forward = lambda program, overlay, base, rng=None, backward=False: (
      lambda rows: function(program, *overlay, base, rows, rng)
    )
    monkeypatch.setattr(update, "forward", forward)

  return stand_in


def batch(parts=1):
  tokens = jnp.arange(8.0).reshape(parts, -1)
  return {"tokens": tokens, "weights": jnp.ones_like(tokens).at[0, 0].set(5.0)}


def linear(program, tuned, hyper, base, rows, rng=None):
  a = sum(x.sum() for x in jax.tree.leaves(tuned))
  lost = a * rows["tokens"] * rows["weights"]
  return lost, {"weight": rows["weights"], "correct": jnp.zeros_like(lost)}


@pytest.mark.parametrize("parts", [1, 2])
def test_a_step_goes_down_the_mean_loss_over_all_weights(losses, parts):
  """Adam would not see a gradient that is not divided; plain descent does."""
  losses(linear)
  rows = batch(parts)
  tokens, weights = np.asarray(rows["tokens"]), np.asarray(rows["weights"])
  slope = (tokens * weights).sum() / weights.sum()
  after, measured = update.update(program(), state(), None, rows)
  found = after.tuned["peft"]["layers"]["probe"]["a"]
  np.testing.assert_allclose(found, np.array([1.0, 2.0]) - 0.5 * slope, rtol=1e-6)
  np.testing.assert_allclose(measured["loss"], 3.0 * slope, rtol=1e-6)
  np.testing.assert_allclose(measured["grad_norm"], slope * np.sqrt(2), rtol=1e-6)
  assert measured["tokens"] == weights.sum() and after.step == 1


def test_an_update_without_a_target_counts_in_no_mean(losses):
  losses(linear)
  start = progress.begin(jax.tree.map(lambda x: x[None], state()))
  carry, rows = (start.state, start.sums), {name: x[None] for name, x in batch().items()}
  for weight in (1.0, 0.0):
    rows["weights"] = jnp.full_like(rows["weights"], weight)
    carry = loop.make_step(program(), 1)(carry, {}, rows)
  assert (carry[0].step, carry[1]["steps"], carry[1]["loss"]) == (2, 1, 3.0 * 3.5)


def drawn(losses, seed, step, parts=1, dropout=True):
  """The sum of the uniform numbers that the parts of a step draw with their keys."""

  def loss(program, tuned, hyper, base, rows, rng=None):
    count = rows["tokens"].size
    noise = jnp.zeros(()) if rng is None else jax.random.uniform(rng)
    zero = jnp.zeros(count) + 0 * tuned["peft"]["layers"]["probe"]["a"].sum()
    return zero, {"weight": jnp.ones(count), "correct": jnp.full(count, noise / count)}

  losses(loss)
  _, measured = update.update(program(dropout=dropout), state(seed, step), None, batch(parts))
  return 8 * float(measured["accuracy"])


def test_dropout_has_a_key_for_every_seed_step_and_part(losses):
  once = {(s, t): drawn(losses, s, t) for s in range(3) for t in range(3)}
  assert len({round(x, 6) for x in once.values()}) == 9
  assert drawn(losses, 1, 2) == once[1, 2]
  two = drawn(losses, 0, 0, parts=2)
  assert abs(two - 2 * once[0, 0]) > 1e-3, "both parts draw alike"
  assert drawn(losses, 0, 0, dropout=False) == 0


@pytest.mark.full
def test_devices_drop_other_elements(losses):
  def loss(program, tuned, hyper, base, rows, rng=None):
    ones = jnp.ones(rows["tokens"].size) + 0 * tuned["peft"]["layers"]["probe"]["a"].sum()
    noise = jax.random.uniform(rng)
    # A weight that each device states alone: their sum is of different draws.
    return 0 * ones, {"weight": ones * noise, "correct": ones}

  losses(loss)
  rows = jax.tree.map(lambda x: x.reshape(2, 1, 4), batch())
  step = lambda rows: update.update(program(dropout=True), state(), None, rows, axis="data")[1]
  both = jax.vmap(step, axis_name="data")(rows)["tokens"]
  alone = jax.vmap(step, axis_name="data")(jax.tree.map(lambda x: x[:1], rows))["tokens"]
  assert both[0] == both[1] and abs(both[0] - 2 * alone[0]) > 1e-3


def test_a_head_has_its_own_rate(losses):
  losses(linear)
  head = {"head": {"score": {"kernel": jnp.ones(2)}}, "trunk": {"norm": {"scale": jnp.ones(2)}}}
  ends = {}
  for ratio in (1.0, 4.0):
    begin = state(numbers={"head_ratio": jnp.asarray(ratio)}, params=head)
    after, _ = update.update(program(), begin, None, batch())
    ends[ratio] = jax.tree.map(lambda x, y: y - x, begin.tuned, after.tuned)
  kernel = lambda end: end["params"]["head"]["score"]["kernel"]
  np.testing.assert_allclose(kernel(ends[4.0]), 4 * kernel(ends[1.0]), rtol=1e-5)
  for name in ("params", "peft"):
    rest = [{k: v for k, v in ends[r][name].items() if k != "head"} for r in ends]
    jax.tree.map(np.testing.assert_array_equal, *rest)
  assert (kernel(ends[1.0]) != 0).all()


def test_a_method_names_the_rate_of_its_arrays():
  """Also deep in the model, and in any method's arrays; what is named like it elsewhere is not."""
  changes = {
    "params": {"trunk": {"a": jnp.ones(2)}, "head": {"a": jnp.ones(2)}},
    "peft": {"trunk": {"layers": {"q": {"a": jnp.ones((2, 3)), "b": jnp.ones((2, 3))}}}},
  }
  rates = {"layers": {"q": {"rate:b": jnp.asarray([2.0, 3.0])}}}
  hyper = {"trunk": {"rate:a": jnp.asarray(9.0)} | rates}
  found = optim.scale(changes, hyper, jnp.asarray(5.0))
  site = found["peft"]["trunk"]["layers"]["q"]
  np.testing.assert_array_equal(site["a"], np.ones((2, 3)))
  np.testing.assert_array_equal(site["b"], [[2.0] * 3, [3.0] * 3])
  np.testing.assert_array_equal(found["params"]["head"]["a"], [5.0, 5.0])
  np.testing.assert_array_equal(found["params"]["trunk"]["a"], [1.0, 1.0])


def test_penalties_are_added_whole_and_methods_change_their_own_arrays(losses):
  """A penalty is no mean over tokens; `adjust` is given its own arrays and the steps done."""
  losses(linear)
  seen = {}

  def adjust(step, steps, trained, gradients, fixed):
    seen.update(step=step, steps=steps, trained=trained, gradients=gradients, fixed=fixed)
    return jax.tree.map(lambda x: x + 100, trained), jax.tree.map(lambda x: x + 1, fixed)

  penalty = lambda trained, fixed: sum(
    (fixed[site]["scale"] * arrays["a"]).sum() for site, arrays in trained.items()
  )
  method = peft.Method("probe", penalty=penalty, adjust=adjust)
  plain, _ = update.update(program(), state(), None, batch())
  after, _ = update.update(program((method,)), state(), None, batch())
  a = lambda end: np.asarray(end.tuned["peft"]["layers"]["probe"]["a"])
  np.testing.assert_allclose(a(after) - 100, a(plain) - 0.5 * 3.0, rtol=1e-5)
  assert float(after.hyper["layers"]["probe"]["scale"]) == 4.0
  assert int(seen["step"]) == 1 and seen["steps"] == 10


def test_judgement_is_without_label_smoothing(llama):
  """So that losses of trials that differ in it can be compared."""
  setup = made_trials.make(llama)
  found = []
  for smoothing in (0.0, 0.4):
    full = made_trials.complete({"name": "lora"}, objective={"label_smoothing": smoothing})
    (untuned,) = baseline.evaluate_bases([with_config(setup, full)])
    found.append(untuned.base.metrics)
    trained = programs.make_program(with_config(setup, full)).objective
    assert inspect.signature(trained).parameters["label_smoothing"].default == smoothing
  assert found[0] == found[1] and found[0]["test_loss"] > 1
