"""Makes one adapter of several finished runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from jaxtune import compose, schema
from jaxtune.compose import deltas, low_rank
from jaxtune.errors import UserError
from jaxtune.runs.finished import Run, check_free, keep
from jaxtune.schema import Count, Finite, Seed, Share

WAYS = ("stack", "average", "cat", *deltas.WAYS)


def compose_runs(
  runs: Sequence[Run],
  folder: str | Path,
  how: Literal[*WAYS],
  *,
  weights: Sequence[Finite] | None = None,
  rank: Count | None = None,
  density: Share | None = None,
  seed: Seed | None = None,
) -> dict[str, float]:
  """Makes one adapter of several and writes it as a run's folder.

  Args:
    how: "stack" lays them over each other; "average" takes the mean of their arrays; "cat" adds
      LoRAs exactly, by concatenation; "linear", "ties", "dare" and "dare_ties" combine what they
      change of the weights into a LoRA of `rank`; see `compose.deltas`.
    weights: one for each run; by default 1 for "cat", whose result is the sum, and 1 / n for the
      others. "stack" takes none.
    rank, density, seed: see `compose.deltas`; density is by default 0.5, and seed 0.

  Returns:
    {site: share of the combined delta's squared norm that the rank keeps}; {} where nothing is cut.
  """
  check_options(how, len(runs), weights, rank=rank, density=density, seed=seed)
  check_free(folder)
  kept: dict[str, float] = {}
  if how in deltas.WAYS:
    density, seed = 0.5 if density is None else density, seed or 0
    composed, kept = deltas.merge(runs, rank, weights, how, density=density, seed=seed)
  elif how == "stack":
    composed = compose.stack(runs)
  elif how == "average":
    composed = compose.average(runs, weights)
  else:
    composed = low_rank.concatenate(runs, weights)
  stops = tuple(dict.fromkeys(stop for run in runs for stop in run.stop_tokens))
  keep(composed._replace(stop_tokens=stops), folder)
  return kept


def check_options(
  how: str,
  count: int,
  weights: Sequence[float] | None,
  *,
  rank: int | None,
  density: float | None,
  seed: int | None,
) -> None:
  """Raises UserError unless `compose_runs` takes these options, whatever the runs are."""
  schema.check_arguments(compose_runs, dict(how=how, rank=rank, density=density, seed=seed))
  if (how in deltas.WAYS) != (rank is not None):
    needs = "needs a rank" if rank is None else "takes no rank"
    raise UserError(f"{how!r} {needs}; a rank is of the LoRA that holds a result of weight deltas")
  if how == "stack" and weights is not None:
    raise UserError("'stack' takes no weights: it lays adapters over each other as they are")
  reading = {"density": ("ties", "dare", "dare_ties"), "seed": ("dare", "dare_ties")}
  for name, value in (("density", density), ("seed", seed)):
    if value is not None and how not in reading[name]:
      raise UserError(f"{how!r} takes no {name}: it is for {', '.join(reading[name])}")
  compose.check_count(count)
  check_weights = compose.check_mean if how == "average" else compose.check_weights
  check_weights(weights, count)
