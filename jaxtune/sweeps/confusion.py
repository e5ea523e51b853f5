"""The plot of a confusion matrix: shares of each true class as shades, counts as numbers."""

from __future__ import annotations

import textwrap

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from jaxtune.metrics.labels import Confusion
from jaxtune.sweeps import canvas

# From white through the palette's blue to its shade, so that every step differs in lightness.
_SHADES = LinearSegmentedColormap.from_list("shares", ["#ffffff", canvas.PALETTE[0], "#003a5c"])
_MOST_CLASSES = 30
_LONGEST_NAME = 18


def draw(found: Confusion, trial: str = "") -> Figure:
  """Draws who was taken for whom: true classes down, predicted classes across.

  Beyond 30 classes the most frequent are drawn, and the others as one.

  Args:
    trial: the name of what predicted them.
  """
  reading = ["numbers: examples", "shades: share of the true class (row)"]
  if len(found.labels) > _MOST_CLASSES:
    reading.append(
      f"the {_MOST_CLASSES - 1} most frequent of {len(found.labels)} classes; "
      '"other" against "other" holds the confusions among the rest too'
    )
    found = merge_rare(found, _MOST_CLASSES - 1)
  classes = len(found.labels)
  cell = np.interp(classes, (2, 10, _MOST_CLASSES), (1.1, 0.55, 0.36))  # inches
  side = cell * classes
  figure = Figure(figsize=(side + 2.6, side + 2.0), layout="constrained")
  axes = figure.add_subplot()
  image = axes.imshow(found.shares_CC, cmap=_SHADES, vmin=0, vmax=1)
  small = 9 if classes <= 14 else 7.5
  names = [_short(str(label)) for label in found.labels]
  turned = sum(map(len, names)) * small * 0.62 / 72 > 0.8 * side
  axes.set_xticks(range(classes), names, fontsize=small)
  if turned:
    for label in axes.get_xticklabels():
      label.set(rotation=45, ha="right", rotation_mode="anchor")
  axes.set_yticks(range(classes), names, fontsize=small)
  axes.tick_params(length=0)
  axes.spines[:].set_visible(False)
  # Minor ticks between the cells carry the lines that part them.
  axes.set_xticks(np.arange(classes - 1) + 0.5, minor=True)
  axes.set_yticks(np.arange(classes - 1) + 0.5, minor=True)
  axes.grid(which="minor", color="#e5e5e5", linewidth=0.8)
  axes.tick_params(which="minor", length=0)
  _number(axes, found, cell)
  axes.set_xlabel("predicted class")
  axes.set_ylabel("true class")
  bar = figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02, format="{x:.0%}")
  bar.outline.set_visible(False)
  bar.ax.tick_params(labelsize=8, length=0)
  wide = int((side + 1.8) / 0.075)  # letters that fit above the plot
  named = textwrap.wrap(trial.replace(",", ", "), wide)
  canvas.entitle(axes, "Confusion matrix", named + reading)
  return figure


def merge_rare(found: Confusion, kept: int) -> Confusion:
  """Joins all classes but the `kept` with the most references into the last, "other"."""
  frequent = np.argsort(-found.counts_CC.sum(1), kind="stable")[:kept]
  place_C = np.full(len(found.labels), kept)
  place_C[np.sort(frequent)] = np.arange(kept)
  counts = np.zeros((kept + 1, kept + 1), int)
  np.add.at(counts, (place_C[:, None], place_C[None]), found.counts_CC)
  names = [found.labels[i] for i in np.sort(frequent)]
  shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
  return Confusion((*names, f"other ({len(found.labels) - kept})"), counts, shares)


def _number(axes: Axes, found: Confusion, cell: float) -> None:
  """Writes the counts that are not 0, each in what can be read on its shade."""
  widest = len(str(found.counts_CC.max()))
  size = min(11, 72 * cell * 0.85 / (0.62 * max(widest, 2)))
  for (row, column), count in np.ndenumerate(found.counts_CC):
    if count:
      color = "white" if found.shares_CC[row, column] > 0.47 else "black"
      axes.text(column, row, str(count), ha="center", va="center", fontsize=size, color=color)


def _short(name: str) -> str:
  return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…"
