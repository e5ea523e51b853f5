"""Lays out how far trials are, in lines that fit a screen."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Sequence

from jaxtune.api.status import DONE, Status

ORDER = ("running", "stopped", "failed", "diverged", "done", "left early", "waiting")
_BAR = 10  # columns of a bar, or of a state's name
_SHORTEST = 24  # columns of a name, unless all are shorter


def text(
  found: Sequence[Status], width: int | None = None, height: int | None = None, bars: bool = False
) -> str:
  """Lays statuses out: a line for each trial, below what is said of all of them.

  Trials are in the order of their states, running ones first, and then of their best loss.

  Args:
    width: of the screen in columns; None for lines of any length.
    height: most lines. Trials that wait are then left out, and others that do not fit are counted
      in the last line. None for all.
    bars: whether a bar stands in place of "running".
  """
  lines = summary(found, width) if len(found) > 1 else []
  best = lambda one: math.inf if one.best is None else one.best
  shown = [one for one in found if height is None or one.state != "waiting"]
  rows = sorted(shown, key=lambda one: (ORDER.index(one.state), best(one), -one.step))
  room = len(rows) if height is None else max(height - len(lines) - 1, 0)
  if len(rows) > room:
    room = max(room - 1, 0)
  lines += _table(rows[:room], width, bars) if rows[:room] else []
  if rows[room:]:
    lines.append(_fitted(f"{len(rows[room:])} more: {_counted(rows[room:])}", width))
  return "\n".join(lines[:height])


def summary(found: Sequence[Status], width: int | None = None) -> list[str]:
  """Says of a whole sweep how many trials are how far, the time left and which is the best.

  The time is that of the updates which are left, at the speed of the trials that run now.
  """
  left = sum(one.steps - one.step for one in found if one.state in ("running", "waiting"))
  done = sum(one.steps if one.state in (*DONE, "failed") else one.step for one in found)
  speed = sum(one.speed or 0.0 for one in found if one.step < one.steps)
  parts = [_counted(found)]
  if len(found) == 1:
    parts = [f"update {found[0].step:,}/{found[0].steps:,}"]
    parts += [] if found[0].loss is None else [f"loss {_number(found[0].loss)}"]
  parts.append(f"{100 * done // max(sum(one.steps for one in found), 1)} % trained")
  if left and speed:
    parts.append(f"{duration(left / speed)} left")
  judged = [one for one in found if one.best is not None and one.state != "diverged"]
  if judged:
    first = min(judged, key=lambda one: one.best)
    said = f"best {_number(first.best)}" + f" by {first.name}" * (len(found) > 1)
    parts.append(said if width is None or len(said) <= width else _fitted(_initials(said), width))
  whole = [part.replace(" ", "\xa0") for part in ", ".join(parts).split(", ")]  # not to be broken
  lines = textwrap.wrap(", ".join(whole), width or 10**6, break_on_hyphens=False)
  return [line.replace("\xa0", " ") for line in lines]


def _counted(found: Sequence[Status]) -> str:
  states = [one.state for one in found]
  return ", ".join(f"{states.count(state)} {state}" for state in ORDER if state in states)


def _table(rows: Sequence[Status], width: int | None, bars: bool) -> list[str]:
  """Returns a heading and a line for each trial; narrow screens do without bar, and then loss."""
  columns = {
    "trial": [one.name for one in rows],
    "state": [_bar(one) if bars and one.state == "running" else one.state for one in rows],
    "update": [f"{one.step:,}/{one.steps:,}" for one in rows],
    "loss": [_number(one.loss) for one in rows],
    "best": [_number(one.best) for one in rows],
    "left": ["" if one.seconds_left is None else duration(one.seconds_left) for one in rows],
  }
  widths = {name: max(map(len, [name, *cells])) for name, cells in columns.items()}
  if bars:
    widths["state"] = _BAR
  used = lambda: sum(size + 2 for name, size in widths.items() if name != "trial")
  shortest = min(_SHORTEST, max(len(_initials(one.name)) for one in rows))
  for name in ("state", "loss", "left"):
    if width is not None and width - used() < shortest:
      del widths[name]
  if "state" not in widths:
    running = [one.state == "running" for one in rows]
    cells = zip(running, columns["update"], rows, strict=True)
    columns["update"] = [update if runs else one.state for runs, update, one in cells]
    widths["update"] = max(map(len, ["update", *columns["update"]]))
  if width is not None and (room := max(width - used(), 1)) < widths["trial"]:
    columns["trial"] = [_fitted(_initials(name), room) for name in columns["trial"]]
    widths["trial"] = max(map(len, ["trial"[:room], *columns["trial"]]))
  lines = []
  for cells in zip(*([name, *columns[name]] for name in widths), strict=True):
    pairs = zip(cells, widths.items(), strict=True)
    left = ("trial", "state")
    laid = [c.ljust(size) if name in left else c.rjust(size) for c, (name, size) in pairs]
    lines.append("  ".join(laid).rstrip()[:width])
  return lines


def _initials(name: str) -> str:
  """Shortens a trial's name: "rank=4,learning_rate=0.1" becomes "r=4,lr=0.1"."""
  first = lambda key: "".join(word[:1] for word in re.split(r"[_.]", key[1])) + "="
  return re.sub(r"([A-Za-z][\w.]*)=", first, name)


def _bar(one: Status) -> str:
  full = _BAR * one.step // max(one.steps, 1)
  return "█" * full + "░" * (_BAR - full)


def _fitted(name: str, width: int | None) -> str:
  """Leaves out the middle of what is too long, since names differ most at both ends."""
  if width is None or len(name) <= width:
    return name
  end = (width - 1) // 2
  return f"{name[: width - 1 - end]}…{name[len(name) - end :]}"


def _number(value: float | None) -> str:
  if value is None:
    return ""
  return f"{value:.4f}" if abs(value) < 100 else f"{value:.4g}"


def duration(seconds: float) -> str:
  """Writes a time as "45 s", "12 min", "3.3 h" or "2.1 days"."""
  if seconds < 90:
    return f"{seconds:.0f} s"
  minutes = seconds / 60
  if minutes < 90:
    return f"{minutes:.0f} min"
  return f"{minutes / 60:.1f} h" if minutes < 48 * 60 else f"{minutes / 60 / 24:.1f} days"
