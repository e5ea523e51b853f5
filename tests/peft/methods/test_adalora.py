"""AdaLoRA: PEFT's function, penalty, schedule and choice of triplets; the budget in training."""

from fractions import Fraction
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file
from support import deltas, made_trials, tiny

from jaxtune import peft, tree
from jaxtune.errors import UserError
from jaxtune.peft.methods import adalora

NAMES = {"a": "lora_A", "e": "lora_E", "b": "lora_B"}
LAYERS = 2


def make(**options):
  return deltas.start({"name": "adalora"} | options, LAYERS)


def twin(**options):
  """PEFT's model of the same layers, whose loss is the penalty alone."""
  import torch
  from peft import AdaLoraConfig, get_peft_model

  layers = torch.nn.ModuleList(
    torch.nn.ModuleDict({name: torch.nn.Linear(*size) for name, size in deltas.SIZES.items()})
    for _ in range(LAYERS)
  )
  layers.forward = lambda: SimpleNamespace(loss=torch.zeros(()))
  options = {"target_modules": ["q_proj", "v_proj"], "total_step": 100} | options
  return get_peft_model(layers, AdaLoraConfig(**options))


def parameter(model, layer, site, name):
  return getattr(model.base_model.model[layer][site], NAMES[name])["default"]


def assign(model, trained, gradients=None):
  import torch

  torched = lambda x: torch.tensor(np.ascontiguousarray(np.atleast_2d(x).T))
  for site, arrays in trained.items():
    for name, x in arrays.items():
      for layer in range(LAYERS):
        p = parameter(model, layer, site, name)
        p.data = torched(x[layer])
        p.grad = None if gradients is None else torched(gradients[site][name][layer])


def draw(trained, seed):
  return tree.unflatten(
    {
      path: np.random.default_rng([seed, i]).standard_normal(x.shape).astype(np.float32)
      for i, (path, x) in enumerate(tree.flatten(trained).items())
    }
  )


def test_equals_peft():
  from peft import AdaLoraConfig

  config = AdaLoraConfig(
    init_r=5, target_r=2, lora_alpha=7, total_step=9, target_modules=["q_proj", "v_proj"]
  )
  section = {"name": "adalora", "init_rank": 5, "target_rank": 2, "alpha": 7}
  deltas.check_against_torch(section, config, NAMES)


def test_draws_and_penalty_equal_pefts():
  method, trained, fixed = make(init_rank=8, orth_weight=0.3)
  model = twin(init_r=8, orth_reg_weight=0.3)
  for site, arrays in trained.items():
    for name, x in arrays.items():
      theirs = [parameter(model, layer, site, name).detach() for layer in range(LAYERS)]
      assert theirs[0].T.shape[-2:] == (x.shape[1:] if name != "e" else (1, 8))
      assert float(x.std()) == pytest.approx(float(np.stack(theirs).std()), rel=0.3, abs=0)
  assign(model, trained)
  expected = model.base_model().loss.item()
  assert float(jax.jit(method.penalty)(trained, fixed)) == pytest.approx(expected, rel=1e-5)
  assign(model, trained)
  model.base_model().loss.backward()
  gradients = jax.jit(jax.grad(method.penalty))(trained, fixed)
  for site, arrays in gradients.items():
    for name in "ab":
      theirs = parameter(model, 1, site, name).grad.numpy().T
      np.testing.assert_allclose(arrays[name][1], theirs, atol=1e-6, rtol=1e-4)


def test_penalty_has_a_gradient_where_it_is_zero():
  method, trained, fixed = make(init_rank=2, target_rank=1)
  eye = lambda x: jnp.broadcast_to(jnp.eye(*x.shape[-2:]), x.shape)
  trained = {s: w | {"a": eye(w["a"]), "b": eye(w["b"])} for s, w in trained.items()}
  gradients = jax.jit(jax.grad(method.penalty))(trained, fixed)
  assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(gradients))


