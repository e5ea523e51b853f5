"""Arithmetic on the change of the weights: task vectors, whatever method made them.

A task vector is tau = W' - W (Ilharco et al. 2023, "Editing models with task arithmetic"), with W'
the merged weights of an adapter. Sums of task vectors are written as a LoRA, by a truncated SVD.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from jaxtune import compose, peft, schema, tree
from jaxtune.compose import low_rank
from jaxtune.runs.finished import Run
from jaxtune.schema import Seed, Share

WAYS = ("linear", "ties", "dare", "dare_ties")


def of(run: Run) -> dict[str, np.ndarray]:
  """Returns {path: tau} of the leaves that a run changes, in fp32.

  Raises:
    UserError: for a method that is no weight delta, or a change that no LoRA could hold.
  """
  low_rank.check_untied(run, tree.flatten(run.adapted.tuned["params"]), run.folder)
  merged = tree.flatten(peft.merge(run.adapted))
  start = compose.start_of(run)
  delta = {path: np.asarray(x) - start(path) for path, x in merged.items()}
  return {path: x for path, x in delta.items() if x.any()}


def combine(
  runs: Sequence[Run],
  weights: Sequence[float] | None = None,
  how: Literal[*WAYS] = "linear",
  *,
  density: Share = 0.5,
  seed: Seed = 0,
) -> dict[str, np.ndarray]:
  """Combines the task vectors of runs over one base.

  Args:
    weights: w_i of each run, by default 1 / n; negative ones take a task away.
    how: "linear": sum w_i tau_i. "ties" (Yadav et al. 2023): of each task vector the largest
      `density` share of entries, of each entry the sign with the larger weighted sum, and the
      weighted mean of those that agree with it. "dare" (Yu et al. 2024): entries are kept with
      probability `density` and divided by it, then summed; "dare_ties" elects signs of those.
    density: share of the entries that are kept.
    seed: the seed by which "dare" and "dare_ties" draw.
  """
  schema.check_arguments(combine, dict(how=how, density=density, seed=seed))
  compose.check_bases(runs)
  weights, vectors = compose.check_weights(weights, len(runs), 1 / len(runs)), [*map(of, runs)]
  if how == "ties":
    vectors = [trim(vector, density) for vector in vectors]
  elif how.startswith("dare"):
    vectors = [drop(vector, density, seed + i) for i, vector in enumerate(vectors)]
  combined = {}
  for path in sorted(set().union(*vectors)):
    zeros = np.zeros_like(next(v[path] for v in vectors if path in v))
    tensors = [v.get(path, zeros) for v in vectors]
    with np.errstate(over="ignore", invalid="ignore"):  # which the check below names
      if how.endswith("ties"):
        combined[path] = elect_signs(weights, tensors)
      else:
        combined[path] = sum(w * x for w, x in zip(weights, tensors, strict=True))
  tree.check_finite(combined, "the sum of the adapters")
  return combined


def trim(vector: dict[str, np.ndarray], density: float) -> dict[str, np.ndarray]:
  """Keeps the entries of largest magnitude: `density` of all entries of a task vector."""
  if not vector:  # an adapter that changes nothing
    return vector
  sizes = np.concatenate([np.abs(x).ravel() for x in vector.values()])
  kept = max(1, round(density * sizes.size))
  least = np.partition(sizes, sizes.size - kept)[sizes.size - kept]
  return {path: np.where(np.abs(x) >= least, x, 0) for path, x in vector.items()}


def drop(vector: dict[str, np.ndarray], density: float, seed: int) -> dict[str, np.ndarray]:
  """Keeps entries at random and divides them by `density`, so that their mean stays the same."""
  draw = lambda i, x: np.random.default_rng([seed, i]).random(x.shape) < density
  items = enumerate(sorted(vector.items()))
  return {path: np.where(draw(i, x), x / np.float32(density), 0) for i, (path, x) in items}


def elect_signs(weights: Sequence[float], tensors: Sequence[np.ndarray]) -> np.ndarray:
  """Returns each entry's weighted mean over the tensors whose sign is the elected one."""
  weighted = np.stack([w * x for w, x in zip(weights, tensors, strict=True)])
  agree = (np.sign(weighted) == np.sign(weighted.sum(0))) & (weighted != 0)
  total = np.where(agree, np.abs(np.reshape(weights, (-1,) + (1,) * tensors[0].ndim)), 0).sum(0)
  return (np.where(agree, weighted, 0).sum(0) / np.maximum(total, 1e-12)).astype(np.float32)


def merge(
  runs: Sequence[Run], rank: int, weights: Sequence[float] | None = None, how: str = "linear",
  **options,
) -> tuple[Run, dict[str, float]]:  # fmt: skip
  """Combines runs into one LoRA of a rank; see `combine`.

  Returns:
    (the run, {site: share of the combined delta's squared norm that the rank keeps}).
  """
  return low_rank.of_delta(runs[0], combine(runs, weights, how, **options), rank)
