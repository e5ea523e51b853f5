"""Plots of a sweep: a metric against each numeric axis and against the trained parameters.

Figures are made without pyplot, so no global state of matplotlib changes and no display is needed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter
from matplotlib.transforms import ScaledTranslation

from jaxtune import metrics
from jaxtune.sweeps import canvas, curves, grid, stats


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
  # A metric may have the name of a task, which is the data's.
  safe = lambda name: re.sub(r"[^\w.-]", "_", name)
  return {safe(name): figure for name, figure in drawn.items()}


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
  axes.set_xticks(list(xs.values()), [stats.show(value) for value in values])
  axes.set_xlim(xs[values[0]] - 0.4 * step, xs[values[-1]] + 0.4 * step)
  key = path.rpartition(".")[2]
  methods = "/".join(sorted({row.settings["method.name"] for row in rows}))
  names = {"length": f"{methods} length", "width": "bottleneck width"}
  name = names.get(key, key.replace("_", " "))
  units = ["positions"] * (key == "length") + ["log scale"] * logarithmic
  axes.set_xlabel(f"{name} ({', '.join(units)})" if units else name)
  _finish(axes, rows, metric, name)
  return figure


def against_parameters(rows: Sequence[stats.Row], metric: str) -> Figure:
  """Draws the metric against the count of trained parameters, with a colour for each method.

  A line joins a method's best settings at each size, which are named. Its other settings (other
  learning rates, say) are faint points.
  """
  rows = [row for row in rows if _size(row)]  # a logarithmic axis has no 0
  figure, (axes,) = canvas.make()
  _scale_to_sizes(axes, [_size(row) for row in rows])
  methods: dict[str, list[stats.Row]] = {}
  for row in rows:
    methods.setdefault(row.settings["method.name"], []).append(row)
  looks = canvas.looks(list(methods))
  names = []
  for method, members in methods.items():
    # Of rows of one size the best comes last, and stays.
    best = {_size(row): row for row in reversed(stats.best_first(members, metric))}
    line = [best[size] for size in sorted(best)]
    _draw_line(axes, sorted(best), line, metric, method, looks[method])
    for row, label in zip(line, _method_labels(line), strict=True):
      names.append((_size(row), stats.over_seeds(row.results, metric).mean, label))
    others = [row for row in members if row is not best[_size(row)]]
    means = [stats.over_seeds(row.results, metric).mean for row in others]
    faint = dict(color=looks[method].color, alpha=0.3, markersize=5, markeredgewidth=0, zorder=1)
    sizes = [_size(row) for row in others]
    axes.plot(sizes, np.array(means, float), looks[method].marker, linestyle="none", **faint)
  axes.set_xlabel("trained parameters (log scale)")
  joined = ["lines join the best at each size; the rest is faint"] if len(names) < len(rows) else []
  _finish(axes, rows, metric, "trained parameters", joined)
  summaries = [(_size(row), stats.over_seeds(row.results, metric)) for row in rows]
  intervals = [
    (size, s.mean - (s.half_width or 0), s.mean + (s.half_width or 0))
    for size, s in summaries
    if s.mean is not None
  ]
  drawn = [name for name in names if name[1] is not None and name[2]]
  canvas.write_names(figure, axes, drawn, intervals)
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
  """Draws a line through the means of rows, with their intervals.

  Faint dots beside a mean are its seeds, if there are several; a cross at the top edge says that
  one of them diverged.
  """
  summaries = [stats.over_seeds(row.results, metric) for row in rows]
  means = np.array([s.mean for s in summaries], float)
  half_widths = [s.half_width or 0.0 for s in summaries]
  style = dict(color=look.color, marker=look.marker, markersize=5.5, linewidth=1.8, elinewidth=1.2)
  caps = 3 if any(half_widths) else 0
  axes.errorbar(xs, means, half_widths, capsize=caps, zorder=3, label=label or None, **style)
  beside = axes.transData + ScaledTranslation(6 / 72, 0, axes.figure.dpi_scale_trans)
  faint = dict(color=look.color, alpha=0.4, markersize=3.5, markeredgewidth=0, transform=beside)
  cross = dict(color=look.color, markersize=7, markeredgewidth=2, zorder=4)
  for x, row, summary in zip(xs, rows, summaries, strict=True):
    if len(row.results) > 1:
      values = [stats.final(result, metric) for result in row.results]
      axes.plot([x] * len(values), np.array(values, float), "o", zorder=2, **faint)
    if summary.diverged:
      axes.plot([x], [0.97], "x", transform=axes.get_xaxis_transform(), **cross)


def _finish(
  axes: Axes, rows: Sequence[stats.Row], metric: str, against: str, notes: Sequence[str] = ()
) -> None:
  """Adds to the drawn rows the untuned base, the title, how to read the plot, and the legend."""
  axes.set_ylabel(metrics.title(metric))
  lines = [_reading(rows, metric), *_base_line(axes, rows, metric), *notes]
  # An interval of few seeds may reach beyond the values that the metric can have.
  low, high = axes.get_ylim()
  least, largest = metrics.bounds(metric)
  means = [stats.over_seeds(row.results, metric).mean for row in rows]
  if all(mean is None or least <= mean <= largest for mean in means):
    edge = 0.03 * (min(high, largest) - max(low, least))
    axes.set_ylim(max(low, least - edge), min(high, largest + edge))
  plain = re.sub(r" \(.*?\)", "", metrics.title(metric), count=1)  # without the unit
  canvas.write_title(axes, f"{plain[:1].upper()}{plain[1:]} against {against}", lines)
  canvas.legend(axes.figure, axes)


def _base_line(axes: Axes, rows: Sequence[stats.Row], metric: str) -> list[str]:
  """Draws the untuned base as a dashed line.

  Returns:
    A note that states the base's value instead, where its line would squash the rest.
  """
  bases = [stats.of_base(row.results, metric).mean for row in stats.group_bases(rows)]
  means = list(dict.fromkeys(mean for mean in bases if mean is not None))
  if len(means) != 1:
    return []
  low, high = axes.get_ylim()
  if max(high, means[0]) - min(low, means[0]) > 1.6 * (high - low):
    return [
      f"base without tuning: {means[0]:.4g} ({'above' if means[0] > high else 'below'} the plot)"
    ]
  axes.axhline(means[0], color=canvas.GREY, linestyle="--", linewidth=1.2, zorder=1)
  place = dict(xycoords=axes.get_yaxis_transform(), ha="right")
  canvas.annotate(axes, "base (untuned)", (1, means[0]), (-4, 3), **place)
  return []


def _method_labels(rows: Sequence[stats.Row]) -> list[str]:
  """Labels rows of one method by the method's settings; a single row has an empty label."""
  of_method = lambda path: path.startswith("method.") and path != "method.name"
  settings = [
    {path: row.settings[path] for path in row.settings if of_method(path)} for row in rows
  ]
  return [label if label != "all" else "" for label in stats.labels(settings)]


def _size(row: stats.Row) -> int:
  """Returns a row's count of trained parameters."""
  return row.results[0]["trained_parameters"]


def _reading(rows: Sequence[stats.Row], metric: str) -> str:
  """Says how to read points, bars and crosses."""
  seeds = max((len(row.results) for row in rows), default=1)
  reading = "one seed, hence no intervals"
  if seeds > 1:
    reading = f"mean over {seeds} seeds; bars: 95 % interval; dots: single seeds"
  diverged = any(stats.over_seeds(row.results, metric).diverged for row in rows)
  return reading + ("; ×: a seed diverged" if diverged else "")
