"""Adapters whose files were mutated at random: an adapter or one line, and never anything else."""

import functools
import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from support import tiny

from jaxtune import formats, peft, tree
from jaxtune.api.export import export
from jaxtune.errors import UserError
from jaxtune.runs import finished

SECTIONS = {
  "lora": {"name": "lora", "rank": 2, "ranks": {"q_proj": 1}, "dora": True},
  "adalora": {"name": "adalora", "init_rank": 2, "target_rank": 1},
  "vera": {"name": "vera", "rank": 3},
  "loha": {"name": "loha", "rank": 2},
  "lokr": {"name": "lokr", "rank": 1},
  "ia3": {"name": "ia3"},
  "prefix": {"name": "prefix", "length": 2},
  "prompt": {"name": "prompt", "length": 2},
  "norms": {"name": "norms"},
  "adapter": {"name": "adapter", "width": 3},
  "compacter": {"name": "compacter", "n": 2, "width": 4},
  "mam": {"name": "mam", "prefix": {"length": 2, "projection": None}, "adapter": {"width": 3}},
}
WEIGHTS = ("adapter_model.safetensors", "adapter.safetensors")
VALUES = st.one_of(
  st.none(), st.booleans(), st.integers(-3, 70), st.floats(), st.just(10**30),
  st.sampled_from(["", "q_proj", ".*", "(", "LOHA", "all-linear", "learned", "\x00", "layers.0"]),
  st.lists(st.one_of(st.integers(-1, 3), st.sampled_from(["q_proj", "v_proj", "lm_head"])),
           max_size=2),
  st.dictionaries(st.sampled_from(["q_proj", "v_proj", "architecture", ".*", "("]),
                  st.one_of(st.integers(-1, 5), st.floats(), st.lists(st.booleans(), max_size=2)),
                  max_size=2),
)  # fmt: skip
# What the readers ask for, beside what an export writes.
OPTIONS = (
  "peft_type", "exclude_modules", "feedforward_modules", "layers_pattern", "layers_to_transform",
  "modules_to_save", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "lora_dropout",
  "init_lora_weights", "num_transformer_submodules", "decompose_factor", "flat", "scaling",
  "prefix_length", "architecture", "configs", "name", "hidden_size", "phm_dim", "non_linearity",
  "shared_phm_rule", "leave_out", "encoder_prefix",
)  # fmt: skip
EDITS = (
  "drop", "rename", "more axes", "fewer axes", "transpose", "cut", "empty", "int", "half", "NaN",
  "scalar",
)  # fmt: skip


@functools.cache
def exported():
  """A model of one layer, and {name: (config, tensors, file)} of an export of each method."""
  model = tiny.random(tiny.ARCHITECTURES["llama"] | {"num_hidden_layers": 1})
  found = {}
  for name, section in SECTIONS.items():
    laid = tiny.lay(model, section, noise=0.1)
    laid = laid[0], {"params": {}, "peft": {}} | laid[1], *laid[2:]
    with tempfile.TemporaryDirectory() as place:
      folder, form = Path(place), "peft" if name == "norms" else "auto"
      export(model, peft.Adapted(*laid), folder, format=form)
      (weights,) = (folder / w for w in WEIGHTS if (folder / w).exists())
      config = json.loads((folder / "adapter_config.json").read_text())
      found[name] = config, load_file(weights), weights.name
  return model, found


def edit(tensors: dict, key: str, how: str) -> None:
  x = tensors.pop(key)
  if how == "drop":
    return
  made = {
    "more axes": lambda: x[None],
    "fewer axes": lambda: x.reshape(-1),
    "transpose": lambda: x.T,
    "cut": lambda: x.reshape(-1)[:-1],
    "empty": lambda: x.reshape(-1)[:0],
    "int": lambda: np.zeros(x.shape, np.int32),
    "half": lambda: x.astype(np.float16),
    "NaN": lambda: x * np.float32("nan"),
    "scalar": lambda: np.float32(1),
    "rename": lambda: x,
  }[how]()
  tensors[key + "_2" if how == "rename" else key] = np.ascontiguousarray(made)


@st.composite
def mutated(draw):
  """Returns (config, tensors, name of their file) with up to two edits of each."""
  config, tensors, weights = exported()[1][draw(st.sampled_from(sorted(SECTIONS)))]
  config, tensors = json.loads(json.dumps(config)), dict(tensors)
  for _ in range(draw(st.integers(0, 2))):
    inner = config.get("config") if isinstance(config.get("config"), dict) else config
    place = inner if draw(st.booleans()) else config
    place[draw(st.sampled_from([*place, *OPTIONS]))] = draw(VALUES)
  for _ in range(draw(st.integers(0, 2))):
    if tensors:
      edit(tensors, draw(st.sampled_from(sorted(tensors))), draw(st.sampled_from(EDITS)))
  return config, Tensors(tensors), weights


class Tensors(dict):
  """Arrays by name, of which an error shows the shapes alone."""

  def __repr__(self):
    return str({name: (x.dtype.name, x.shape) for name, x in self.items()})


@pytest.mark.full
@settings(max_examples=40, deadline=None)
@given(mutated())
def test_a_mutated_adapter_is_read_or_refused(files):
  config, tensors, weights = files
  model = exported()[0]
  with tempfile.TemporaryDirectory() as place:
    (Path(place) / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, Path(place) / weights)
    try:
      read = formats.read(place, model)
      methods, tuned, hyper, _ = formats.adapt(read, model)
    except UserError as error:
      assert "\n" not in str(error)
      return
  # What is read is what the method of its section would have made.
  finished.check_fits(methods, model, tree.flatten(tuned | {"hyper": hyper}), "what was read")


SITES = ("q_proj", "k_proj", "o_proj", "up_proj", "down_proj")


@st.composite
def loras(draw):
  """Returns the section of a LoRA with ranks and scales of its own at some targets."""
  targets = draw(st.lists(st.sampled_from(SITES), min_size=1, unique=True))
  section = {"name": "lora", "rank": draw(st.integers(1, 6)), "targets": targets}
  for option, values in {"ranks": st.integers(1, 6), "alphas": st.floats(0.1, 64)}.items():
    section[option] = draw(st.dictionaries(st.sampled_from(targets), values))
  return section | {"dora": draw(st.booleans()), "rslora": draw(st.booleans())}


@pytest.mark.full
@settings(max_examples=8, deadline=None)
@given(loras(), st.integers(0, 99))
def test_what_is_written_is_read_to_the_bit(section, seed):
  model = exported()[0]
  methods, tuned, hyper, base = tiny.lay(model, section, seed, noise=0.1)
  with tempfile.TemporaryDirectory() as place:
    export(model, peft.Adapted(methods, {"params": {}} | tuned, hyper, base), Path(place))
    _, again, fixed, _ = formats.adapt(formats.read(place, model), model)
  before, after = tree.flatten(tuned["peft"]), tree.flatten(again["peft"])
  assert before.keys() == after.keys()
  for path, x in before.items():
    np.testing.assert_array_equal(x, after[path], err_msg=path)
  scales = lambda arrays: {p: x for p, x in tree.flatten(arrays).items() if p.endswith("/scale")}
  for path, x in scales(hyper).items():
    np.testing.assert_allclose(scales(fixed)[path], x, rtol=1e-7, err_msg=path)
