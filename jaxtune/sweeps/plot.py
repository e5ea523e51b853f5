"""Plots of a sweep: a metric against each numeric axis and against size.

Figures are matplotlib objects outside pyplot: nothing global changes, and no display is needed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

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
  """Draws every plot that the results allow, by file name without its ending.

  Args:
    results: the result.json of every trial.
    metric: such as "test_loss".
    histories: trial -> the lines of its metrics.jsonl, for the learning curves.
  """
  rows = [
    row for row in stats.group(results) if any(metric in result["final"] for result in row.results)
  ]
  drawn: dict[str, Figure] = {}
  for path, short in grid.short_keys(numeric_axes(rows)).items():
    drawn[f"{metric}-{short}"] = against_axis(rows, metric, path)
  if len(set(map(_size, rows)) - {0}) > 1:
    drawn[f"{metric}-trained_parameters"] = against_parameters(rows, metric)
  if drawing := curves.learning_curves(stats.best_first(rows, metric), histories or {}):
    drawn["learning_curves"] = drawing
  return drawn


def numeric_axes(rows: Sequence[stats.Row]) -> list[str]:
  """Lists the settings that take two numbers or more within one method."""
  values: dict[tuple[str, str], set] = {}
  for row in rows:
    for path, value in row.settings.items():
      if isinstance(value, (int, float)) and not isinstance(value, bool):
        values.setdefault((path, row.settings["method.name"]), set()).add(value)
  return list(dict.fromkeys(path for (path, _), found in values.items() if len(found) > 1))


def against_axis(rows: Sequence[stats.Row], metric: str, path: str) -> Figure:
  """Draws the metric against one setting, a line for each value of the others."""
  rows = [row for row in rows if isinstance(row.settings.get(path), (int, float))]
  lines = _lines_along(rows, path)
  values = sorted({row.settings[path] for row in rows})
  logarithmic = values[0] > 0 and values[-1] >= 8 * values[0]
  places = {value: math.log2(value) if logarithmic else float(value) for value in values}
  step = min(np.diff(list(places.values())), default=1)
  figure, (axes,) = canvas.make()
  looks = canvas.looks(list(lines))
  for i, (label, line) in enumerate(lines.items()):
    # Side by side, so that the intervals of two lines do not hide each other.
    shift = 0.06 * step * (i - (len(lines) - 1) / 2) if len(lines) <= 7 else 0.0
    _line(
      axes, [places[row.settings[path]] + shift for row in line], line, metric, label, looks[label]
    )
  axes.xaxis.set_major_locator(FixedLocator(list(places.values())))
  axes.set_xticklabels([stats.show(value) for value in values])
  axes.set_xlim(places[values[0]] - 0.4 * step, places[values[-1]] + 0.4 * step)
  key = path.rpartition(".")[2]
  methods = "/".join(sorted({row.settings["method.name"] for row in rows}))
  name, _, unit = _AXES.get(key, key.replace("_", " ")).format(method=methods).partition(" (")
  unit = ", ".join(filter(None, [unit.rstrip(")"), "log scale" if logarithmic else ""]))
  axes.set_xlabel(f"{name} ({unit})" if unit else name)
  axes.set_ylabel(metrics.title(metric))
  words = [_reading(rows, metric), *_base_line(axes, rows, metric)]
  canvas.keep_within(axes, *metrics.bounds(metric))
  canvas.entitle(axes, f"{_plain_title(metric)} against {name}", words)
  canvas.legend(figure, axes)
  return figure


def against_parameters(rows: Sequence[stats.Row], metric: str) -> Figure:
  """Draws the metric against trained parameters, coloured by method, the best at each size named.

  Settings that leave the size alone (learning rates, say) stay as faint points.
  """
  rows = [row for row in rows if _size(row)]
  figure, (axes,) = canvas.make()
  axes.set_xscale("log")
  room = max(1.4, (max(map(_size, rows)) / min(map(_size, rows))) ** 0.08)
  axes.set_xlim(min(map(_size, rows)) / room, max(map(_size, rows)) * room)
  axes.xaxis.set_major_locator(LogLocator(subs=(1,) if room > 1.4 else (1, 2, 5)))
  axes.xaxis.set_major_formatter(EngFormatter(sep=""))
  axes.xaxis.set_minor_formatter(NullFormatter())
  axes.margins(y=0.12)
  methods: dict[str, list[stats.Row]] = {}
  for row in rows:
    methods.setdefault(row.settings["method.name"], []).append(row)
  looks = canvas.looks(list(methods))
  names, obstacles = [], []
  for method, members in methods.items():
    line, rest = _best_at_each_size(members, metric)
    _line(axes, list(map(_size, line)), line, metric, method, looks[method])
    faint = [(_size(row), stats.over_seeds(row.results, metric).mean) for row in rest]
    axes.plot(
      [x for x, _ in faint],
      [math.nan if y is None else y for _, y in faint],
      looks[method].marker,
      color=looks[method].color,
      alpha=0.3,
      markersize=5,
      markeredgewidth=0,
      linestyle="none",
      zorder=1,
    )
    obstacles += [(x, y, y) for x, y in faint if y is not None]
    for row, label in zip(line, _method_labels(line), strict=True):
      mean, half_width, *_ = stats.over_seeds(row.results, metric)
      if mean is not None:
        names.append((_size(row), mean, label))
        obstacles.append((_size(row), mean - (half_width or 0), mean + (half_width or 0)))
  axes.set_xlabel("trained parameters (log scale)")
  axes.set_ylabel(metrics.title(metric))
  lines = [_reading(rows, metric), *_base_line(axes, rows, metric)]
  canvas.keep_within(axes, *metrics.bounds(metric))
  joined = ["lines join the best at each size; the rest is faint"] if len(names) < len(rows) else []
  canvas.entitle(axes, f"{_plain_title(metric)} against trained parameters", lines + joined)
  canvas.legend(figure, axes)
  canvas.place_names(figure, axes, [name for name in names if name[2]], obstacles)
  return figure


def _line(
  axes: Axes,
  places: Sequence[float],
  line: Sequence[stats.Row],
  metric: str,
  label: str,
  look: canvas.Look,
) -> None:
  """Draws means with intervals, single seeds as faint dots beside, the diverged at the edge."""
  summaries = [stats.over_seeds(row.results, metric) for row in line]
  means = [math.nan if s.mean is None else s.mean for s in summaries]
  axes.errorbar(
    places,
    means,
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
  beside = axes.transData + ScaledTranslation(6 / 72, 0, axes.figure.dpi_scale_trans)
  for x, row, summary in zip(places, line, summaries, strict=True):
    seeds = [stats.final(result, metric) for result in row.results]
    seeds = [seed for seed in seeds if seed is not None and math.isfinite(seed)]
    if len(row.results) > 1:
      axes.plot(
        [x] * len(seeds),
        seeds,
        "o",
        color=look.color,
        alpha=0.4,
        markersize=3.5,
        markeredgewidth=0,
        zorder=2,
        transform=beside,
      )
    if summary.diverged:
      axes.plot(
        [x],
        [0.97],
        "x",
        color=look.color,
        transform=axes.get_xaxis_transform(),
        markersize=7,
        markeredgewidth=2,
        zorder=4,
      )


def _base_line(axes: Axes, rows: Sequence[stats.Row], metric: str) -> list[str]:
  """Draws the untuned base as a dashed line, or returns its words where that squashes the rest."""
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


def _lines_along(rows: Sequence[stats.Row], path: str) -> dict[str, list[stats.Row]]:
  """Groups rows that differ in `path` alone, in its order, by the label of their other settings."""
  others = [{key: value for key, value in row.settings.items() if key != path} for row in rows]
  methods = {row.settings["method.name"] for row in rows}
  lines: dict[str, list[stats.Row]] = {}
  for row, label in zip(rows, stats.labels(others), strict=True):
    if len(methods) == 1:
      label = label.removeprefix(row.settings["method.name"]).strip()
    lines.setdefault(label, []).append(row)
  return {label: sorted(line, key=lambda row: row.settings[path]) for label, line in lines.items()}


def _best_at_each_size(
  rows: Sequence[stats.Row], metric: str
) -> tuple[list[stats.Row], list[stats.Row]]:
  best: dict[int, stats.Row] = {}
  ordered = stats.best_first(rows, metric)
  for row in ordered:
    best.setdefault(_size(row), row)
  return sorted(best.values(), key=_size), [row for row in ordered if row is not best[_size(row)]]


def _method_labels(rows: Sequence[stats.Row]) -> list[str]:
  """Labels rows of one method by its own settings alone; with nothing for a single row."""
  own = [
    {
      key: value
      for key, value in row.settings.items()
      if key.startswith("method.") and key != "method.name"
    }
    for row in rows
  ]
  return [label if label != "all" else "" for label in stats.labels(own)] if rows[1:] else [""]


def _size(row: stats.Row) -> int:
  return row.results[0].get("trained_parameters") or 0


def _reading(rows: Sequence[stats.Row], metric: str) -> str:
  seeds = max((len(row.results) for row in rows), default=1)
  reading = "one seed, hence no intervals"
  if seeds > 1:
    reading = f"mean over {seeds} seeds; bars: 95 % interval; dots: single seeds"
  lost = any(stats.over_seeds(row.results, metric).diverged for row in rows)
  return reading + ("; ×: a seed diverged" if lost else "")


def _plain_title(metric: str) -> str:
  bare = re.sub(r" \(.*?\)", "", metrics.title(metric), count=1)  # without the unit
  return bare[:1].upper() + bare[1:]
