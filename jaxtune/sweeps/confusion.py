"""The plot of a confusion matrix: shades show the share of the true class, numbers the counts."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxtune.metrics.kinds.label import Confusion
from jaxtune.sweeps import canvas

_MOST_CLASSES = 30


def draw(matrix: Confusion, trial: str = "") -> Figure:
  """Draws a confusion matrix with true classes down and predicted classes across.

  Of more than 30 classes the 29 most frequent are drawn, and all others as one.

  Args:
    trial: the name of the trial, for the title.
  """
  reading = ["numbers: examples", "shades: share of the true class (row)"]
  if len(matrix.labels) > _MOST_CLASSES:
    reading.append(
      f"the {_MOST_CLASSES - 1} most frequent of {len(matrix.labels)} classes; "
      '"other" against "other" holds the confusions among the rest too'
    )
    matrix = merge_rare(matrix, _MOST_CLASSES - 1)
  classes = len(matrix.labels)
  cell = float(np.interp(classes, (2, 10, _MOST_CLASSES), (1.1, 0.55, 0.36)))  # inches
  side = cell * classes
  figure = Figure(figsize=(side + 2.6, side + 2.0), layout="constrained")
  axes = figure.add_subplot()
  image = axes.imshow(matrix.shares_CC, cmap=canvas.SHADES, vmin=0, vmax=1)
  _name_classes(axes, matrix.labels, side)
  _write_counts(axes, matrix, cell)
  axes.set(xlabel="predicted class", ylabel="true class")
  bar = figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02, format="{x:.0%}")
  bar.outline.set_visible(False)
  bar.ax.tick_params(labelsize=8, length=0)
  letters = int((side + 1.8) / 0.075)  # that fit above the plot
  canvas.write_title(
    axes, "Confusion matrix", textwrap.wrap(trial.replace(",", ", "), letters) + reading
  )
  return figure


def merge_rare(matrix: Confusion, kept: int) -> Confusion:
  """Joins all but the `kept` most frequent classes into one, "other", which comes last."""
  frequent = np.sort(np.argsort(-matrix.counts_CC.sum(1), kind="stable")[:kept])
  new_index_C = np.full(len(matrix.labels), kept)
  new_index_C[frequent] = np.arange(kept)
  joins = np.eye(kept + 1, dtype=int)[new_index_C]  # a row of a class has a 1 at its new index
  labels = [matrix.labels[i] for i in frequent]
  labels.append(f"other ({len(matrix.labels) - kept})")
  return Confusion(tuple(labels), joins.T @ matrix.counts_CC @ joins)


def _name_classes(axes: Axes, labels: Sequence[str | int], side: float) -> None:
  """Labels rows and columns, and draws lines between the cells.

  Args:
    side: of the matrix, in inches; where the names do not fit along it, they are turned.
  """
  names = [str(label) for label in labels]
  names = [name if len(name) <= 18 else name[:17] + "…" for name in names]
  size = 9 if len(names) <= 14 else 7.5
  axes.set_xticks(range(len(names)), names, fontsize=size)
  if sum(map(len, names)) * size * 0.62 / 72 > 0.8 * side:
    for label in axes.get_xticklabels():
      label.set(rotation=45, ha="right", rotation_mode="anchor")
  axes.set_yticks(range(len(names)), names, fontsize=size)
  axes.tick_params(length=0)
  axes.spines[:].set_visible(False)
  # The grid's lines are at the minor ticks, which lie between the cells.
  axes.set_xticks(np.arange(len(names) - 1) + 0.5, minor=True)
  axes.set_yticks(np.arange(len(names) - 1) + 0.5, minor=True)
  axes.grid(which="minor", color="#e5e5e5", linewidth=0.8)
  axes.tick_params(which="minor", length=0)


def _write_counts(axes: Axes, matrix: Confusion, cell: float) -> None:
  """Writes each count but 0 into its cell, in white on dark shades.

  Args:
    cell: its side in inches.
  """
  digits = len(str(matrix.counts_CC.max()))
  size = min(11, 72 * cell * 0.85 / (0.62 * max(digits, 2)))
  shares_CC = matrix.shares_CC
  for (row, column), count in np.ndenumerate(matrix.counts_CC):
    if count:
      color = "white" if shares_CC[row, column] >= 0.47 else "black"
      axes.text(column, row, str(count), ha="center", va="center", fontsize=size, color=color)
