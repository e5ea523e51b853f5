"""Model folders as a stranger may write them: a model or one line, soon, and in little memory."""

import copy
import json
import struct
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import tiny

from jaxtune.errors import UserError
from jaxtune.models import hf, hub, weights

WEIGHTS = "model.safetensors"
CONFIGS = tiny.ARCHITECTURES | tiny.DECODERS | tiny.ENCODERS
SOON = settings(
  max_examples=40, deadline=None, derandomize=True, database=None,
  suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
# Of any type, around every bound, and far beyond.
VALUES = st.one_of(
  st.sampled_from([None, True, "", "silu", "yarn", "longrope", "dynamic", "mish", "é"]),
  st.sampled_from([[], {}, [1], ["x"], {"a": 1}]),
  st.sampled_from([0, 1, 2, 3, -1, 2**24, 2**31 - 1, 2**31, 2**63, 10**400, 0.5, 1e30, 1e300]),
  st.sampled_from([float("nan"), float("inf"), -0.0]),
  st.integers(-3, 70),
  st.floats(0, 9),
)  # fmt: skip
ROPE = ("rope_type", "factor", "rope_theta", "original_max_position_embeddings", "short_factor",
        "long_factor", "beta_fast", "low_freq_factor", "partial_rotary_factor")  # fmt: skip
ENTRIES = sorted(hf.entries.Entries.__annotations__)


@st.composite
def configs(draw):
  """Draws a config.json in which a few entries are missing, or of other types, signs and sizes."""
  config = copy.deepcopy(CONFIGS[draw(st.sampled_from(sorted(CONFIGS)))])
  if draw(st.booleans()):
    numbers = st.dictionaries(st.sampled_from(ROPE), VALUES, max_size=4)
    name = draw(st.sampled_from(["rope_parameters", "rope_scaling"]))
    config[name] = draw(numbers | st.fixed_dictionaries({"full_attention": numbers}))
  own = [key for key in config if key != "model_type"]
  for key in draw(st.lists(st.sampled_from(own), max_size=1)):
    del config[key]
  changes = st.dictionaries(st.sampled_from(own) | st.sampled_from(ENTRIES), VALUES, max_size=2)
  return config | draw(changes)


def one_line(make, *args, **options):
  try:
    make(*args, **options)
  except UserError as error:
    assert "\n" not in str(error)


@settings(SOON, max_examples=400)
@given(configs())
def test_any_config_is_read_or_refused_in_one_line(config):
  one_line(hf.language, architecture=config)


@settings(SOON, max_examples=15)
@given(configs())
def test_what_is_read_makes_a_model(config):
  head = "tokens" if config["model_type"] in tiny.ENCODERS else "lm"
  one_line(hf.outline, architecture=config, head=head, labels=None if head == "lm" else 2)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  model = tiny.make("gpt2")
  folder = hf.save(model, model.params, tmp_path_factory.mktemp("damage") / "model")
  return model, folder


JSON = st.recursive(
  VALUES.filter(lambda x: x == x and x != float("inf")) | st.text(max_size=5),
  lambda inner: (
    st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3)
  ),
  max_leaves=6,
)


@SOON
@given(st.binary(max_size=40) | JSON.map(lambda x: json.dumps(x).encode()))
def test_any_bytes_for_json(tmp_path, contents):
  (tmp_path / "config.json").write_bytes(contents)
  one_line(hub.read_config, tmp_path)
  (tmp_path / "config.json").write_text("{}")
  (tmp_path / "generation_config.json").write_bytes(contents)
  one_line(hub.read_config, tmp_path)


LENGTHS = st.sampled_from([0, 1, 8, 2**31, 2**62, 2**63, 2**64 - 1]) | st.integers(0, 5000)
FIELDS = {
  "dtype": st.sampled_from(["F32", "F16", "BF16", "F64", "I64", "I8", "BOOL", "F8_E4M3", "X", 3]),
  "shape": st.lists(LENGTHS, max_size=3) | VALUES,
  "data_offsets": st.lists(LENGTHS, max_size=3) | VALUES,
}


@SOON
@given(st.data())
def test_any_header_of_weights(saved, tmp_path, data):
  """Lying offsets, shapes, types and sizes, and names twice, are refused or make the same model."""
  model, folder = saved
  whole = (folder / WEIGHTS).read_bytes()
  size = struct.unpack("<Q", whole[:8])[0]
  header, rest = json.loads(whole[8 : 8 + size]), whole[8 + size :]
  names = sorted(set(header) - {"__metadata__"})
  name = data.draw(st.sampled_from(names))
  field = data.draw(st.sampled_from(sorted(FIELDS)))
  header[name][field] = data.draw(FIELDS[field].filter(lambda x: x == x))
  text = json.dumps(header)
  if data.draw(st.booleans()):  # a name twice
    text = text[:-1] + f", {json.dumps(names[0])}: {json.dumps(header[name])}}}"
  stated = data.draw(st.just(len(text)) | LENGTHS)
  (tmp_path / WEIGHTS).write_bytes(struct.pack("<Q", stated) + text.encode() + rest)
  one_line(read, tmp_path, model)


def read(folder, model):
  """Does with a folder's weights what `hf.load` does, which also makes the model anew."""
  c = model.model.config
  table = hf.family_module(model.family).names(c)
  plan = weights.plan(folder, table, model.params, c, True, model.hf_config)
  weights.read(plan, c, 0.02, 0)


def test_headers_cost_no_memory(saved, tmp_path):
  """A small file that declares terabytes is refused without them."""
  import resource

  header = {"lm_head.weight": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}
  text = json.dumps(header).encode()
  (tmp_path / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text)
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  with pytest.raises(UserError, match="damaged or truncated"):
    read(tmp_path, saved[0])
  unit = 1 if sys.platform == "darwin" else 1024
  assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit < 2**28
