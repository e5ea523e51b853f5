"""Every method and layout through the compiler of a TPU, where that is installed."""

import importlib.util

import pytest
from support import made_trials, methods, tiny

from jaxtune.preflight import compiled, devices, elsewhere, lowered
from jaxtune.runs.trial import with_config

pytestmark = [
  pytest.mark.measurement,
  pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu"),
]
GENERATE = {"generate": True, "max_new_tokens": 5}


def trial(name, changes=None):
  method = methods.METHODS[name]
  pretrained = tiny.make("gpt2", quantize=method.quantize)
  config = made_trials.complete(method.section, changes, evaluate=GENERATE)
  return with_config(made_trials.make(pretrained), config)


@pytest.mark.parametrize("name", methods.METHODS)
def test_every_method_compiles(name):
  group = lowered.outline([trial(name)], *devices.describe("v5e"))
  batches = lowered.batches(group)
  programs = [lowered.LOWER[kind](group, batch, 1) for kind, batch in batches.items()]
  built = compiled.build(programs, "v5e", None, quick=True)
  assert len(built) == 3 and all(one.text and one.peak > one.arguments for one in built)


@pytest.mark.parametrize("layout", [{"parallel": "pmap", "mesh": None}, {"mesh": {"fsdp": 4}}])
def test_every_layout_compiles(layout, monkeypatch):
  monkeypatch.setattr(elsewhere, "_largest", lambda *_: {})
  changes = {f"train.{key}": value for key, value in layout.items()}
  cost = elsewhere.cost_on([trial("LoRA", changes)], "v5e:2x2")
  step = cost["programs"]["training step"]
  assert cost["devices"] == 4 and step["moved_GB"] and step["ms"] > step["floor_ms"]
  assert sum(step["parts_GB"].values()) == pytest.approx(step["peak_GB"])
