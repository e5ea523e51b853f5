"""Plots of a sweep: a metric against each numeric axis and against the trained parameters.

Figures are made without pyplot, so no global state of matplotlib changes and no display is needed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FixedLocator, LogLocator, NullFormatter
from matplotlib.transforms import ScaledTranslation

from jaxtune import metrics
from jaxtune.sweeps import canvas, curves, grid, stats

_AXES = {
  "rank": "rank",
  "length": "{method} length (positions)",
  "width": "bottleneck width",
  "alpha": "alpha",
  "learning_rate": "learning rate",
}


def figures(
  results: Sequence[dict], metric: str, histories: Mapping[str, list[dict]] | None = None
) -> dict[str, Figure]:
  """Draws every plot that the results allow and returns {name of its file: figure}.

  Args:
    results: the result.json of every trial.
    metric: such as "test_loss".
    histories: {trial: lines of its metrics.jsonl}, for the learning curves.
  """
  rows = [
    row for row in stats.group(results) if any(metric in result["final"] for result in row.results)
  ]
  drawn: dict[str, Figure] = {}
  for path, short in grid.short_keys(stats.numeric_axes(rows)).items():
    drawn[f"{metric}-{short}"] = against_axis(rows, metric, path)
  if len(set(map(_size, rows)) - {0}) > 1:
    drawn[f"{metric}-trained_parameters"] = against_parameters(rows, metric)
  if figure := curves.learning_curves(stats.best_first(rows, metric), histories or {}):
    drawn["learning_curves"] = figure
  return drawn


def against_axis(rows: Sequence[stats.Row], metric: str, path: str) -> Figure:
  """Draws the metric against one setting, with a line for each value of the other settings."""
  rows = [row for row in rows if isinstance(row.settings.get(path), (int, float))]
  lines = stats.lines_along(rows, path)
  values = sorted({row.settings[path] for row in rows})
  logarithmic = values[0] > 0 and values[-1] >= 8 * values[0]
  xs = {value: math.log2(value) if logarithmic else float(value) for value in values}
  step = min(np.diff(list(xs.values())), default=1)
  figure, (axes,) = canvas.make()
  looks = canvas.looks(list(lines))
  for i, (label, line) in enumerate(lines.items()):
    # Side by side, so that the intervals of two lines do not hide each other.
    shift = 0.06 * step * (i - (len(lines) - 1) / 2) if len(lines) <= 7 else 0.0
    line_xs = [xs[row.settings[path]] + shift for row in line]
    _draw_line(axes, line_xs, line, metric, label, looks[label])
  axes.xaxis.set_major_locator(FixedLocator(list(xs.values())))
  axes.set_xticklabels([stats.show(value) for value in values])
  axes.set_xlim(xs[values[0]] - 0.4 * step, xs[values[-1]] + 0.4 * step)
  key = path.rpartition(".")[2]
  methods = "/".join(sorted({row.settings["method.name"] for row in rows}))
  name, _, unit = _AXES.get(key, key.replace("_", " ")).format(method=methods).partition(" (")
  unit = ", ".join(filter(None, [unit.rstrip(")"), "log scale" if logarithmic else ""]))
  axes.set_xlabel(f"{name} ({unit})" if unit else name)
  _finish(figure, axes, rows, metric, name)
  return figure


def against_parameters(rows: Sequence[stats.Row], metric: str) -> Figure:
  """Draws the metric against the count of trained parameters, with a colour for each method.

  A line joins a method's best settings at each size, which are named. Its other settings (other
  learning rates, say) are faint points.
  """
  rows = [row for row in rows if _size(row)]
  figure, (axes,) = canvas.make()
  _scale_to_sizes(axes, [_size(row) for row in rows])
  methods: dict[str, list[stats.Row]] = {}
  for row in rows:
    methods.setdefault(row.settings["method.name"], []).append(row)
  looks = canvas.looks(list(methods))
  names, obstacles = [], []
  for method, members in methods.items():
    line, others = _best_at_each_size(members, metric)
    _draw_line(axes, [_size(row) for row in line], line, metric, method, looks[method])
    obstacles += _draw_faintly(axes, others, metric, looks[method])
    for row, label in zip(line, _method_labels(line), strict=True):
      mean, half_width, *_ = stats.over_seeds(row.results, metric)
      if mean is not None:
        names.append((_size(row), mean, label))
        obstacles.append((_size(row), mean - (half_width or 0), mean + (half_width or 0)))
  axes.set_xlabel("trained parameters (log scale)")
  joined = ["lines join the best at each size; the rest is faint"] if len(names) < len(rows) else []
  _finish(figure, axes, rows, metric, "trained parameters", joined)
  canvas.write_names(figure, axes, [name for name in names if name[2]], obstacles)
  return figure


def _scale_to_sizes(axes: Axes, sizes: Sequence[int]) -> None:
  """Makes the horizontal axis logarithmic, with some room beside the least and the largest size."""
  axes.set_xscale("log")
  room = max(1.4, (max(sizes) / min(sizes)) ** 0.08)
  axes.set_xlim(min(sizes) / room, max(sizes) * room)
  axes.xaxis.set_major_locator(LogLocator(subs=(1,) if room > 1.4 else (1, 2, 5)))
  axes.xaxis.set_major_formatter(EngFormatter(sep=""))
  axes.xaxis.set_minor_formatter(NullFormatter())
  axes.margins(y=0.12)


def _draw_line(
  axes: Axes,
  xs: Sequence[float],
  rows: Sequence[stats.Row],
  metric: str,
  label: str,
  look: canvas.Look,
) -> None:
  """Draws a line through the means of rows, with their intervals and their single seeds."""
  summaries = [stats.over_seeds(row.results, metric) for row in rows]
  axes.errorbar(
    xs,
    [math.nan if s.mean is None else s.mean for s in summaries],
    yerr=[s.half_width or 0.0 for s in summaries],
    color=look.color,
    marker=look.marker,
    markersize=5.5,
    linewidth=1.8,
    elinewidth=1.2,
    zorder=3,
    capsize=3 if any(s.half_width for s in summaries) else 0,
    label=label or None,
  )
  for x, row in zip(xs, rows, strict=True):
    _draw_seeds(axes, x, row, metric, look.color)


def _draw_seeds(axes: Axes, x: float, row: stats.Row, metric: str, color: Any) -> None:
  """Draws faint dots for two seeds or more, and a cross at the top edge where one diverged."""
  values = [stats.final(result, metric) for result in row.results]
  finite = [value for value in values if value is not None and math.isfinite(value)]
  if len(row.results) > 1:
    axes.plot(
      [x] * len(finite),
      finite,
      "o",
      color=color,
      alpha=0.4,
      markersize=3.5,
      markeredgewidth=0,
      zorder=2,
      transform=axes.transData + ScaledTranslation(6 / 72, 0, axes.figure.dpi_scale_trans),
    )
  if stats.summarize(values).diverged:
    axes.plot(
      [x],
      [0.97],
      "x",
      color=color,
      transform=axes.get_xaxis_transform(),
      markersize=7,
      markeredgewidth=2,
      zorder=4,
    )


def _draw_faintly(
  axes: Axes, rows: Sequence[stats.Row], metric: str, look: canvas.Look
) -> list[tuple[float, float, float]]:
  """Draws the mean of each row at its size; returns the obstacles that names must not cover."""
  points = [(_size(row), stats.over_seeds(row.results, metric).mean) for row in rows]
  axes.plot(
    [x for x, _ in points],
    [math.nan if y is None else y for _, y in points],
    look.marker,
    color=look.color,
    alpha=0.3,
    markersize=5,
    markeredgewidth=0,
    linestyle="none",
    zorder=1,
  )
  return [(x, y, y) for x, y in points if y is not None]


def _finish(
  figure: Figure,
  axes: Axes,
  rows: Sequence[stats.Row],
  metric: str,
  against: str,
  notes: Sequence[str] = (),
) -> None:
  """Adds to the drawn rows the untuned base, the title, how to read the plot, and the legend."""
  axes.set_ylabel(metrics.title(metric))
  lines = [_reading(rows, metric), *_base_line(axes, rows, metric), *notes]
  canvas.keep_within(axes, *metrics.bounds(metric))
  canvas.entitle(axes, f"{_plain_title(metric)} against {against}", lines)
  canvas.legend(figure, axes)


def _base_line(axes: Axes, rows: Sequence[stats.Row], metric: str) -> list[str]:
  """Draws the untuned base as a dashed line.

  Returns:
    A note that states the base's value instead, where its line would squash the rest.
  """
  means = [
    summary.mean
    for row in stats.group_bases(rows)
    if (summary := stats.of_base(row.results, metric)).mean is not None
  ]
  low, high = axes.get_ylim()
  if len(means) != 1:
    return []
  if max(high, means[0]) - min(low, means[0]) > 1.6 * (high - low):
    return [
      f"base without tuning: {means[0]:.4g} ({'above' if means[0] > high else 'below'} the plot)"
    ]
  axes.axhline(means[0], color=canvas.GREY, linestyle="--", linewidth=1.2, zorder=1)
  axes.annotate(
    "base (untuned)",
    (1, means[0]),
    xycoords=axes.get_yaxis_transform(),
    ha="right",
    xytext=(-4, 3),
    textcoords="offset points",
    fontsize=9,
    color=canvas.GREY,
  )
  return []


def _best_at_each_size(
  rows: Sequence[stats.Row], metric: str
) -> tuple[list[stats.Row], list[stats.Row]]:
  """Returns the best row of each size, in order of size, and all other rows."""
  best: dict[int, stats.Row] = {}
  ordered = stats.best_first(rows, metric)
  for row in ordered:
    best.setdefault(_size(row), row)
  return sorted(best.values(), key=_size), [row for row in ordered if row is not best[_size(row)]]


def _method_labels(rows: Sequence[stats.Row]) -> list[str]:
  """Labels rows of one method by the method's settings; a single row has an empty label."""
  if len(rows) == 1:
    return [""]
  settings = [
    {
      key: value
      for key, value in row.settings.items()
      if key.startswith("method.") and key != "method.name"
    }
    for row in rows
  ]
  return [label if label != "all" else "" for label in stats.labels(settings)]


def _size(row: stats.Row) -> int:
  """Returns a row's count of trained parameters, 0 where it is not known."""
  return row.results[0].get("trained_parameters") or 0


def _reading(rows: Sequence[stats.Row], metric: str) -> str:
  """Says how to read points, bars and crosses."""
  seeds = max((len(row.results) for row in rows), default=1)
  reading = "one seed, hence no intervals"
  if seeds > 1:
    reading = f"mean over {seeds} seeds; bars: 95 % interval; dots: single seeds"
  diverged = any(stats.over_seeds(row.results, metric).diverged for row in rows)
  return reading + ("; ×: a seed diverged" if diverged else "")


def _plain_title(metric: str) -> str:
  bare = re.sub(r" \(.*?\)", "", metrics.title(metric), count=1)  # without the unit
  return bare[:1].upper() + bare[1:]
