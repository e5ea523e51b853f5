"""The parts of all plots: frame, title, colours, legend, and names that do not overlap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.text import Annotation
from matplotlib.ticker import NullFormatter, NullLocator
from matplotlib.transforms import Bbox

# The palette of Okabe and Ito, which readers with any colour vision can tell apart; without its
# yellow, which is hard to see on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"
# From white through the palette's blue to a darker one, so that the lightness always falls.
SHADES = LinearSegmentedColormap.from_list("shares", ["#ffffff", PALETTE[0], "#003a5c"])
GREY = "#555555"
# Where a name may stand beside its point: (the side of the text at the point, dx, dy), in points.
_POSITIONS = [
  (side, dx, dy)
  for far in (8, 14, 24, 36)
  for side, dx, dy in (
    ("left", 9, far - 4),
    ("right", -9, far - 4),
    ("center", 0, far),
    ("left", 9, -far - 4),
    ("right", -9, -far - 4),
    ("center", 0, -far - 8),
  )
]


class Look(NamedTuple):
  """How the points and the line of one label are drawn."""

  color: Any
  marker: str


def make(panels: int = 1) -> tuple[Figure, list[Axes]]:
  """Makes a figure as wide as a README shows it, with its panels side by side."""
  layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08, wspace=0.06)
  figure = Figure(figsize=(7.5 if panels == 1 else 10, 4.4), layout=layout)
  frames = list(figure.subplots(1, panels, squeeze=False).flat)
  for axes in frames:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e5e5e5", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_minor_locator(NullLocator())
  return figure, frames


def annotate(
  axes: Axes, text: str, at: tuple[float, float], offset: tuple[float, float], **options: Any
) -> Annotation:
  """Writes a small grey text at an offset, in points, from a place, which moves nothing else."""
  note = axes.annotate(
    text, at, xytext=offset, textcoords="offset points", **{"fontsize": 9, "color": GREY} | options
  )
  note.set_in_layout(False)  # otherwise a long line would push two panels apart
  return note


def write_title(axes: Axes, title: str, lines: Sequence[str]) -> None:
  """Writes the title and, smaller, the lines below it that say how to read the plot."""
  axes.set_title(title, loc="left", fontsize=12.5, fontweight="bold", pad=10 + 13 * len(lines))
  annotate(axes, "\n".join(lines), (0, 1), (0, 7), xycoords="axes fraction", va="bottom")


def legend(figure: Figure, axes: Axes) -> None:
  """Adds a legend to the right of the plot, where it hides nothing, if there are two labels."""
  handles, labels = axes.get_legend_handles_labels()
  if len(labels) > 1:
    size = 9 if len(labels) <= 14 else 7
    figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=size)


def looks(labels: Sequence[str]) -> dict[str, Look]:
  """Gives each label a colour and a marker.

  With more labels than colours, each method (a label's first word) has a colour and its settings
  have shades of it. With a single method, or more methods than colours, the labels have the colours
  of one continuous scale.
  """
  methods = list(dict.fromkeys(label.partition(" ")[0] for label in labels))
  if len(labels) <= len(PALETTE):
    return {label: Look(PALETTE[i], MARKERS[i]) for i, label in enumerate(labels)}
  if len(methods) == 1 or len(methods) > len(PALETTE):
    colors = matplotlib.colormaps["viridis"](np.linspace(0, 0.92, len(labels)))
    return {label: Look(colors[i], MARKERS[i % len(MARKERS)]) for i, label in enumerate(labels)}
  by_label: dict[str, Look] = {}
  for color, marker, method in zip(PALETTE, MARKERS, methods, strict=False):
    settings = [label for label in labels if label.partition(" ")[0] == method]
    for label, share in zip(settings, np.linspace(1, 0.4, len(settings)), strict=True):
      by_label[label] = Look(tuple(1 - share * (1 - np.array(to_rgb(color)))), marker)
  return by_label


def write_names(
  figure: Figure,
  axes: Axes,
  names: Sequence[tuple[float, float, str]],
  obstacles: Sequence[tuple[float, float, float]],
) -> None:
  """Writes names beside their points, each at the first position that is free.

  Args:
    names: x, y and text of each; a name for which no position is free is left out.
    obstacles: x, low and high of what the names must not cover.
  """
  figure.draw_without_rendering()
  frame = axes.get_window_extent().padded(-3)
  taken = [
    axes.transData.transform_bbox(Bbox([(x, low), (x, high)])).padded(6, 5)
    for x, low, high in obstacles
  ]
  for x, y, name in names:
    for side, dx, dy in _POSITIONS:
      note = annotate(axes, name, (x, y), (dx, dy), fontsize=8, ha=side)
      box = note.get_window_extent()
      if frame.count_contains(box.corners()) == 4 and not any(map(box.overlaps, taken)):
        taken.append(box)
        break
      note.remove()
