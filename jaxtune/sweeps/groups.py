"""Which trials share a compiled program, and what a program will cost."""

from __future__ import annotations

import json
from typing import Any

from jaxtune import peft
from jaxtune.training import optim

# Options of the data that change no shape of a batch: each trial of a group may have its own.
SHARES = ("mixture", "temperature", "cap")
WORDS = ("template", "answer", "choices", "rename", "only", *SHARES)


def groups(configs: list[dict]) -> list[list[int]]:
  """Puts configs that differ in numbers or words only together: one group, one compiled program.

  Numbers are the seed, the optimizer's (learning rate, warm-up, weight decay), regularisation and
  the methods' own (rank, alpha, dropout, prefix length, adapter width); words are the prompt's
  template, the answers, which rows are kept and each task's share. Anything else changes the
  program.

  Returns:
    Lists of indices into `configs`, in order of first appearance.
  """
  found: dict[str, list[int]] = {}
  for i, config in enumerate(configs):
    found.setdefault(signature(config), []).append(i)
  return list(found.values())


def signature(config: dict) -> str:
  """Writes down all of a completed config that is compiled into its program."""
  static = {name: section for name, section in config.items() if name != "seed"}
  if config["model"]["path"] is None:
    static["seed"] = config["seed"]  # the base itself is drawn from it
  static["optim"] = {k: v for k, v in config["optim"].items() if k not in optim.NUMBERS}
  static["method"] = _static_method(config["method"])
  static["regularize"] = any(config["regularize"].values())
  # Batches of several shapes come in an order that hangs on the data, so each has its program.
  words = WORDS if config["data"]["buckets"] == 1 else ()
  static["data"] = {k: v for k, v in config["data"].items() if k not in words}
  return json.dumps(static, sort_keys=True, default=str)


def _static_method(section: dict) -> Any:
  if section["name"] == "stack":
    return {key: part if key == "name" else _static_method(part) for key, part in section.items()}
  (method,) = peft.build(section)
  return {key: value for key, value in section.items() if key not in method.numbers}
