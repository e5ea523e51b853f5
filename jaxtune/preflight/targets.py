"""What every pattern of every method hits: the table printed before a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from jaxtune import peft, tree
from jaxtune.runs.trial import Trial, tokenizing


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
    make = lambda p, m=method: peft.init(key, (m,), sites, p, tokenize).overlay
    tuned, _ = jax.eval_shape(make, params)
    for site, arrays in peft.arrays_of(method, tuned["peft"]).items():
      pattern = next((p for p in method.patterns if peft.hits(p, site)), "")
      shapes = ", ".join(f"{name} {tuple(x.shape)}" for name, x in arrays.items())
      rows.append((method.name, pattern, site, shapes, sum(x.size for x in arrays.values())))
    for path, leaf in tree.flatten(tuned["params"]).items():
      if path not in counted:  # a head may be moved by its own method and by "full"
        rows.append((method.name, "moved", path, str(tuple(leaf.shape)), leaf.size))
      counted.add(path)
  return rows


def describe(trial: Trial) -> str:
  """Lays out what a trial would train."""
  params, tokenize = trial.pretrained.params, tokenizing(trial.pretrained)
  return describe_targets(targets(trial.methods, trial.sites, params, tokenize))


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
