"""A step that is compiled for devices that are named: what it costs, fits and exchanges there."""

import importlib.util

import jax
import pytest
from support import made_trials, tiny

import jaxtune
from jaxtune import tree
from jaxtune.api import plan as plans
from jaxtune.errors import UserError
from jaxtune.preflight import compiled, cost, devices, modules
from jaxtune.runs.trial import with_config

HERE = devices.Device("cpu", 1e9, 1e12, 1e10, 1e9)
CHANGES = {"train.batch_size": 8, "model.remat": True}


@pytest.fixture
def here(monkeypatch):
  """Lets this machine's four CPU devices stand for those that are named."""
  monkeypatch.setattr(devices, "describe", lambda name: (HERE, jax.devices()))


def trials(mesh, count=1, **model):
  pretrained = tiny.make("llama", remat=True, **model)
  changes = CHANGES | {"train.mesh": mesh}
  configs = [
    made_trials.complete({"name": "lora"}, changes | {"seed": seed}) for seed in range(count)
  ]
  return [with_config(made_trials.make(pretrained), config) for config in configs]


def test_what_a_step_costs(here):
  one, split = (cost.cost_on(trials(mesh), "here") for mesh in ({"data": 1}, {"fsdp": 4}))
  size = sum(leaf.nbytes for leaf in tree.flatten(trials(None)[0].pretrained.params).values())
  assert one["base_GB"] == pytest.approx(size / 1e9) and one["exchanged_GB"] == {}
  assert size / 4e9 < split["base_GB"] < size / 3e9, "norms and odd axes stay whole"
  assert split["devices"] == 4 and split["floor_ms"] == pytest.approx(one["floor_ms"] / 4)
  assert one["peak_GB"] >= one["base_GB"] + one["state_GB"]


def test_fsdp_exchanges_weights_and_no_activations():
  """Every kernel is gathered twice, forward and backward; else only what is small is summed."""
  (trial,) = trials({"fsdp": 4})
  lowered = compiled.lower_step([trial], compiled.outline_batch([trial]), 1, HERE, jax.devices())
  found = [one for one in modules.operations(lowered.compile().as_text()) if one.collective]
  flat = tree.flatten(trial.pretrained.params)
  kernels = sum(
    x.nbytes for path, x in flat.items() if path.startswith("trunk/layers") and x.ndim > 2
  )
  total = lambda kind: sum(one.moved for one in found if one.collective == kind)
  assert 2 * kernels <= total("all-gather") < 2.6 * kernels
  states = compiled.outline_states([trial])[0]
  tuned = sum(x.size * 4 for x in jax.tree.leaves(states.tuned))
  rest = sum(one.moved for one in found if one.collective != "all-gather")
  assert rest < 1.2 * tuned + 1e4


def test_a_step_that_does_not_fit(here, monkeypatch):
  """The settings that would make it fit are tried in their order."""
  real = compiled.lower_step

  def lower(trials, batch, *rest, **computation):
    if batch["tokens"].shape[2] > 2:
      raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory: 20G exceeds 16G")
    return real(trials, batch, *rest, **computation)

  monkeypatch.setattr(compiled, "lower_step", lower)
  figures = cost.cost_on(trials({"data": 1}), "here")
  assert figures["does_not_fit"] == "out of memory: 20G exceeds 16G"
  assert figures["would_fit"] == "train.accumulate = 4"


def test_a_step_whose_peak_is_above_the_memory(monkeypatch):
  """As of a GPU, whose compiler compiles it all the same."""
  small = HERE._replace(memory=1e4)
  monkeypatch.setattr(devices, "describe", lambda name: (small, jax.devices()))
  monkeypatch.setattr(cost, "_fitting", lambda *_: "less")
  figures = cost.cost_on(trials({"data": 1}), "here")
  assert figures["does_not_fit"].endswith("GB of 1e-05") and figures["would_fit"] == "less"


@pytest.mark.parametrize(
  ("name", "says"),
  [
    ("v5", "unknown device 'v5'; did you mean 'v5"),
    ("h200:2x2", "a slice such as 4x4 is for TPUs, expected 'h200:4'"),
    ("v5e:4x4", "pip install jaxtune\\[plan-tpu\\]"),
    ("l4", "pip install jaxtune\\[plan-cuda\\]"),
  ],
)
def test_devices_that_cannot_be_compiled_for(name, says):
  compiler = {"v5e:4x4": "libtpu", "l4": "jax_cuda12_plugin"}.get(name)
  if compiler and importlib.util.find_spec(compiler):
    pytest.skip("the compiler is here")
  with pytest.raises(UserError, match=says):
    devices.describe(name)


@pytest.mark.parametrize(
  ("name", "place"),
  [
    ("jit(f)/jvp(Decoder)/trunk/while/body/closed_call/layers/mlp/up_proj/dot_general",
     "forward    trunk/layers/mlp/up_proj/dot_general"),
    ("jit(f)/vmap(transpose(jvp(Decoder)))/trunk/while/body/closed_call/checkpoint/layers/add",
     "backward   trunk/layers/add"),
    ("jit(f)/transpose(jvp(Decoder))/trunk/checkpoint/rematted_computation/layers/attn/jit(_pad)/pad",
     "recomputed trunk/layers/attn/pad"),
  ],
)  # fmt: skip
def test_where_an_operation_comes_from(name, place):
  assert plans._place(name) == place


def test_a_plan_is_data_and_text(here):
  """Of a config with two trials, whose step is spread over four devices."""
  config = jaxtune.load_config(tiny.ROOT / "configs/quickstart.py")
  with config.unlocked():
    config.sweep = ({"method.rank": [1, 2]},)
    config.method = {"name": "lora"}
    config.train.batch_size = 4
  (program,) = (plan := jaxtune.plan(config, device="here")).programs
  assert len(program.trials) == 2 and program.cost["devices"] == 4
  text = str(plan)
  assert "peak" in text and "on each of 4 devices" in text and "all-reduce" in text


@pytest.mark.full
def test_what_is_stored_for_the_backward_pass():
  """Less with every kind of rematerialisation, the more it computes again."""
  taken = []
  for remat in (True, "linear", False):
    pretrained = tiny.random(tiny.ARCHITECTURES["llama"] | {"num_hidden_layers": 12}, remat=remat)
    config = made_trials.complete({"name": "lora"}, {"train.mesh": {"data": 1}})
    trial = with_config(made_trials.make(pretrained), config)
    lowered = compiled.lower_step([trial], compiled.outline_batch([trial]), 1)
    taken.append(lowered.compile().memory_analysis().temp_size_in_bytes)
  assert taken[0] < taken[1] < taken[2]
