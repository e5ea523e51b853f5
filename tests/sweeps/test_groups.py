"""A trial in a group equals the same trial run alone, for every method and axis."""

from functools import partial

import jax
import numpy as np
import pytest
from support import made_trials

from jaxtune import peft, tree
from jaxtune.runs import programs
from jaxtune.runs.first_state import first_state
from jaxtune.runs.trial import with_config
from jaxtune.sweeps import groups
from jaxtune.training import loop
from jaxtune.training import step as update
from jaxtune.training.options import TrainOptions
from jaxtune.training.progress import begin

STEPS = 10
LORA, ADAPTER, PREFIX = {"name": "lora"}, {"name": "adapter"}, {"name": "prefix"}
STACK = {"name": "stack", "lora": {"rank": 2}, "prefix": {"length": 3}, "adapter": {"width": 3}}
OPTIM = [
  {"optim.learning_rate": 2e-2}, {"optim.weight_decay": 0.5}, {"optim.warmup": 20}, {"seed": 7},
]  # fmt: skip
# A program, and how each of its trials but the first differs from the first.
PROGRAMS = [
  ("llama", LORA, [{"method.rank": 1}, {"method.alpha": 32.0}, {"method.scale": 3.0},
                   {"method.rslora": True}, {"method.dropout": 0.4}, *OPTIM]),
  ("gpt2", LORA, [{"method.rank": 3}]),
  ("llama", ADAPTER, [{"method.width": 5}, {"method.scale": 2.0}, {"method.dropout": 0.3},
                      {"seed": 7}]),
  ("llama", PREFIX | {"projection": 8}, [{"method.length": 2}]),
  ("llama", {"name": "full"}, [{"optim.learning_rate": 1e-3}, {"seed": 7}]),
  ("llama", STACK, [{"method.lora.rank": 1}, {"method.prefix.length": 4}]),
]  # fmt: skip


def solo(config, setup, step):
  """Runs the pure step alone, without padding, stacking or the loop; returns losses and weights."""
  state, base = first_state(with_config(setup, config))
  options = TrainOptions(**config["train"])
  losses = []
  for i in range(options.steps):
    batch = loop.make_batch([setup.dataset.train], [config["seed"]], [i], options)
    state, metrics = step(state, base, {name: x[0] for name, x in batch.items()})
    losses.append(float(metrics["loss"]))
  return losses, state.tuned


def grouped(configs, setup, chunk):
  """Runs the group's compiled step; returns each trial's losses, the weights, and the step."""
  options = TrainOptions(**configs[0]["train"])
  states = [first_state(with_config(setup, config)) for config in configs]
  base, stacked = states[0][1], tree.stack([state for state, _ in states])
  program = programs.make_program(
    with_config(setup, configs[0]), any(map(programs.uses_noise, configs))
  )
  step = jax.jit(loop.make_step(program, chunk))
  progress = begin(stacked)
  state, losses = progress.state, []
  for i in range(options.steps):
    splits, seeds = [setup.dataset.train] * len(configs), [c["seed"] for c in configs]
    batch = loop.make_batch(splits, seeds, [i] * len(configs), options)
    state, sums = step((state, progress.sums), base, batch)
    losses.append(np.asarray(sums["loss"]))
  shapes = [jax.eval_shape(lambda s=s: s.tuned) for s, _ in states]
  tuned = [
    tree.crop(jax.tree.map(lambda x, e=e: x[e], state.tuned), s) for e, s in enumerate(shapes)
  ]
  return np.stack(losses, 1), tuned, step, state


@pytest.mark.parametrize(("family", "method", "others"), PROGRAMS)
def test_every_trial_of_a_group_equals_its_solo_run(request, family, method, others):
  check(made_trials.make(request.getfixturevalue(family)), method, others, chunk=1)


@pytest.mark.full
@pytest.mark.parametrize("method", [LORA, STACK])
def test_so_it_does_side_by_side(llama, method):
  (others,) = [others for family, m, others in PROGRAMS if (family, m) == ("llama", method)]
  check(made_trials.make(llama), method, others[-1:], chunk=2)


def check(setup, method, others, chunk):
  configs = [made_trials.complete(method, one, train={"steps": STEPS}) for one in ({}, *others)]
  assert groups.groups(configs) == [list(range(len(configs)))]
  losses, tuned, step, _ = grouped(configs, setup, chunk)
  assert step._cache_size() == 1
  alone = {}  # one program for all without dropout, and for all with it
  for config, each, weights in zip(configs, losses, tuned, strict=True):
    drops = programs.uses_noise(config)
    program = programs.make_program(with_config(setup, config), drops)
    if drops not in alone:
      alone[drops] = jax.jit(partial(update.update, program))
    expected, whole = solo(config, setup, alone[drops])
    np.testing.assert_allclose(each, expected, rtol=0, atol=1e-5)
    assert jax.tree.map(np.shape, weights) == jax.tree.map(np.shape, whole)
  for change, each in zip(others, losses[1:], strict=True):
    assert np.abs(losses[0] - each).max() > 1e-4, f"{change} changes nothing"


def test_padding_stays_zero(llama):
  setup = made_trials.make(llama)
  configs = [
    made_trials.complete(LORA, {"method.rank": rank}, train={"steps": 5}) for rank in (1, 4)
  ]
  *_, state = grouped(configs, setup, 2)
  (site, arrays), *_ = peft.arrays_of(peft.build(LORA)[0], state.tuned["peft"]).items()
  assert (np.asarray(arrays["a"])[0, ..., 1:] == 0).all() and (arrays["b"][0, :, 1:] == 0).all()
  assert (np.asarray(arrays["a"])[1] != 0).all()


@pytest.mark.parametrize(
  ("changes", "count"),
  [
    ([{"method.rank": 1}, {"method.rank": 2}, {"optim.learning_rate": 0.5}, {"seed": 3}], 1),
    ([{"method.rank": 1}, {"method.targets": ["q_proj"]}], 2),
    ([{}, {"method": {"name": "prefix"}}, {"method": {"name": "prefix", "length": 3}}], 2),
    ([{}, {"train.batch_size": 8}, {"optim.schedule": "cosine"}], 3),
  ],
)
def test_what_shares_a_program(changes, count):
  configs = [made_trials.complete(LORA, change) for change in changes]
  assert len(groups.groups(configs)) == count


def test_a_random_base_depends_on_the_seed():
  model = {"model.path": None, "model.architecture": {"model_type": "llama"}}
  configs = [made_trials.complete(LORA, model | {"seed": seed}) for seed in (0, 1)]
  assert len(groups.groups(configs)) == 2
