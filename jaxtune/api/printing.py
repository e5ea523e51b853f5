"""Prints the results of commands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def print_shares(shares: Mapping[str, float]) -> None:
  """Prints the least and the mean of {site: share of its change that a low rank keeps}."""
  if shares:
    print(f"share of the change's squared norm that the rank keeps: {min(shares.values()):.4f} at")
    print(f"the least, {sum(shares.values()) / len(shares):.4f} in the mean of {len(shares)} sites")


def print_table(metrics: Mapping[Any, Mapping[str, float]], title: str) -> None:
  """Prints {label: {metric: value}} with a row for each label; the title heads the labels."""
  names = list(next(iter(metrics.values())))
  number = lambda row, name: f"{row.get(name, float('nan')):.4f}"
  rows = [[str(label), *(number(row, name) for name in names)] for label, row in metrics.items()]
  print_cells([[title, *names], *rows])


def print_cells(rows: Sequence[Sequence[str]]) -> None:
  """Prints cells in columns, the first one and texts on the left and numbers on the right."""
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  for row in rows:
    cells = [
      cell.ljust(width) if i == 0 or any(map(str.isalpha, rows[-1][i])) else cell.rjust(width)
      for i, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
    print("  ".join(cells).rstrip())


def print_change(result: Mapping[str, Any]) -> None:
  """Prints the metrics of the untuned base beside those of the tuned model."""
  print(f"{'metric':24} {'untuned':>12} {'tuned':>12}")
  for name, value in result["final"].items():
    print(f"{name:24} {result['base'].get(name, float('nan')):12.4f} {value:12.4f}")
