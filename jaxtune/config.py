"""Reads, completes and checks an experiment's configuration.

A config file is Python with `get_config(arg=None) -> ml_collections.ConfigDict`. Each section is
passed as keyword arguments to the one function that owns it; that function's signature holds the
names, types and defaults, so there is nothing else to declare and nothing else to look up.
"""

from __future__ import annotations

import ast
import contextlib
import inspect
import json
import os
import traceback
import typing
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from jaxtune import data, libraries, objectives, peft, schema
from jaxtune.errors import UserError, check_known, nearest
from jaxtune.evaluation.options import EvaluateOptions
from jaxtune.models import hf
from jaxtune.peft import unions
from jaxtune.peft.methods import regularize
from jaxtune.training import optim
from jaxtune.training.options import RolloutOptions, SearchOptions, TrainOptions

# section: (the function that owns it, arguments that the caller supplies)
SECTIONS = {
  "model": (hf.load, {"head", "labels", "seed", "parallel"}),
  "data": (data.DataOptions, set()),
  "regularize": (regularize.method, set()),
  "optim": (optim.make, {"numbers", "steps"}),
  "train": (TrainOptions, set()),
  "evaluate": (EvaluateOptions, set()),
  "search": (SearchOptions, set()),
  "rollout": (RolloutOptions, set()),
}
# Keys of values, such as patterns of sites and names of tasks, may have dots.
_open = partial(ConfigDict, allow_dotted_keys=True)
KEYS = {"seed", "method", "objective", "sweep", *SECTIONS}


def unplaced(config: dict) -> dict:
  """Returns a completed config without what a run may change when it goes on.

  This is its mesh, its cache and the number of places, none of which changes its results.
  """
  return config | {
    "train": config.get("train", {}) | {"mesh": None, "compilation_cache": None},
    "search": config.get("search", {}) | {"places": None},
  }


def as_now(found: dict) -> dict:
  """Returns a config that was read from JSON as it compares with a completed one, `unplaced`.

  Keys that are newer than it had what is now their default.
  """
  with contextlib.suppress(UserError):  # then it is another one, which comparing says best
    found = json.loads(json.dumps(complete(found), default=str))
  return unplaced(found)


def load_config(path: str | Path, overrides: dict[str, Any] | None = None) -> ConfigDict:
  """Runs a config file's `get_config` and sets overrides such as {"optim.learning_rate": 1e-3}.

  Args:
    path: "configs/lora.py", or "configs/lora.py:ARG" to pass ARG to get_config; or a config.json,
      such as that of a sweep's folder. Folders may have colons in their names.
  """
  parts = str(path).split(":")
  files = [":".join(parts[:count]) for count in range(len(parts), 0, -1)]
  file = next(filter(os.path.isfile, files), parts[0])
  argument = str(path)[len(file) + 1 :]
  if not os.path.isfile(file):
    folder = os.path.dirname(file) if os.path.isdir(os.path.dirname(file)) else "."
    raise UserError(f"no config file {file!r}; {nearest(file, Path(folder).glob('*.py'))}")
  read = _read_json if file.endswith(".json") else _run_file
  return override(read(file, argument), overrides or {})


def _read_json(file: str, argument: str) -> ConfigDict:
  """Reads a config as `to_json` writes it."""
  content = schema.read_json(Path(file))
  schema.check(file, content, dict)
  if isinstance(content.get("sweep"), dict):  # a ConfigDict sorts its keys, and axes have an order
    content["sweep"] = [content["sweep"]]
  if argument:
    raise UserError(f"{file} takes no argument, got {argument!r}: only a Python config does")
  return _open(content)


def _run_file(file: str, argument: str) -> ConfigDict:
  """Calls a config file's get_config, and says in which line it fails."""
  try:
    module = libraries.run_file(file)
    if not callable(getattr(module, "get_config", None)):
      raise UserError(f"{file} has no function get_config()")
    config = module.get_config(argument) if argument else module.get_config()
    if not isinstance(config, ConfigDict | dict):
      said = schema.shown(config)
      raise UserError(f"get_config() in {file} returned {said}, expected a ConfigDict")
    return _open(to_dict(config))
  except (UserError, KeyboardInterrupt):
    raise
  except BaseException as error:  # sys.exit() too: it would end in success, with nothing done
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == file]
    line = getattr(error, "lineno", None) or (lines or [1])[-1]
    said = traceback.format_exception_only(error)[-1].strip()
    raise UserError(f"{file}:{line}: {said}") from error


def override(config: ConfigDict, overrides: dict[str, Any]) -> ConfigDict:
  """Returns a copy with dotted keys set; a key may also name a whole section."""
  config = _open(to_dict(config))
  for key, value in overrides.items():
    *sections, last = names = key.split(".")
    if any(not name or hasattr(ConfigDict, name) for name in names):
      raise UserError(f"unknown config key {key!r}, expected names such as optim.learning_rate")
    section = config
    for name in sections:
      if section.get(name) is None:  # a completed config has None where nothing was given
        section[name] = _open()
      section = section[name]
      if not isinstance(section, ConfigDict):
        raise UserError(f"unknown config key {key}: {name} is {section!r}, not a section")
    try:
      with section.ignore_type():
        whole = isinstance(value, dict)
        section[last] = _open(value) if whole else value
    except (AttributeError, KeyError, TypeError, ValueError) as error:
      # A value that is a dict may have keys that no ConfigDict accepts.
      raise UserError(f"config key {key} is {schema.shown(value)}: {error}") from error
  return config


