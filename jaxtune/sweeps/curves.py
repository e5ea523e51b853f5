"""Learning curves: losses, or rewards, in metrics.jsonl against the step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from jaxtune import metrics
from jaxtune.sweeps import canvas, stats

_MOST_CURVES = 10
_LOSSES = ("train_loss", "validation_loss")
_REWARDS = ("train_reward", "validation_reward", "train_kl")  # of policies


def learning_curves(
  rows: Sequence[stats.Row], histories: Mapping[str, list[dict]]
) -> Figure | None:
  """Draws the training and the validation loss of the first ten rows against the step.

  Of policies these are the rewards, and the divergence from the reference. Returns None if nothing
  was logged at two steps.
  """
  entries = [entry for history in histories.values() for entry in history]
  panels = [
    key
    for key in (_REWARDS if any("train_reward" in entry for entry in entries) else _LOSSES)
    if any(sum(key in entry for entry in history) > 1 for history in histories.values())
  ]
  if not panels:
    return None
  figure, frames = canvas.make(len(panels))
  shown = rows[:_MOST_CURVES]
  looks = canvas.looks([row.label for row in shown])
  banded = False
  for axes, key in zip(frames, panels, strict=True):
    for row in shown:
      curve = _curve([histories.get(result["trial"], []) for result in row.results], key)
      mean = np.array([summary.mean for summary in curve.values()], float)
      half_width = np.array([summary.half_width or 0.0 for summary in curve.values()])
      color = looks[row.label].color
      axes.plot(list(curve), mean, color=color, linewidth=1.6, label=row.label)
      # The training loss of single batches varies much: more than a few bands would hide the lines.
      if len(row.results) > 1 and (len(shown) <= 4 or key.startswith("validation")):
        banded = True
        axes.fill_between(
          list(curve), mean - half_width, mean + half_width, linewidth=0, color=color, alpha=0.15
        )
    axes.set(xlabel="step", ylabel=metrics.title(key))
  seeds = max(len(row.results) for row in shown)
  reading = f"mean over {seeds} seeds" if seeds > 1 else "one seed"
  reading += "; bands: 95 % interval" if banded else ""
  left_out = f"; the {len(shown)} best of {len(rows)}" if len(shown) < len(rows) else ""
  canvas.write_title(frames[0], "Learning curves", [reading + left_out])
  canvas.legend(figure, frames[0])
  return figure


def _curve(histories: list[list[dict]], key: str) -> dict[int, stats.Summary]:
  """Returns {step: summary over seeds} of the steps that all seeds logged, in order."""
  # Training and validation write lines of their own, which lack the other's metrics.
  seeds = [
    {entry["step"]: entry[key] for entry in history if entry.get(key) is not None}
    for history in histories
    if history
  ]
  steps = set.intersection(*map(set, seeds)) if seeds else ()
  return {step: stats.summarize(seed[step] for seed in seeds) for step in sorted(steps)}
