"""The target plan: what every pattern of every method hits, as a table printed before a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from jaxtune import peft, tree
from jaxtune.runs.trial import Trial, tokenizing


def targets(
  methods: tuple[peft.Method, ...], sites: dict, params: Any, tokenize: Callable | None = None
) -> list[tuple]:
  """Lists what every pattern of every method hits.

  Returns:
    Rows (method, pattern, site, arrays with shapes, trained parameters).
  """
  key = jax.random.key(0)
  rows, listed = [], set()
  for method in methods:
    make = lambda p, m=method: peft.init(key, (m,), sites, p, tokenize).overlay
    tuned, _ = jax.eval_shape(make, params)
    for site, arrays in peft.arrays_of(method, tuned["peft"]).items():
      pattern = next((p for p in method.patterns if peft.hits(p, site)), "")
      shapes = ", ".join(f"{name} {tuple(x.shape)}" for name, x in arrays.items())
      rows.append((method.name, pattern, site, shapes, sum(x.size for x in arrays.values())))
    for path, leaf in tree.flatten(tuned["params"]).items():
      if path not in listed:  # a head may be moved by its own method and by "full"
        rows.append((method.name, "moved", path, str(tuple(leaf.shape)), leaf.size))
      listed.add(path)
  return rows


def describe(trial: Trial) -> str:
  """Writes the target plan of a trial as a table with a total."""
  params, tokenize = trial.pretrained.params, tokenizing(trial.pretrained)
  rows = targets(trial.methods, trial.sites, params, tokenize)
  cells = [("method", "pattern", "site", "arrays", "trained")]
  cells += [(*row[:4], f"{row[4]:,}") for row in rows]
  cells.append(("total", "", "", "", f"{sum(row[4] for row in rows):,}"))
  pads = [str.ljust] * 4 + [str.rjust]
  widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
  lines = ([pad(x, n) for pad, x, n in zip(pads, row, widths, strict=True)] for row in cells)
  return "\n".join("  ".join(line).rstrip() for line in lines)
