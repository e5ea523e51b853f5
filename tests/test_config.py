"""Configs: defaults from signatures, checked keys and types, files and overrides."""

import inspect
import json
import pkgutil
import typing

import pytest
from annotated_types import Ge, Gt
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from jaxtune import config, data, objectives, peft, schema
from jaxtune.errors import UserError
from jaxtune.peft import methods
from jaxtune.peft.methods import lora
from jaxtune.training import optim
from jaxtune.training.options import TrainOptions

PLAIN = {"model": {"path": "folder"}, "data": {"train": "file.jsonl"}}


def complete(changes):
  return config.complete(config.override(PLAIN | {"seed": 0, "method": {"name": "lora"}}, changes))


def test_defaults_come_from_signatures():
  full = config.complete(PLAIN)
  assert full["train"] == TrainOptions()._asdict()
  assert full["optim"]["b2"] == optim.make.__kwdefaults__["b2"]
  defaults = {n: p.default for n, p in inspect.signature(lora.method).parameters.items()}
  assert full["method"] == {"name": "lora", "start": None} | defaults
  assert defaults["rank"] == 8 and defaults["targets"] == ("q_proj", "v_proj")
  assert full["data"]["too_long"] == data.DataOptions().too_long
  assert full["seed"] == 0 and full["objective"] == {"name": "sft", "label_smoothing": 0.0}
  assert not {"tokenizer", "seed"} & {*full["data"]}, "what the caller supplies is no key"


def test_completing_twice_changes_nothing():
  full = complete({"method": {"name": "stack", "lora": {"rank": 2}, "other": {"name": "prefix"}}})
  assert full["method"]["lora"]["name"] == "lora" and full["method"]["other"]["length"] == 10
  assert config.complete(full) == full


