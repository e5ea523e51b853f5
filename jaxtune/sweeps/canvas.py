"""The look that all plots share: frame, titles, colours, legend and labels that do not collide."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import NullFormatter, NullLocator

# Okabe and Ito's palette for all kinds of colour vision, without yellow, which white swallows.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"
GREY = "#555555"


class Look(NamedTuple):
  color: Any
  marker: str


def make(panels: int = 1) -> tuple[Figure, list[Axes]]:
  """Makes a figure of README width, outside pyplot."""
  layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08, wspace=0.06)
  figure = Figure(figsize=(7.5 if panels == 1 else 10, 4.4), layout=layout)
  for i in range(panels):
    axes = figure.add_subplot(1, panels, i + 1)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e5e5e5", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_minor_locator(NullLocator())
  return figure, list(figure.axes)


def entitle(axes: Axes, title: str, lines: Sequence[str]) -> None:
  """Writes the title and, smaller, the lines below it that say how to read the plot."""
  axes.set_title(title, loc="left", fontsize=12.5, fontweight="bold", pad=10 + 13 * len(lines))
  note = axes.annotate(
    "\n".join(lines),
    (0, 1),
    xycoords="axes fraction",
    xytext=(0, 7),
    textcoords="offset points",
    fontsize=9,
    ha="left",
    va="bottom",
    color=GREY,
  )
  note.set_in_layout(False)  # else a long line would push two panels apart


def keep_within(axes: Axes, least: float, largest: float) -> None:
  """Ends the vertical axis where values end: an interval of few seeds may reach beyond."""
  low, high = axes.get_ylim()
  edge = 0.03 * (min(high, largest) - max(low, least))
  axes.set_ylim(max(low, least - edge), min(high, largest + edge))


def legend(figure: Figure, axes: Axes) -> None:
  """Puts the legend to the right of the plot, where it hides nothing; none for one line."""
  handles, labels = axes.get_legend_handles_labels()
  if len(labels) > 1:
    figure.legend(
      handles,
      labels,
      loc="outside right center",
      frameon=False,
      fontsize=9 if len(labels) <= 14 else 7,
    )


def looks(labels: Sequence[str]) -> dict[str, Look]:
  """Gives each label a colour and a marker.

  Where the palette runs out, a colour stands for a method (a label's first word) and its shades
  for the method's settings; with one method, the shades of one scale.
  """
  methods = list(dict.fromkeys(label.partition(" ")[0] for label in labels))
  if len(labels) <= len(PALETTE):
    return {label: Look(PALETTE[i], MARKERS[i]) for i, label in enumerate(labels)}
  if len(methods) == 1 or len(methods) > len(PALETTE):
    colors = matplotlib.colormaps["viridis"](np.linspace(0, 0.92, len(labels)))
    return {label: Look(colors[i], MARKERS[i % len(MARKERS)]) for i, label in enumerate(labels)}
  found: dict[str, Look] = {}
  for color, marker, method in zip(PALETTE, MARKERS, methods, strict=False):
    own = [label for label in labels if label.partition(" ")[0] == method]
    for label, share in zip(own, np.linspace(1, 0.4, len(own)), strict=True):
      found[label] = Look(tuple(1 - share * (1 - np.array(to_rgb(color)))), marker)
  return found


def place_names(
  figure: Figure,
  axes: Axes,
  names: Sequence[tuple[float, float, str]],
  obstacles: Sequence[tuple[float, float, float]],
) -> None:
  """Writes labels beside their points, each at the first place that is free.

  Args:
    names: x, y and text of each; one without any free place is left out.
    obstacles: x, low and high of what labels must not cover.
  """
  figure.draw_without_rendering()
  taken = []
  for x, low, high in obstacles:
    (left, bottom), (_, top) = axes.transData.transform([(x, low), (x, high)])
    taken.append((left - 6, bottom - 5, left + 6, top + 5))
  frame = axes.get_window_extent().extents
  around = [
    (dx, dy)
    for far in (8, 14, 24, 36)
    for dx, dy in (
      (9, far - 4),
      (-9, far - 4),
      (0, far),
      (9, -far - 4),
      (-9, -far - 4),
      (0, -far - 8),
    )
  ]
  for x, y, label in names:
    for dx, dy in around:
      note = axes.annotate(
        label,
        (x, y),
        xytext=(dx, dy),
        textcoords="offset points",
        fontsize=8,
        ha={0: "center", 9: "left", -9: "right"}[dx],
        color=GREY,
      )
      box = note.get_window_extent().extents
      note.set_in_layout(False)
      inside = np.all(box[:2] > frame[:2] + 3) and np.all(box[2:] < frame[2:] - 3)
      if inside and not any(
        box[0] < t[2] and t[0] < box[2] and box[1] < t[3] and t[1] < box[3] for t in taken
      ):
        taken.append(tuple(box))
        break
      note.remove()
