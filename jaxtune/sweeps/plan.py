"""Which trials share a compiled program, and what a program will cost."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import jax

from jaxtune import optim, peft
from jaxtune.setup import Setup, make_methods, tokenizing

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


def targets(
  methods: tuple[peft.Method, ...], sites: dict, params: Any, tokenize: Callable | None = None
) -> list[tuple]:
  """Lists what every pattern of every method hit: the target plan.

  Returns:
    Rows (method, pattern, site, arrays with shapes, trained parameters).
  """
  key = jax.random.key(0)
  rows, counted = [], set()
  for method in methods:
    make = lambda p, m=method: peft.init(key, (m,), sites, p, tokenize)
    tuned, _, _ = jax.eval_shape(make, params)
    for site, arrays in peft.own(method, tuned["peft"]).items():
      pattern = next((p for p in method.patterns if peft.hits(p, site)), "")
      shapes = ", ".join(f"{name} {tuple(x.shape)}" for name, x in arrays.items())
      rows.append((method.name, pattern, site, shapes, sum(x.size for x in arrays.values())))
    for path, leaf in peft.tree.flatten(tuned["params"]).items():
      if path not in counted:  # a head may be moved by its own method and by "full"
        rows.append((method.name, "moved", path, str(tuple(leaf.shape)), leaf.size))
      counted.add(path)
  return rows


def describe(config: dict, setup: Setup) -> str:
  """Lays out what a config would train."""
  methods = make_methods(config, setup.pretrained.fresh)
  params, tokenize = setup.pretrained.params, tokenizing(setup.pretrained)
  return describe_targets(targets(methods, setup.sites, params, tokenize))


def describe_targets(rows: list[tuple]) -> str:
  """Lays the target plan out as a table with a total."""
  cells = [("method", "pattern", "site", "arrays", "trained")]
  cells += [(*row[:4], f"{row[4]:,}") for row in rows]
  cells.append(("total", "", "", "", f"{sum(row[4] for row in rows):,}"))
  widths = [max(len(row[i]) for row in cells) for i in range(5)]
  line = lambda row: "  ".join(
    text.rjust(w) if i == 4 else text.ljust(w)
    for i, (text, w) in enumerate(zip(row, widths, strict=True))
  )
  return "\n".join(line(row).rstrip() for row in cells)