@pytest.mark.parametrize(
  ("key", "value", "says"),
  [
    (
      "optim.learning_rte",
      1,
      "unknown config key optim.learning_rte; did you mean 'learning_rate'",
    ),
    ("method.rnk", 1, "unknown config key method.rnk; did you mean 'rank'"),
    ("methd", {}, "unknown config section 'methd'; did you mean 'method'"),
    ("method", {"name": "lorra"}, "unknown method 'lorra'; did you mean 'lora'"),
    ("method", {"name": ["lora"]}, "unknown method"),
    ("method", {"rank": 4}, "method needs a name"),
    ("method", "lora", "method needs a name"),
    ("method", {"name": "stack"}, "stack without methods"),
    ("method", {"name": "stack", "lora": {"rnk": 1}}, "method.lora.rnk; did you mean 'rank'"),
    ("method", {"name": "stack", "lora": 3}, "method.lora needs a name"),
    ("objective", {"name": "xyz"}, "unknown objective 'xyz'; valid choices: choices, classify"),
    ("objective", {"forward": 1}, "unknown config key objective.forward"),
    ("method.rank", True, "method.rank is True (bool), expected int"),
    ("method.rank", 4.0, "method.rank is 4.0 (float), expected int"),
    ("method.rank", "4", "method.rank is '4' (str), expected int"),
    ("method.rank", None, "method.rank is None"),
    ("method.targets", "q_proj", "method.targets is 'q_proj' (str), expected list"),
    ("method.targets", [1], "method.targets[0] is 1 (int), expected text"),
    ("method.rslora", 1, "method.rslora is 1 (int), expected bool"),
    ("optim.learning_rate", "fast", "expected float"),
    ("optim.learning_rate", True, "expected float"),
    ("optim.clip", "none", "expected float or None"),
    ("data.columns", "ab", "data.columns is 'ab' (str)"),
    ("data.columns", [1], "data.columns[0] is 1"),
    ("data.template", {1, 2}, "data.template is {1, 2} (set), expected text"),
    ("data.train", [1], "data.train[0] is 1"),
    ("data.validation", True, "data.validation is True"),
    ("train.mesh", [2], "train.mesh is [2] (list), expected dict or None"),
    ("seed", 1.5, "seed is 1.5 (float), expected int"),
    ("seed", 2**70, "config key seed is 1180591620717411303424 (int), expected at most 2147483647"),
    ("method.rank", 10**400, "00 (int), expected at most 1048576"),
    ("optim.learning_rate", 10**400, "00 (int), expected float"),
    ("optim.learning_rate", 1e38, "optim.learning_rate is 1e+38 (float), expected at most 1e+30"),
    ("train.steps", 2**63, "train.steps is 9223372036854775808 (int), expected at most 2147483647"),
    ("train.mesh", {"dta": 2}, "train.mesh has the key 'dta' (str)"),
    ("train.mesh.data", 0, "train.mesh.data is 0 (int), expected -1 or at least 1"),
    ("train.mesh.data", -2, "train.mesh.data is -2"),
    ("train.mesh.data", 2.0, "train.mesh.data is 2.0"),
    ("train.mesh.data", True, "train.mesh.data is True"),
    ("train.parallel", "pmapp", "did you mean 'pmap'?"),
    ("data.validation", 1.5, "data.validation is 1.5"),
    ("model.quantize", "int4", "model.quantize is 'int4' (str), expected 'int8' or 'nf4' or None"),
    ("data.overlap", "drp", "expected 'error', 'drop' or 'allow'; did you mean 'drop'?"),
    ("method", {"name": "p_tuning", "hidden": 2 * 10**9}, "expected at most 1048576 or None"),
    ("method", {"name": "lora", 1: 2}, "keys that are not text"),
    ("data.buckets", 2**30, "data.buckets is 1073741824 (int), expected at most 1048576"),
    ("method.ranks", {"q_proj": 0}, "method.ranks.q_proj is 0 (int), expected at least 1"),
    ("evaluate.top_p", 0, "evaluate.top_p is 0 (int), expected above 0 or None"),
    ("optim", 3, "config.optim is 3, expected a section"),
    ("optim", [], "config.optim is [], expected a section"),
    ("seed.x", 3, "unknown config key seed.x: seed is 0, not a section"),
    ("data..train", "x", "unknown config key 'data..train', expected names such as"),
    ("data.__class__", "x", "unknown config key 'data.__class__'"),
    ("data.items", "x", "unknown config key 'data.items'"),
    ("model.dtype", "float16", "expected 'float32' or 'bfloat16'"),
    (
      "model.attention",
      "flash",
      "model.attention is 'flash' (str), expected 'plain', 'splash' or 'cudnn'",
    ),
    ("model.unroll", 0, "model.unroll is 0 (int), expected at least 1"),
    ("model.path", "", "model.path is '' (str), expected text that is not empty"),
    ("data.train", {}, "data.train is {} (dict), expected text or list or None"),
  ],
)
def test_a_wrong_config_is_refused(key, value, says):
  with pytest.raises(UserError) as error:
    complete({key: value})
  assert says in str(error.value)


@pytest.mark.parametrize(
  ("key", "value"),
  [
    ("optim.learning_rate", 1),
    ("optim.clip", None),
    ("method.scale", 2),
    ("method.targets", ["q_proj"]),
    ("method.targets", ("q_proj", "o_proj")),
    ("evaluate.metrics", []),
    ("data.train", ["a.jsonl", "b.jsonl"]),
    ("data.validation", 0.1),
    ("data.validation", 20),
    ("data.rename", {"summary": ("summary", ("summary1", "summary2"))}),
    ("train.mesh", {"data": 2}),
    ("method.ranks", {"attn.q_proj": 1}),
  ],
)
def test_a_fitting_value_is_taken(key, value):
  section, name = key.split(".")
  assert complete({key: value})[section][name] == value


def test_keys_of_values_have_dots_and_other_keys_do_not(tmp_path):
  given = {"method": {"name": "lora", "ranks": {"mlp/.*": 4}}, "data": {"train": "a.jsonl"}}
  (tmp_path / "c.json").write_text(json.dumps(given))
  read = config.load_config(tmp_path / "c.json", {"seed": 1})
  assert config.complete(read)["method"]["ranks"] == {"mlp/.*": 4}
  with pytest.raises(UserError, match=r"optim\.learning_rate"):
    config.complete({"optim.learning_rate": 0.1} | given)
  with pytest.raises(UserError, match="'lora.py', expected a dict; `load_config` reads"):
    config.complete("lora.py")


