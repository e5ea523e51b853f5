"""Makes a sweep of a data file alone: what is not said is assumed, and what is assumed is said."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxtune import config as configs_
from jaxtune import objectives, peft, schema
from jaxtune.api import columns
from jaxtune.api.dry_run import DryRun, count, dry_run, duration
from jaxtune.api.sweep import MOST_TRIALS, check_overrides
from jaxtune.assets import TINY
from jaxtune.data import sources
from jaxtune.errors import UserError
from jaxtune.files import expanded
from jaxtune.models import hf
from jaxtune.peft import unions
from jaxtune.sweeps import declare

# The sizes at which methods are compared, by the option that a method has.
SIZES = {"width": (16,), "length": (4, 16), "rank": (1, 4, 16)}
FIXED = {"lora": {"scale": 2.0}}  # so that the rank is all that a rank changes
SLOW, QUICK, QUICKEST = (1e-4, 3e-4, 1e-3, 3e-3), (1e-3, 3e-3, 1e-2, 3e-2), (1e-2, 3e-2, 0.1, 0.3)
RATES = {"full": SLOW, "last_layers": SLOW} | dict.fromkeys(
  ("prefix", "prompt", "p_tuning", "ia3", "vera", "norms", "head"), QUICKEST
)  # of all other methods QUICK
FEWEST_ROWS = 10
# Rows that cannot be used are left out, and counted; of validation and of test 200 are judged.
POLICIES = {
  "too_long": "skip", "no_target": "skip", "malformed": "skip", "special_tokens": "strip",
  "overlap": "drop", "eval_limit": 200,
}  # fmt: skip
COMPLETED = 50  # prompts that are answered
EPOCHS, FEWEST_STEPS, MOST_STEPS, BATCH = 3, 20, 100, 8
LONGEST, LONGEST_ANSWER = 256, 48  # tokens


class Proposal(NamedTuple):
  """A sweep that was made of a data file.

  Attributes:
    config: the sweep's config, as a config file would give it.
    assumed: {what: how}, in words; its text.
    expected: what it takes.
  """

  config: Any
  assumed: dict[str, str]
  expected: DryRun

  def __str__(self) -> str:
    width = max(map(len, self.assumed))
    return "\n".join(f"  {what:<{width}}  {how}" for what, how in self.assumed.items())


def propose(
  data: str | Path,
  methods: Sequence[str] = ("lora", "prefix"),
  *,
  ranks: Sequence[int] | None = None,
  lengths: Sequence[int] | None = None,
  widths: Sequence[int] | None = None,
  rates: Sequence[float] | None = None,
  seeds: Sequence[int] = (0, 1, 2),
  model: str | Path | None = None,
  task: str | None = None,
  prompt: str | None = None,
  answer: str | None = None,
  steps: int | None = None,
  overrides: Mapping[str, Any] | None = None,
  most_trials: int = MOST_TRIALS,
) -> Proposal:
  """Makes a sweep of a data file: 80 % of its rows train, 10 % validate and 10 % test.

  Args:
    data: JSON lines, CSV, TSV or Parquet; see `data.sources.read`.
    methods: names of methods. Every one is compared at each value of its size: of its width where
      it has one, as adapters and Compacter do, else of its length, else of its rank.
    rates: learning rates from which each configuration gets its own, on validation; default those
      of RATES.
    model: a Hugging Face folder or hub name; default the bundled base.
    task: an objective; default what the columns suggest, see `columns.guess`.
    prompt, answer: columns; default the known ones, or the first and the second of two.
    overrides: {config key: value}.
    most_trials: as for `sweep`.

  Raises:
    UserError: a file that cannot be read or has too few rows, columns that are not known, sizes
      that none of the methods has.
  """
  table = sources.read(str(data))
  if (rows := len(table.rows)) < FEWEST_ROWS:
    raise UserError(f"{data} has {rows} rows, expected {FEWEST_ROWS} or more to divide")
  found = columns.guess(table, str(data), task, prompt, answer)
  grids = _grids(methods, {"rank": ranks, "length": lengths, "width": widths}, rates, seeds)
  path = str(TINY if model is None else _absolute(model))
  longest, new_tokens = _lengths(path, found.task, lengths or SIZES["length"])
  part = round(rows / 10)
  files = {"train": _absolute(data), "validation": part, "test": part, "max_length": longest}
  if model is None and "conversations" in found.assumed:  # the bundled model has no template
    files["chat_template"] = "plain"
  written = {"generate": True, "max_new_tokens": new_tokens, "limit": COMPLETED}
  config = {
    "model": {"path": path},
    "data": files | POLICIES | found.options,
    "objective": {"name": found.task},
    "evaluate": written if found.answers else {},
    "sweep": grids,
    **_training(steps, rows),
  }
  config = _changed(config, overrides or {})
  expected = dry_run(config, most_trials)
  return Proposal(config, found.assumed | _assumed(config, rows, expected), expected)


def _changed(config: dict, overrides: Mapping[str, Any]) -> dict:
  """Returns a config with overrides, of which none may concern the sweep's axes."""
  if "sweep" in overrides:
    raise UserError("--config.sweep is made of --methods, --ranks, ...: give --config in place")
  check_overrides(config, overrides)
  return configs_.override(config, overrides).to_dict()


