"""Plots of an analysis: heat maps beside each other, and the loss against the rank of a change."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxtune.sweeps import canvas, heat
from jaxtune.sweeps.analysed import Analysis, Measured, cut_losses

_MOST = 6  # panels
_MOST_LINES = 10
# {group of maps: (name of the file, how to read it)}
_SHOWN = {
  heat.WEIGHTS: (
    "change_of_weights",
    "|dW| / |W|, layers down and modules across; mean over seeds",
  ),
  heat.SHARED: ("shared_subspaces", "phi of the largest direction of two configurations"),
  heat.ATTENTION: ("attention_to_virtual_tokens", "share of attention, layers down, heads across"),
  heat.STATES: ("change_of_states", "|h' - h| / |h| of the output of each layer"),
}


def figures(measured: Sequence[Measured], analysis: Analysis) -> dict[str, Figure]:
  """Draws what report.md shows of an analysis; {name of the file: figure}.

  Of the maps of the weights there is the relative change, and of shared subspaces the largest
  directions of outputs and of inputs.
  """
  chosen: dict[str, list[dict]] = {}
  for one in heat.of_analysis(measured, analysis):
    wanted = {"measure": next(iter(heat.MEASURES)), "dimensions": "1"}
    if all(one["choices"].get(key, value) == value for key, value in wanted.items()):
      chosen.setdefault(one["group"], []).append(one)
  drawn = {
    name: panels(chosen[group], reading)
    for group, (name, reading) in _SHOWN.items()
    if group in chosen
  }
  if lines := against_rank(measured):
    drawn["loss_with_changes_cut"] = lines
  return drawn


def panels(maps: Sequence[Mapping[str, Any]], reading: str) -> Figure:
  """Draws the first heat maps of a group side by side, with one scale of colours."""
  left_out = max(len(maps) - _MOST, 0)
  maps = maps[:_MOST]
  columns = min(len(maps), 3)
  lines = math.ceil(len(maps) / columns)
  height = sum(_size(maps[i : i + columns], "rows") for i in range(0, len(maps), columns))
  width = columns * max(_size([one], "columns") + _room(one) for one in maps)
  figure = Figure(figsize=(max(width, 4.5), height + 0.9 * lines + 0.9), layout="constrained")
  frames = figure.subplots(lines, columns, squeeze=False).flat
  numbers = [x for one in maps for row in one["values"] for x in row if x is not None]
  low, high = maps[0].get("range") or (min(numbers, default=0), max(numbers, default=1))
  image = None
  for axes, one in zip(frames, maps, strict=False):
    image = _draw(axes, one, low, high)
  for axes in figure.axes[len(maps) :]:
    axes.set_visible(False)
  bar = figure.colorbar(image, ax=figure.axes, fraction=0.03, pad=0.02)
  bar.outline.set_visible(False)
  bar.ax.tick_params(labelsize=8, length=0)
  more = f"\n{left_out} more on the page" if left_out else ""
  figure.suptitle(f"{maps[0]['group']}: {reading}{more}", fontsize=10.5, x=0.02, ha="left")
  return figure


def _size(maps: Sequence[Mapping[str, Any]], side: str) -> float:
  """Returns the inches that the cells of the largest of some maps take along a side."""
  return max(max(1.2, 0.36 * len(one[side]) + 0.3) for one in maps)


def _room(one: Mapping[str, Any]) -> float:
  """Returns the inches that the names of a map's rows take."""
  return 0.4 + 0.075 * max(min(len(name), 40) for name in one["rows"])


def _draw(axes: Axes, one: Mapping[str, Any], low: float, high: float) -> Any:
  values = np.array(one["values"], float)
  image = axes.imshow(values, cmap=canvas.SHADES, vmin=low, vmax=high, aspect="auto")
  axes.set_xticks(range(len(one["columns"])), [name[:40] for name in one["columns"]], fontsize=8)
  if max(map(len, one["columns"])) > 3:
    for label in axes.get_xticklabels():
      label.set(rotation=45, ha="right", rotation_mode="anchor")
  axes.set_yticks(range(len(one["rows"])), [name[:40] for name in one["rows"]], fontsize=8)
  axes.tick_params(length=0)
  axes.spines[:].set_visible(False)
  for (i, j), value in np.ndenumerate(values):
    if np.isfinite(value) and values.shape[1] <= 12:
      dark = (value - low) >= 0.47 * (high - low)
      text = f"{value:.2f}" if abs(value) < 10 else f"{value:.0f}"
      axes.text(
        j, i, text, ha="center", va="center", fontsize=6.5, color="white" if dark else "black"
      )
  said = [v for k, v in one["choices"].items() if k not in ("measure", "dimensions")]
  axes.set_title("\n".join(textwrap.wrap(", ".join(said), 34)), fontsize=9, loc="left")
  return image


def against_rank(measured: Sequence[Measured]) -> Figure | None:
  """Draws the loss against the rank to which changes are cut; None where nothing was cut."""
  losses = {one.label: cut for one in measured if (cut := cut_losses(one))}
  losses = dict(list(losses.items())[:_MOST_LINES])
  if not losses:
    return None
  figure, (axes,) = canvas.make()
  looks = canvas.looks(list(losses))
  place = lambda rank: math.log2(rank) if rank else -1.0
  for label, cut in losses.items():
    look = looks[label]
    style = dict(color=look.color, marker=look.marker, markersize=5, linewidth=1.6)
    axes.plot([place(rank) for rank in cut], np.array([*cut.values()], float), label=label, **style)
  ranks = sorted({rank for cut in losses.values() for rank in cut})
  powers = [rank for rank in ranks if rank & (rank - 1) == 0]
  axes.set_xticks([place(rank) for rank in powers], [str(rank) for rank in powers])
  axes.set(
    xlabel="singular values kept of the change of each matrix (log scale)", ylabel="loss (nats)"
  )
  canvas.write_title(
    axes, "Loss with changes cut to a rank", ["mean over seeds; 0: matrices of the base"]
  )
  canvas.legend(figure, axes)
  return figure