def test_a_required_key_is_asked_for():
  with pytest.raises(UserError, match="config key data.train is required"):
    config.complete({"model": {"path": "folder"}})


def owners():
  """Yields every section's name, the function that owns it, and what it is not given."""
  for section, (owner, supplied) in config.SECTIONS.items():
    yield section, owner, supplied
  for found in pkgutil.iter_modules(objectives.__path__):
    yield (
      f"objective {found.name}",
      objectives.module(found.name).loss,
      objectives.supplied(found.name),
    )
  for found in pkgutil.iter_modules(methods.__path__):
    yield f"method {found.name}", peft.constructor(found.name), set()


def numbers_without_a_range(expected) -> bool:
  parts = typing.get_args(expected)
  if typing.get_origin(expected) is typing.Annotated:
    return parts[0] in (int, float) and not {type(bound) for bound in parts[1:]} & {Ge, Gt}
  if typing.get_origin(expected) is typing.Literal:
    return False
  return expected in (int, float) or any(map(numbers_without_a_range, parts))


@pytest.mark.parametrize(("section", "owner", "supplied"), list(owners()))
def test_every_number_that_a_config_sets_has_a_range(section, owner, supplied):
  hints = typing.get_type_hints(owner, include_extras=True)
  for name, parameter in inspect.signature(owner).parameters.items():
    if name not in supplied:
      assert not numbers_without_a_range(hints[name]), f"{section}.{name}: {hints[name]}"
      schema.check(f"the default of {section}.{name}", parameter.default, hints[name])


def test_overriding_leaves_the_original_alone():
  original = ConfigDict({"optim": {"learning_rate": 1e-3}, "method": {"name": "lora"}})
  changed = config.override(
    original, {"optim.learning_rate": 1, "train.steps": 5, "method": {"name": "full"}}
  )
  assert original.to_dict() == {"optim": {"learning_rate": 1e-3}, "method": {"name": "lora"}}
  assert changed.optim.learning_rate == 1 and changed.train.steps == 5
  assert changed.method.to_dict() == {"name": "full"}


def test_a_section_that_is_none_is_as_one_that_is_not_there():
  """So the config of a finished run, which states every default, takes the same overrides."""
  found = config.override(complete({}), {"data.rename.text": "review"})
  assert config.complete(found)["data"]["rename"] == {"text": "review"}


def test_a_sweep_of_sections_is_written_as_what_it_is():
  swept = {"sweep": ({"method": [ConfigDict({"name": "lora", "rank": 4})], "seed": [1, 0]},)}
  axes = {"method": [{"name": "lora", "rank": 4}], "seed": [1, 0]}
  assert json.loads(config.to_json(swept)) == {"sweep": [axes]}


def test_overrides_are_read_as_python_values():
  lines = [
    "a.b=1e-3", "a.c=(1, 2)", "a.d=None", "a.e=True", "a.f=some text", "a.g='3'", "a.h=x=y",
    "a.i=['q_proj']", "a.j={'data': 2}", "a.k=", "a.l=q_proj",
  ]  # fmt: skip
  found = config.parse_overrides(["--config." + line for line in lines])
  assert list(found.values()) == [
    1e-3, (1, 2), None, True, "some text", "3", "x=y", ["q_proj"], {"data": 2}, "", "q_proj",
  ]  # fmt: skip
  texts = ["{{'x'}}", "{[1]}", "{{1,2}}", "{{ x }}", "[" * 10_000]  # what is no literal is text
  found = config.parse_overrides([f"--config.{n}={text}" for n, text in enumerate(texts)])
  assert list(found.values()) == texts
  for wrong in ("--confg.a=1", "--config.a", "a=1", "--optim.learning_rate=1"):
    with pytest.raises(UserError, match="--config.section.key=value"):
      config.parse_overrides([wrong])


