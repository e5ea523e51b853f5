"""What commands print of their results."""

from __future__ import annotations


def kept(shares: dict[str, float]) -> None:
  if shares:
    print(f"share of the change's squared norm that the rank keeps: {min(shares.values()):.4f} at")
    print(f"the least, {sum(shares.values()) / len(shares):.4f} in the mean of {len(shares)} sites")


def table(rows: dict, title: str) -> None:
  names = list(next(iter(rows.values())))
  width = max(len(str(key)) for key in [title, *rows])
  print("  ".join([title.ljust(width), *names]))
  for key, metrics in rows.items():
    cells = [f"{metrics.get(name, float('nan')):.4f}".rjust(len(name)) for name in names]
    print("  ".join([str(key).ljust(width), *cells]))


def change(result: dict) -> None:
  print(f"{'metric':24} {'untuned':>12} {'tuned':>12}")
  for name, value in result["final"].items():
    print(f"{name:24} {result['base'].get(name, float('nan')):12.4f} {value:12.4f}")