def _training(steps: int | None, rows: int) -> dict[str, dict]:
  """Returns the sections of training: by default EPOCHS over the rows, within limits."""
  if steps is None:
    steps = min(max(EPOCHS * rows * 8 // 10 // BATCH, FEWEST_STEPS), MOST_STEPS)
  schema.check("--steps", steps, schema.Count)
  return {
    "optim": {"schedule": "linear", "warmup": steps // 10},
    "train": {"steps": steps, "batch_size": BATCH, "eval_every": max(steps // 4, 1)},
  }


def _grids(
  methods: Sequence[str],
  sizes: dict[str, Sequence[int] | None],
  rates: Sequence[float] | None,
  seeds: Sequence[int],
) -> tuple[dict, ...]:
  """Returns a grid of each method, with its sizes, its rates and all seeds."""
  size_of = {name: next((s for s in SIZES if s in _options(name)), None) for name in methods}
  for size, values in sizes.items():
    if values is not None and size not in size_of.values():
      having = {"rank": "lora", "length": "prefix", "width": "adapter"}[size]
      raise UserError(
        f"--{size}s hits none of the methods {', '.join(methods)}, whose size is no {size}: leave "
        f"it out, or add one whose size it is, such as {having}"
      )
  grids = []
  for name, size in size_of.items():
    chosen = [{size: value} for value in sizes[size] or SIZES[size]] if size else [{}]
    sections = [{"name": name, **one, **FIXED.get(name, {})} for one in chosen]
    tried = list(rates or RATES.get(name, QUICK))
    rate = declare.tune(tried) if len(tried) > 1 else tried[0]
    axes = {"method": sections, "optim.learning_rate": [rate], "seed": list(seeds)}
    grids.append(declare.grid(axes))
  return declare.chain(*grids)


def _options(method: str) -> Collection[str]:
  """Returns the names of a method's options; of a union none, as its parts have them."""
  if method in unions.UNIONS:
    return ()
  if method in ("stack", "regularize"):
    raise UserError(f"--methods has {method!r}, which needs a config: expected such as lora")
  return inspect.signature(peft.constructor(method)).parameters


def _lengths(model: str, task: str, prefixes: Sequence[int]) -> tuple[int, int]:
  """Returns how many tokens a row and an answer may have, beside the longest prefix."""
  positions = hf.language(model, head=objectives.module(task).HEAD)[1].positions
  answer = min(LONGEST_ANSWER, positions // 4)
  row = min(LONGEST, positions - answer - max(prefixes))
  if row < 2:
    raise UserError(
      f"--lengths has {max(prefixes)}, expected less than the model's {positions} positions"
    )
  return row, answer


def _absolute(path: str | Path) -> str:
  """Returns the absolute path of a file or folder, or a hub name as it is."""
  place = expanded(path)
  return str(place.absolute()) if place.exists() else str(path)


def _assumed(config: dict, rows: int, expected: DryRun) -> dict[str, str]:
  """Says in words what a config assumes beside the columns."""
  train, grids = config["train"], config["sweep"]
  sections = [section for axes in grids for section in axes["method"]]
  named = [" ".join([s["name"], *(f"{k} {s[k]}" for k in SIZES if k in s)]) for s in sections]
  rates = {axes["method"][0]["name"]: axes["optim.learning_rate"][0] for axes in grids}
  several = lambda rate: rate["tune"] if isinstance(rate, dict) else [rate]
  tried = [f"{name} {', '.join(f'{r:g}' for r in several(rate))}" for name, rate in rates.items()]
  sizes = [f"--{size}s" for size in SIZES if any(size in section for section in sections)]
  is_open = any(isinstance(rate, dict) for rate in rates.values())
  chosen = ["each configuration gets its best on validation"] * is_open
  splits = expected.groups[0].splits
  kept = ", ".join(f"{name} {split['kept']:,}" for name, split in splits.items())
  left = sum((Counter(split["skipped"]) for split in splits.values()), Counter())
  left["beyond data.eval_limit"] = rows - sum(s["kept"] for s in splits.values()) - left.total()
  lost = ", ".join(f"{n:,} {reason.replace('_', ' ')}" for reason, n in left.items() if n > 0)
  base = config["model"]["path"]
  if base == str(TINY):
    base = "the bundled model of 3.2 million parameters, for a demonstration: your own is --model"
  return {
    "rows": f"{kept}, drawn by a hash of each row (--config.data.validation, --config.data.test); "
    f"left out: {lost or 'none'}",
    "base": base,
    "compared": f"{', '.join(named)} ({', '.join(['--methods', *sizes])}), each with the seeds "
    f"{', '.join(map(str, grids[0]['seed']))} (--seeds)",
    "rates tried": "; ".join([*tried, *chosen]) + " (--rates)",
    "training": f"{train['steps']} updates (--steps) of {train['batch_size']} rows "
    "(--config.train.batch_size)",
    "time": f"{duration(expected.seconds)} on this machine, for {count(expected.trials, 'trial')}"
    + ", of which some choose the rates" * bool(chosen),
  }
