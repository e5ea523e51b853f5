"""Finds the trials of a sweep that share a compiled program."""

from __future__ import annotations

import json
from typing import Any

from jaxtune import objectives, peft
from jaxtune.runs import programs
from jaxtune.training import optim

# Options of the data that do not change the shape of a batch: they may differ within a group.
SHARES = ("mixture", "temperature", "cap")
WORDS = ("template", "answer", "choices", "rename", "only", "limit", *SHARES)


def groups(configs: list[dict]) -> list[list[int]]:
  """Groups configs that can share a compiled program: they differ in numbers or words only.

  Numbers are the seed, those of the optimizer (learning rate, warm-up, weight decay, head ratio),
  of regularisation, of the objective (such as beta) and of the methods (rank, alpha, dropout,
  prefix length, adapter width). Words are the prompt's template, the answers, which and how many
  rows are kept and each task's share.
  Anything else changes the program, and with noise such as dropout so does a prompt's length, as it
  is drawn for the tokens of a row. Where words make rows longer, those of all trials are padded to
  them, and noise is drawn for the longer rows: other draws than in a solo run.

  Returns:
    Lists of indices into `configs`, in order of first appearance.
  """
  indices: dict[str, list[int]] = {}
  for i, config in enumerate(configs):
    key = json.dumps(_static(config), sort_keys=True, default=str)
    indices.setdefault(key, []).append(i)
  return list(indices.values())


def differences(configs: list[dict]) -> list[dict[str, Any]]:
  """Says why configs cannot share a compiled program.

  Args:
    configs: one of each group.

  Returns:
    Of each config, {key: value} for the keys in which it differs from another one. The options of a
    method are compared with those of the same method.
  """
  flat = [_flat(_static(config)) for config in configs]
  text = lambda value: json.dumps(value, sort_keys=True, default=str)

  def differs(one: dict, key: str) -> bool:
    option = key.startswith("method.") and not key.endswith(".name")
    peers = (o for o in flat if not option or o["method.name"] == one["method.name"])
    return any(text(other.get(key)) != text(one[key]) for other in peers)

  return [{key: one[key] for key in one if differs(one, key)} for one in flat]


def _flat(static: dict, path: str = "") -> dict[str, Any]:
  """Replaces sections, and the methods of a stack, by their keys."""
  flat: dict[str, Any] = {}
  for key, value in static.items():
    if isinstance(value, dict) and (not path or "name" in value):
      flat |= _flat(value, f"{path}{key}.")
    else:
      flat[path + key] = value
  return flat


def _static(config: dict) -> dict:
  """Returns the entries of a config that its compiled program depends on."""
  static = {name: section for name, section in config.items() if name != "seed"}
  if config["model"]["path"] is None:
    static["seed"] = config["seed"]  # the base's weights are drawn from it
  static["optim"] = {k: v for k, v in config["optim"].items() if k not in optim.NUMBERS}
  static["method"] = _static_method(config["method"], programs.uses_noise(config))
  static["objective"] = objectives.static(config["objective"])
  static["regularize"] = any(config["regularize"].values())
  # With several shapes of batches, the order of the shapes depends on the data.
  words = WORDS if config["data"]["buckets"] == 1 else ()
  static["data"] = {k: v for k, v in config["data"].items() if k not in words}
  return static


def _static_method(section: dict, noise: bool) -> Any:
  if section["name"] == "stack":
    parts = {key: _static_method(part, noise) for key, part in section.items() if key != "name"}
    return {"name": "stack", **parts}
  (method,) = peft.build(section)
  free = {*method.groupable} - ({"length"} if noise and method.prepends else set())
  return {key: value for key, value in section.items() if key not in free}


def baseline_key(config: dict) -> str:
  """Returns a text that is equal for configs whose untuned base scores the same.

  The seed counts where it draws demonstrations.
  """
  data = {key: value for key, value in config["data"].items() if key not in SHARES}
  seed = f"seed {config['seed']}" if config["evaluate"]["shots"] else ""
  numbers = objectives.judged_by(config["objective"])
  policy = objectives.rolls_out(objectives.module(config["objective"]["name"]))
  rewards = config["rollout"] if policy else None
  references = objectives.references(config["objective"], config["method"])
  own = json.dumps([numbers, rewards, references], sort_keys=True, default=str)
  return data_key(config | {"data": data}) + seed + own


def data_key(config: dict) -> str:
  """Returns a text that is equal for configs of the same model, data and evaluation."""
  sections = {name: config[name] for name in ("data", "evaluate")}
  return model_key(config) + json.dumps(sections, sort_keys=True, default=str)


def model_key(config: dict) -> str:
  """Returns a text that is equal for configs of the same model and head."""
  sections = {"model": config["model"], "objective": objectives.static(config["objective"])}
  if config["model"]["path"] is None:  # its weights are drawn
    sections["seed"] = config["seed"]
  return json.dumps(sections, sort_keys=True, default=str)