@pytest.mark.parametrize("interval", [1, 3])
def test_allocates_as_peft_does(interval):
  """Step by step on made-up weights and gradients: averages, what is pruned, and what stays so."""
  steps = 12
  options = dict(tinit=2, tfinal=3)
  method, trained, fixed = make(init_rank=6, target_rank=2, interval=interval, **options)
  model = twin(init_r=6, target_r=2, total_step=steps, deltaT=interval, **options)
  adjust = jax.jit(lambda step, *trees: method.adjust(step, steps, *trees))
  left = []
  for step in range(1, steps + 1):
    weights, gradients = draw(trained, step), draw(trained, 100 + step)
    assign(model, weights, gradients)
    model.base_model.update_and_allocate(step)
    made, fixed = adjust(step, weights, gradients, fixed)
    for site, arrays in made.items():
      for name, x in arrays.items():
        for layer in range(LAYERS):
          theirs = parameter(model, layer, site, name).detach().numpy().T
          np.testing.assert_array_equal(np.atleast_2d(x[layer]), theirs)
    averages = model.base_model.rankallocator.exp_avg_unc
    for path, theirs in averages.items():
      layer, site, theirs_name, _ = path.split(".")
      (name,) = (ours for ours, other in NAMES.items() if other == theirs_name)
      ours = np.atleast_2d(fixed[site][f"uncertainty:{name}"][int(layer)])
      np.testing.assert_allclose(ours, theirs.numpy().T, rtol=1e-5, atol=1e-9)
    left.append(sum(int((w["e"] != 0).sum()) for w in made.values()))
  assert left[:2] == [24, 24] and left[-4:] == [8] * 4  # four weights of 6, then of 2
  assert sorted(set(left), reverse=True)[1:-1]


def test_budget_falls_as_in_peft():
  from peft.tuners.adalora.layer import RankAllocator

  theirs = RankAllocator.__new__(RankAllocator)
  for steps, tinit, tfinal, count in ((10, 0, 0, 4), (100, 10, 33, 64), (3000, 300, 1000, 224)):
    for initial, target in ((12, 8), (16, 1), (3, 3)):
      theirs.peft_config = SimpleNamespace(tinit=tinit, tfinal=tfinal, total_step=steps, deltaT=1)
      theirs.init_bgt, theirs.target_bgt = initial * count, target * count
      step = np.arange(1, steps + 1)
      start, end = adalora.schedule_bounds(steps, tinit, tfinal)
      made = adalora.budget(step, start, end, theirs.init_bgt, theirs.target_bgt)
      np.testing.assert_array_equal(made, [theirs.budget_schedule(int(i))[0] for i in step])
  assert adalora.schedule_bounds(100, None, None) == (10, 67)
  assert adalora.schedule_bounds(1, None, None) == (0, 1)


def test_a_long_run_s_budget_is_exact():
  """With fp32's products of 24 bits, where a plain one would be a triplet off."""
  steps, initial, target = 20_011, 3457.0, 96.0
  step = np.arange(steps + 1)
  made = jax.vmap(lambda i: adalora.budget(i, 0, steps, jnp.asarray(initial), jnp.asarray(target)))
  exact = [
    target + (initial - target) * Fraction(steps - i, steps) ** 3 // 1 for i in step.tolist()
  ]
  np.testing.assert_array_equal(made(step), np.array(exact, int))


def test_ties_and_nan_keep_the_budget():
  scores = jnp.asarray([[2.0, 2.0, jnp.nan, 2.0], [jnp.inf, 3.0, 2.0, 9.0]])
  zeros, ones = jnp.zeros((2, 1, 4)), jnp.ones((2, 4))
  fixed = {
    f"{kind}:{name}": {"a": zeros, "b": zeros.swapaxes(1, 2), "e": ones}[name]
    for kind in adalora.AVERAGES
    for name in "aeb"
  }
  fixed |= {"sensitivity:e": scores, "real": jnp.ones((2, 4), bool).at[1, 3].set(False)}
  kept = lambda count: adalora._most_important({"site": fixed}, count)["site"].astype(int).tolist()
  assert kept(2) == [[0, 0, 0, 0], [0, 1, 1, 0]]
  assert kept(4) == [[0, 1, 0, 1], [0, 1, 1, 0]]
  assert kept(7) == [[1, 1, 1, 1], [1, 1, 1, 0]]
  assert kept(0) == [[0] * 4] * 2


