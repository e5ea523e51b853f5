"""Plots of a sweep: a metric against each numeric axis and against size, and learning curves.

Figures are matplotlib objects outside pyplot: nothing global changes, and no display is needed.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator

from jaxtune.evaluators import metrics
from jaxtune.sweeps import grid, stats

# Okabe and Ito's palette for all kinds of colour vision, without yellow, which white swallows.
_PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = "osD^vPX"
_GREY = "#555555"
_AXES = {"rank": "rank", "length": "{method} length (positions)", "width": "bottleneck width",
         "alpha": "alpha", "learning_rate": "learning rate"}


class Look(NamedTuple):
  color: Any
  marker: str


def figures(results: Sequence[dict], metric: str,
            histories: Mapping[str, list[dict]] | None = None) -> dict[str, Figure]:
  """Draws every plot that the results allow, by file name without its ending.

  Args:
    results: the result.json of every trial.
    metric: such as "test_loss".
    histories: trial -> the lines of its metrics.jsonl, for the learning curves.
  """
  rows = [row for row in stats.group(results) if any(
    stats.final(result, metric) is not None for result in row.results)]
  drawn: dict[str, Figure] = {}
  for path, short in grid.short_keys(numeric_axes(rows)).items():
    drawn[f"{metric}-{short}"] = against_axis(rows, metric, path)
  if any(row.results[0].get("trained_parameters") for row in rows):
    drawn[f"{metric}-trained_parameters"] = against_parameters(rows, metric)
  if curves := learning_curves(stats.group(results), histories or {}):
    drawn["learning_curves"] = curves
  return drawn


def read_history(path: str | os.PathLike) -> list[dict]:
  """Reads a metrics.jsonl; [] if there is none, and without a last line that was cut off."""
  path = Path(path)
  lines = path.read_text().splitlines() if path.exists() else []
  history = []
  for line in lines:
    try:
      history.append(json.loads(line))
    except json.JSONDecodeError:
      continue  # a killed run's last words
  return history


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
  others = [{key: value for key, value in row.settings.items() if key != path} for row in rows]
  lines: dict[str, list[stats.Row]] = {}
  for row, label in zip(rows, stats.labels(others), strict=True):
    lines.setdefault(label, []).append(row)
  values = sorted({row.settings[path] for row in rows})
  logarithmic = values[0] > 0 and values[-1] >= 8 * values[0]
  place = math.log2 if logarithmic else float
  methods = {row.settings["method.name"] for row in rows}
  if len(methods) == 1:
    lines = {label.removeprefix(next(iter(methods))).strip(): line for label, line in lines.items()}
  key = path.rpartition(".")[2]
  title = _AXES.get(key, key.replace("_", " ")).format(method="/".join(sorted(methods)))
  figure, axes = _canvas(f"{_upper(metrics.title(metric))} against {title.partition(' (')[0]}",
                         _subtitle(rows))
  places = [place(value) for value in values]
  step = min(np.diff(places), default=1)
  looks = _looks(list(lines))
  for i, (label, line) in enumerate(lines.items()):
    line = sorted(line, key=lambda row: row.settings[path])
    # Side by side, so that the intervals of two lines do not hide each other.
    shift = 0.05 * step * (i - (len(lines) - 1) / 2) if len(lines) <= 8 else 0.0
    _line(axes, [place(row.settings[path]) + shift for row in line], line, metric, label,
          looks[label])
  axes.xaxis.set_major_locator(FixedLocator(places))
  axes.set_xticklabels([stats.show(value) for value in values])
  axes.set_xlim(places[0] - 0.4 * step, places[-1] + 0.4 * step)
  axes.set_xlabel(title + (" (log scale)" if logarithmic else ""))
  axes.set_ylabel(metrics.title(metric))
  _base_line(axes, rows, metric)
  _legend(figure, axes, sum(bool(label) for label in lines))
  return figure


def against_parameters(rows: Sequence[stats.Row], metric: str) -> Figure:
  """Draws the metric against trained parameters, coloured by method, its best at each size named.

  Settings that leave the size alone (learning rates, say) stay as faint points.
  """
  rows = [row for row in rows if row.results[0].get("trained_parameters")]
  figure, axes = _canvas(f"{_upper(metrics.title(metric))} against trained parameters",
                         _subtitle(rows, "; lines join the best at each size"))
  axes.set_xscale("log")
  methods: dict[str, list[stats.Row]] = {}
  for row in rows:
    methods.setdefault(row.settings["method.name"], []).append(row)
  looks = _looks(list(methods))
  names = []
  for method, members in methods.items():
    best: dict[int, stats.Row] = {}
    for row in stats.best_first(members, metric):
      best.setdefault(row.results[0]["trained_parameters"], row)
    line = [best[size] for size in sorted(best)]
    _line(axes, sorted(best), line, metric, method, looks[method])
    faint = [(row.results[0]["trained_parameters"], summary.mean) for row in members
             if row not in line and (summary := stats.over_seeds(row.results, metric)).mean]
    if faint:
      axes.plot(*zip(*faint, strict=True), looks[method].marker, color=looks[method].color,
                alpha=0.3, markersize=5, markeredgewidth=0, zorder=1)
    own = [{key: value for key, value in row.settings.items() if key.startswith("method.")
            and key != "method.name"} for row in line]
    if len(line) > 1:
      names += [(size, row, label) for size, row, label in
                zip(sorted(best), line, stats.labels(own), strict=True)]
  sizes = [row.results[0]["trained_parameters"] for row in rows]
  room = max(1.4, (max(sizes) / min(sizes)) ** 0.08)
  axes.set_xlim(min(sizes) / room, max(sizes) * room)
  axes.margins(y=0.12)
  axes.set_xlabel("trained parameters (log scale)")
  axes.set_ylabel(metrics.title(metric))
  _base_line(axes, rows, metric)
  _legend(figure, axes, len(methods))
  _place_names(figure, axes, [(size, mean, label) for size, row, label in names if (
    mean := stats.over_seeds(row.results, metric).mean) is not None])
  return figure


def learning_curves(rows: Sequence[stats.Row],
                    histories: Mapping[str, list[dict]]) -> Figure | None:
  """Draws training and validation loss by step, a line for each setting; None without any."""
  panels = [key for key in ("train_loss", "validation_loss") if any(
    key in entry for history in histories.values() for entry in history)]
  if not panels:
    return None
  figure, first = _canvas("Learning curves", _subtitle(rows, bars="bands"), len(panels))
  looks = _looks([row.label for row in rows])
  for axes, key in zip(figure.axes, panels, strict=True):
    for row in rows:
      steps, mean, half_width = _curve([histories.get(r["trial"], []) for r in row.results], key)
      axes.plot(steps, mean, color=looks[row.label].color, linewidth=1.6, label=row.label)
      if half_width is not None:
        axes.fill_between(steps, mean - half_width, mean + half_width, linewidth=0,
                          color=looks[row.label].color, alpha=0.15)
    axes.set_xlabel("step")
    axes.set_ylabel(metrics.title(key))
  _legend(figure, first, len(rows))
  return figure


def _curve(histories: list[list[dict]],
           key: str) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
  """Returns the steps that all seeds have, with mean and half-width of the interval."""
  # A resumed run writes some steps twice: the later counts.
  seeds = [{entry["step"]: entry[key] for entry in history if entry.get(key) is not None}
           for history in histories if history]
  steps = sorted(set.intersection(*map(set, seeds))) if seeds else []
  summaries = [stats.summarize(seed[step] for seed in seeds) for step in steps]
  mean = np.array([np.nan if s.mean is None else s.mean for s in summaries])
  if len(seeds) < 2:
    return np.array(steps), mean, None
  return np.array(steps), mean, np.array([s.half_width or 0.0 for s in summaries])


def _line(axes: Axes, places: Sequence[float], line: Sequence[stats.Row], metric: str, label: str,
          look: Look) -> None:
  """Draws means with intervals, single seeds as faint dots, and the diverged at the edge."""
  summaries = [stats.over_seeds(row.results, metric) for row in line]
  means = [math.nan if s.mean is None else s.mean for s in summaries]
  axes.errorbar(places, means, yerr=[s.half_width or 0.0 for s in summaries], color=look.color,
                marker=look.marker, markersize=6, linewidth=1.8, elinewidth=1.2, capsize=3,
                label=label or None, zorder=3)
  for x, row, summary in zip(places, line, summaries, strict=True):
    seeds = [stats.final(result, metric) for result in row.results]
    seeds = [seed for seed in seeds if seed is not None and math.isfinite(seed)]
    if len(row.results) > 1:
      axes.plot([x] * len(seeds), seeds, "o", color=look.color, alpha=0.35, markersize=4,
                markeredgewidth=0, zorder=2)
    if summary.diverged:
      axes.plot([x], [0.97], "x", color=look.color, transform=axes.get_xaxis_transform(),
                markersize=7, markeredgewidth=2, clip_on=False)
      axes.annotate("diverged", (x, 0.97), xycoords=axes.get_xaxis_transform(), fontsize=8,
                    xytext=(6, 0), textcoords="offset points", va="center", color=look.color)


def _base_line(axes: Axes, rows: Sequence[stats.Row], metric: str) -> None:
  """Shows the untuned base as a dashed line, or in words where it would squash the rest."""
  means = [summary.mean for row in stats.group_bases(rows)
           if (summary := stats.of_base(row.results, metric)).mean is not None]
  low, high = axes.get_ylim()
  if len(means) != 1:
    return
  if max(high, means[0]) - min(low, means[0]) <= 1.6 * (high - low):
    axes.axhline(means[0], color=_GREY, linestyle="--", linewidth=1.2, zorder=1)
    axes.annotate("base (untuned)", (1, means[0]), xycoords=axes.get_yaxis_transform(),
                  xytext=(-4, 3), textcoords="offset points", ha="right", fontsize=9, color=_GREY)
    return
  above = means[0] > high
  axes.annotate(f"base (untuned): {means[0]:.4g} {'↑' if above else '↓'}",
                (0.99, 0.98 if above else 0.02), xycoords="axes fraction", ha="right",
                va="top" if above else "bottom", fontsize=9, color=_GREY)


def _place_names(figure: Figure, axes: Axes, names: Sequence[tuple[float, float, str]]) -> None:
  """Writes labels beside their points, each at the first place that is still free."""
  figure.draw_without_rendering()
  taken = [axes.transData.transform((x, y)) for x, y, _ in names]
  taken = [(x - 8, y - 8, x + 8, y + 8) for x, y in taken]
  frame = axes.get_window_extent().extents
  for x, y, label in names:
    for dx, dy in ((0, 10), (0, -18), (9, 6), (9, -14), (-9, 6), (-9, -14), (0, 24), (0, -32)):
      note = axes.annotate(label, (x, y), xytext=(dx, dy), textcoords="offset points", fontsize=8,
                           ha={0: "center", 9: "left", -9: "right"}[dx], color=_GREY)
      box = note.get_window_extent().extents
      inside = box[0] > frame[0] and box[1] > frame[1] and box[2] < frame[2] and box[3] < frame[3]
      if inside and not any(box[0] < t[2] and t[0] < box[2] and box[1] < t[3] and t[1] < box[3]
                            for t in taken):
        taken.append(tuple(box))
        break
      note.remove()  # with no free place at all, the point stays unnamed


def _canvas(title: str, subtitle: str, panels: int = 1) -> tuple[Figure, Axes]:
  figure = Figure(figsize=(7.5 if panels == 1 else 10, 4.4), layout="constrained")
  figure.get_layout_engine().set(w_pad=0.1, h_pad=0.08, wspace=0.06)
  for i in range(panels):
    axes = figure.add_subplot(1, panels, i + 1)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e5e5e5", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_minor_locator(NullLocator())
  figure.axes[0].set_title(subtitle, loc="left", fontsize=9, color=_GREY, pad=10)
  figure.suptitle(title, x=0.015, ha="left", fontsize=12.5, fontweight="bold")
  return figure, figure.axes[0]


def _subtitle(rows: Sequence[stats.Row], rest: str = "", bars: str = "bars") -> str:
  seeds = max((len(row.results) for row in rows), default=1)
  if seeds < 2:
    return "one seed, hence no intervals" + rest
  dots = "" if bars == "bands" else "; dots: single seeds"
  return f"mean over {seeds} seeds; {bars}: 95 % interval{dots}{rest}"


def _legend(figure: Figure, axes: Axes, count: int) -> None:
  if count > 1:
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", frameon=False,
                  fontsize=9 if count <= 12 else 7)


def _looks(labels: Sequence[str]) -> dict[str, Look]:
  """Gives each label a colour and a marker; shades of one scale where the palette runs out."""
  colors = _PALETTE
  if len(labels) > len(_PALETTE):
    colors = matplotlib.colormaps["viridis"](np.linspace(0, 0.92, len(labels)))
  return {label: Look(colors[i], _MARKERS[i % len(_MARKERS)]) for i, label in enumerate(labels)}


def _upper(text: str) -> str:
  return text.partition(" (")[0][:1].upper() + text.partition(" (")[0][1:]