def parse_overrides(arguments: list[str]) -> dict[str, Any]:
  """Turns ["--config.optim.learning_rate=1e-3"] into {"optim.learning_rate": 0.001}."""
  overrides: dict[str, Any] = {}
  for argument in arguments:
    key, equals, value = argument.partition("=")
    if not key.startswith("--config.") or not equals:
      raise UserError(f"unknown argument {argument!r}; overrides are --config.section.key=value")
    # A value that is not a Python literal stays text.
    with contextlib.suppress(ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
      value = ast.literal_eval(value)
    overrides[key.removeprefix("--config.")] = value
  return overrides


def complete(config: Any) -> dict:
  """Checks every key and type against its owner, and fills in the defaults.

  Raises:
    UserError: an unknown section, key or method (names the nearest), or a value of a wrong type.
  """
  config = to_dict(config)
  for section in config:
    check_known("config section", section, KEYS)
  seed = config.get("seed", 0)
  schema.check("config key seed", seed, schema.Seed)
  full = {
    "seed": seed,
    "method": complete_method(config.get("method", {"name": "lora"})),
    "objective": _complete_objective(config.get("objective") or {}),
  }
  for section, (owner, supplied) in SECTIONS.items():
    given = config.get(section)
    if not isinstance(given, dict | None):
      raise UserError(f"config.{section} is {given!r}, expected a section such as {{'key': value}}")
    full[section] = _complete_section(section, given or {}, owner, supplied)
  if full["data"]["train"] is None and not isinstance(full["data"]["tasks"], dict):
    raise UserError("config key data.train is required (or data.tasks, with one for each task)")
  _check_tasks(full["data"]["tasks"])
  return full


def _check_tasks(tasks: Any) -> None:
  """Checks the types of the options that the tasks of a mixture have for themselves."""
  hints = typing.get_type_hints(data.DataOptions, include_extras=True)
  for name, options in tasks.items() if isinstance(tasks, dict) else ():
    for key, value in options.items() if isinstance(options, dict) else ():
      schema.check(f"config key data.tasks.{name}.{key}", value, hints.get(key, Any))


def _complete_objective(section: dict) -> dict:
  if not isinstance(section, dict):
    raise UserError(f"config.objective is {section!r}, expected a section with a name")
  options = {"name": "sft"} | section
  name = options.pop("name")
  owner, supplied = objectives.module(name).loss, objectives.supplied(name)
  return {"name": name} | _complete_section("objective", options, owner, supplied)


def complete_method(section: dict, path: str = "method") -> dict:
  """Completes the section of a method, or those of all methods in a stack or a union."""
  if not isinstance(section, dict) or "name" not in section:
    raise UserError(f"{path} needs a name, for example {{'name': 'lora', 'rank': 8}}")
  options = unions.expand(section)
  name = options.pop("name")
  if name == "stack":
    if not options:
      raise UserError(f"{path} is a stack without methods")
    full = {"name": "stack"}
    for key, part in sorted(options.items()):  # the order of a ConfigDict, also for a dict
      named = {"name": key, **part} if isinstance(part, dict) else part
      full[key] = complete_method(named, f"{path}.{key}")
    return full
  start = options.pop("start", None)
  schema.check(f"config key {path}.start", start, schema.Text | None)
  options = _complete_section(path, options, peft.constructor(name), set())
  return {"name": name, "start": start} | options


def _complete_section(section: str, given: dict, owner: Any, supplied: set[str]) -> dict:
  parameters = inspect.signature(owner).parameters.values()
  defaults = {p.name: p.default for p in parameters if p.name not in supplied}
  for key in given:
    if key not in defaults:
      raise UserError(f"unknown config key {section}.{key}; {nearest(key, defaults)}")
  schema.check_arguments(owner, given, f"config key {section}.")
  return defaults | given


def to_dict(config: Any) -> dict:
  """Copies a ConfigDict, or a dict, into plain nested dicts."""
  if not isinstance(config, ConfigDict | Mapping):
    said = schema.shown(config)
    raise UserError(f"a config is {said}, expected a dict; `load_config` reads one from a file")
  try:
    return config.to_dict() if isinstance(config, ConfigDict) else dict(config)
  except TypeError as error:  # a ConfigDict sorts its keys
    raise UserError(f"a config has keys that are not text: {error}") from error


def to_json(config: dict) -> str:
  """Writes a config as JSON with sorted keys, as a sweep's folder keeps it.

  The axes of a sweep keep their order, which the names of its trials follow.
  """
  plain = lambda value: value.to_dict() if isinstance(value, ConfigDict) else str(value)
  ordered = json.loads(json.dumps(config, sort_keys=True, default=plain))
  if "sweep" in config:
    ordered["sweep"] = config["sweep"]
  return json.dumps(ordered, indent=2, default=plain)