@pytest.mark.full
def test_merge_equals_intercept(llama):
  section = {"name": "adalora", "init_rank": 4, "target_rank": 2, "alpha": 20}
  deltas.check_merge(llama, section | {"targets": ("q_proj", "down_proj")})


@pytest.mark.full
def test_grouped_equals_solo_within_the_budget(llama):
  section = {"name": "adalora", "targets": ("q_proj", "down_proj"), "tinit": 1, "tfinal": 1}
  trials = [
    {"init_rank": 5, "target_rank": 3},
    {"init_rank": 3, "target_rank": 1, "alpha": 3, "orth_weight": 0.1},
  ]
  states = deltas.check_trials_equal_solo(llama, [section | t for t in trials], 5)
  method = peft.build(section)[0]
  for i, trial in enumerate(trials):
    initial, target = (6 * trial[f"{name}_rank"] for name in ("init", "target"))
    left = [
      sum(int((w["e"][i] != 0).sum()) for w in peft.arrays_of(method, state.tuned["peft"]).values())
      for state in states
    ]
    expected = adalora.budget(np.arange(6), 1, 4, initial, target).tolist()
    assert left == expected and left[1] == initial and left[-2:] == [target] * 2


@pytest.mark.parametrize(
  "options, words",
  [
    ({"init_rank": 4, "target_rank": 5}, ("target_rank is 5", "init_rank 4")),
    ({"target_rank": 0}, ("target_rank is 0",)),
    ({"init_rank": 33}, ("init_rank is 33", "32")),
    ({"dropout": 1.0}, ("dropout",)),
    ({"orth_weight": -1}, ("orth_weight is -1",)),
    ({"interval": 0}, ("interval is 0",)),
    ({"alpha": -8.0}, ("alpha is -8.0", "above 0")),
    ({"beta1": 1.0}, ("beta1",)),
    ({"targets": ["q_porj"]}, ("q_porj", "q_proj")),
  ],
)
def test_refused(llama, options, words):
  with pytest.raises(UserError) as caught:
    tiny.lay(llama, {"name": "adalora", "targets": ["q_proj"]} | options)
  assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize("tinit, tfinal", [(5, 5), (0, 11), (-1, 0), (0, -1)])
def test_a_schedule_without_a_fall_is_refused(tinit, tfinal):
  with pytest.raises(UserError, match=f"tinit is {tinit} and method.tfinal {tfinal}.* 10 steps"):
    adalora.schedule_bounds(10, tinit, tfinal)


@pytest.mark.full
def test_the_best_weights_are_those_within_the_budget(llama, tmp_path):
  """Of a run whose validation loss only rises: its earliest weights have too many ranks."""
  section = {"name": "adalora", "init_rank": 4, "target_rank": 1, "tinit": 1, "tfinal": 2}
  changes = {"train.steps": 6, "train.eval_every": 1, "optim.learning_rate": 3.0}
  config = made_trials.complete(section, changes | {"train.patience": 2})
  (result,) = made_trials.run(
    [config], [tmp_path / "0"], made_trials.make(llama), tmp_path / "checkpoints"
  )
  assert result["best_step"] >= 4 and result["stopped_at"] == 6, "patience begins there too"
  flat = load_file(tmp_path / "0" / "tuned.safetensors")
  singular = [x for name, x in flat.items() if name.endswith("adalora/e")]
  assert sum((x != 0).sum() for x in singular) == sum(x.size for x in singular) / 4
