"""Reads rows as an objective does, without a file."""

from __future__ import annotations

from jaxtune import objectives
from jaxtune.data import DataOptions, sources
from jaxtune.data.templates import Example


def read(
  objective: str, rows: list[dict], where: list[str] | None = None, malformed: str = "error",
  **rename: str | tuple[str, ...],
) -> tuple[list[Example], dict[str, int]]:  # fmt: skip
  """Returns the examples of training rows, and how many were skipped, by reason.

  Args:
    where: places of the rows; None: f:1, f:2, ...
  """
  where = [f"f:{line}" for line in range(1, len(rows) + 1)] if where is None else where
  options = DataOptions(train="f", malformed=malformed, rename=rename)
  table = sources.Table(rows, where, {})
  groups, _, skipped = objectives.module(objective).read(table, "train", options)
  return [example for group in groups for example in group], skipped
