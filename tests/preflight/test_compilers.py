"""Every method and layout through the compilers of a TPU and a GPU, where they are installed."""

import importlib.util

import pytest
from support import made_trials, methods, tiny

from jaxtune.preflight import compiled, devices, elsewhere, generation, lowered
from jaxtune.runs.trial import with_config

pytestmark = pytest.mark.measurement
missing = lambda package: importlib.util.find_spec(package) is None
TPU = pytest.mark.skipif(missing("libtpu"), reason="needs libtpu")
GPU = pytest.mark.skipif(missing("jax_cuda12_plugin"), reason="needs jax's CUDA plugin")
DEVICES = pytest.param("v5e", marks=TPU), pytest.param("h200", marks=GPU)
SLICES = pytest.param("v5e:2x2", marks=TPU), pytest.param("h200:4", marks=GPU)
GENERATE = {"generate": True, "max_new_tokens": 5}


def trial(name, changes=None):
  method = methods.METHODS[name]
  pretrained = tiny.make("gpt2", quantize=method.quantize)
  config = made_trials.complete(method.section, changes, evaluate=GENERATE)
  return with_config(made_trials.make(pretrained), config)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", methods.METHODS)
def test_every_method_compiles(name, device):
  group = lowered.outline([trial(name)], *devices.describe(device))
  batches = lowered.batches(group)
  programs = [lowered.LOWER[kind](group, batch, 1) for kind, batch in batches.items()]
  built = compiled.build(programs, device, None, quick=True)
  assert len(built) == 3 and all(one.text and one.peak > one.arguments for one in built)


@pytest.mark.parametrize("layout", [{"parallel": "pmap", "mesh": None}, {"mesh": {"fsdp": 4}}])
@pytest.mark.parametrize("slice_name", SLICES)
def test_every_layout_compiles(layout, slice_name, monkeypatch):
  monkeypatch.setattr(elsewhere, "_largest", lambda *_: {})
  changes = {f"train.{key}": value for key, value in layout.items()}
  cost = elsewhere.cost_on([trial("LoRA", changes)], slice_name)
  step = cost["programs"]["training step"]
  assert cost["devices"] == 4 and step["moved_GB"]
  assert step["ms"] is None if slice_name == "h200:4" else step["ms"] > step["floor_ms"]
  assert sum(step["parts_GB"].values()) == pytest.approx(step["peak_GB"])


@pytest.mark.parametrize("slice_name", SLICES[:1])
def test_long_prompts_are_answered_over_several_devices(slice_name):
  """Rows of 512 tokens have a fused kernel, which several devices cannot share by themselves."""
  config = made_trials.complete({"name": "lora"}, {"train.mesh": {"data": 4}}, evaluate=GENERATE)
  group = lowered.outline(
    [with_config(made_trials.make(tiny.make("llama")), config)], *devices.describe(slice_name)
  )
  prompts = generation.batches(group.trials)["generation"]
  wide = {
    name: x.update(shape=(*x.shape[:2], 640)) if name in ("tokens", "mask") else x
    for name, x in prompts.items()
  }
  (built,) = compiled.build(
    [lowered.lower_completion(group, wide, 1)], slice_name, None, quick=True
  )
  assert built.text and not built.refused