def test_a_config_file_takes_an_argument(tmp_path):
  file = tmp_path / "one.py"
  file.write_text(
    "from ml_collections import ConfigDict\n"
    "def get_config(arg='8'):\n"
    "  return ConfigDict({'method': {'name': 'lora', 'rank': int(arg)}})\n"
  )
  assert config.load_config(file).method.rank == 8
  assert config.load_config(f"{file}:4").method.rank == 4
  assert config.load_config(f"{file}:4", {"method.rank": 2}).method.rank == 2
  at = tmp_path / "at 12:30"  # such as the folder of a sweep
  at.mkdir()
  (at / "config.json").write_text('{"seed": 3}')
  assert config.load_config(at / "config.json").seed == 3
  file.rename(at / file.name)
  assert config.load_config(f"{at / file.name}:4").method.rank == 4


@pytest.mark.parametrize(
  ("text", "says"),
  [
    ("def get_config(:\n", "one.py:1: SyntaxError"),
    ("\nimport no_such_module\n", "one.py:2: ModuleNotFoundError"),
    ("def get_config():\n  a = 1\n  return 1 / 0\n", "one.py:3: ZeroDivisionError"),
    ("def config():\n  pass\n", "no function get_config"),
    ("def get_config():\n  return None\n", "returned None, expected a ConfigDict"),
    ("get_config = 3\n", "no function get_config"),
    ("import sys\ndef get_config():\n  sys.exit()\n", "one.py:3: SystemExit"),
    ("def get_config():\n  return get_config()\n", "one.py:2: RecursionError"),
    ("def get_config():\n  raise MemoryError\n", "one.py:2: MemoryError"),
    ("def get_config():\n  return " + "[" * 10**5, "one.py:2: SyntaxError: too many nested"),
    ("class Odd:\n  __repr__ = 3\ndef get_config():\n  return Odd()\n", "returned <Odd inst"),
    ("def get_config():\n  raise ValueError('x' * 10**6)\n", "one.py:2: ValueError: xxx"),
    ("a = 1\0", "one.py:1: .*null bytes"),
    ("\xe9", "one.py:1: SyntaxError"),
  ],
)
def test_a_broken_config_file_is_one_error(tmp_path, text, says):
  file = tmp_path / "one.py"
  file.write_text(text, encoding="latin-1")
  with pytest.raises(UserError, match=says):
    config.load_config(file)


def test_a_config_file_may_define_dataclasses(tmp_path):
  path = tmp_path / "one.py"
  path.write_text(
    "from __future__ import annotations\nfrom dataclasses import dataclass\n\n@dataclass\n"
    "class Sizes:\n  rank: int = 3\n\ndef get_config():\n"
    "  return {'method': {'name': 'lora', 'rank': Sizes().rank}}\n"
  )
  assert config.load_config(path).method.rank == 3


def test_a_config_file_that_takes_no_argument_says_so(tmp_path):
  file = tmp_path / "one.py"
  file.write_text("def get_config():\n  return {}\n")
  with pytest.raises(UserError, match="get_config"):
    config.load_config(f"{file}:4")


def test_a_missing_config_file_names_the_nearest(tmp_path):
  (tmp_path / "ranks.py").write_text("")
  with pytest.raises(UserError, match="no config file.*ranks.py"):
    config.load_config(tmp_path / "rank.py")


def test_a_config_file_needs_no_ending_and_no_folder_is_one(tmp_path):
  (tmp_path / "one").write_text("def get_config():\n  return {'seed': 3}\n")
  assert config.load_config(tmp_path / "one").seed == 3
  for wrong in (tmp_path, "x" * 5000, "a\0b"):
    with pytest.raises(UserError, match="no config file"):
      config.load_config(wrong)


PLAIN_DATA = st.recursive(
  st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
  lambda inner: (
    st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
  ),
  max_leaves=5,
)
KEYS = ["seed", "method", "method.rank", "method.ranks", "objective", "objective.label_smoothing"]
for section, (owner, supplied) in config.SECTIONS.items():
  KEYS += [f"{section}.{n}" for n in inspect.signature(owner).parameters if n not in supplied]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=8), PLAIN_DATA, max_size=3))
def test_whatever_a_config_holds_it_is_completed_or_refused_in_words(changes):
  try:
    full = complete(changes)
  except UserError:
    return
  text = config.to_json(full)
  assert config.to_json(config.complete(json.loads(text))) == text
