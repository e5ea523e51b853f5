"""What a report says of a reward model: its calibration, its accuracy by length, and ties."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from jaxtune.sweeps import canvas
from jaxtune.sweeps.table import Table

INTERVAL = "95 % interval (as if pairs were independent)"


def tables(result: Mapping[str, Any]) -> dict[str, Table]:
  """Makes {title: table} of a trial's result, as far as it has pairs of rewards."""
  made = {}
  if curve := result.get("calibration"):
    header = ["mean confidence (%)", "right (%)", INTERVAL, "pairs"]
    rows = [[f"{row['confidence']:.1f}", *_cells(row)] for row in curve]
    made[f"Calibration of {result['trial']}"] = Table(header, rows)
  if lengths := result.get("by_length"):
    header = ["the chosen answer is", "right (%)", INTERVAL, "pairs"]
    rows = [[name, *_cells(row)] for name, row in lengths.items()]
    made[f"Accuracy by length of {result['trial']}"] = Table(header, rows)
  if ties := result.get("ties"):
    header = ["pairs", "mean difference of rewards", "count"]
    rows = [["ties", f"{ties['ties']:.3f}", f"{ties['pairs']:,}"]]
    rows.append(["others", f"{ties['others']:.3f}", "-"])
    made[f"Ties of {result['trial']}"] = Table(header, rows)
  return made


def figures(result: Mapping[str, Any]) -> dict[str, Figure]:
  """Draws the reliability curve of a trial; {name of its file: figure}."""
  if not (curve := result.get("calibration")):
    return {}
  figure, (axes,) = canvas.make()
  right, low, high = (np.array([row[key] for row in curve]) for key in ("right", "low", "high"))
  confidence = [row["confidence"] for row in curve]
  axes.plot([50, 100], [50, 100], color=canvas.GREY, linestyle="--", linewidth=1)
  ends = np.maximum([right - low, high - right], 0.0)  # which were rounded
  axes.errorbar(confidence, right, ends, color=canvas.PALETTE[0], marker="o")
  axes.set(xlabel="confidence, sigmoid(|difference of rewards|) (%)", ylabel="right (%)")
  reading = [
    result["trial"].replace(",", ", "),
    "ten bins; bars: 95 %, over pairs; dashed: calibrated",
  ]
  canvas.write_title(axes, "Calibration", reading)
  return {"calibration": figure}


def _cells(row: Mapping[str, float]) -> list[str]:
  interval = f"{row['low']:.1f} to {row['high']:.1f}"
  return [f"{row['right']:.1f}", interval, f"{row['pairs']:,}"]
