"""Follows a sweep or a run while it trains: shows how far it is, and passes on what it logs.

Threads read what training writes into the folder, as `jaxtune status` does from another process.
Training knows nothing of them, and waits for them only at its end.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import ModuleType

from rich.console import Console
from rich.live import Live
from rich.text import Text

from jaxtune import hosts, schema
from jaxtune.api import status, status_text
from jaxtune.runs import loggers as loggers_
from jaxtune.runs import results
from jaxtune.runs.folder import read_history
from jaxtune.sweeps import grid
from jaxtune.training import optim

SCREEN, LINES, LOGGERS = 1.0, 30.0, 5.0  # seconds between two looks
SHARE = 0.05  # of the time that a thread may work
GRACE = 120.0  # seconds that it may take at the end, to send what a slow network has not taken yet
Act = Callable[[bool], None]  # (whether it is the last time) -> None


def follow(
  workdir: str | Path, screen: bool = True, loggers: Sequence[str] = ()
) -> AbstractContextManager[None]:
  """Returns what `fit` and `sweep` take as `during`: it follows the trials while they train.

  Nothing that fails meanwhile ends the training: one warning is printed, and the rest goes on.

  Args:
    screen: whether trials are shown on the terminal. Without a terminal, a line is printed now and
      then in any case.
    loggers: names of `jaxtune.runs.loggers`.

  Raises:
    UserError: for a logger that cannot work; see `loggers.find`.
  """
  found = {name: loggers_.find(name) for name in loggers}
  before = _version(Path(workdir))
  return _following(Path(workdir), before, screen, found)


def _version(workdir: Path) -> tuple | None:
  """Tells one config.json in a folder from another; every start writes a new one."""
  with contextlib.suppress(OSError):
    stat = (workdir / "config.json").stat()
    return stat.st_ino, stat.st_mtime_ns
  return None


@contextlib.contextmanager
def _following(
  workdir: Path, before: tuple | None, screen: bool, loggers: dict[str, ModuleType]
) -> Iterator[None]:
  begun = lambda: _version(workdir) != before
  with contextlib.ExitStack() as stack:
    if hosts.primary():
      for name, logger in loggers.items():
        make = lambda logger=logger: _passed_on(status.watched(workdir), logger)
        stack.enter_context(_regularly(f"--{name}", LOGGERS, make, begun))
      stack.enter_context(shown(workdir, screen, begun=begun))
    yield


@contextlib.contextmanager
def shown(
  workdir: Path,
  screen: bool = True,
  seconds: float | None = None,
  begun: Callable[[], bool] = lambda: True,
) -> Iterator[None]:
  """Shows how far trials are: on the terminal, or in a line now and then where there is none.

  Args:
    begun: says whether the folder is that of the trials already.
  """
  console = Console(soft_wrap=True)  # of what is printed above the view
  if not console.is_terminal or console.is_dumb_terminal:
    say = lambda found: print(*status_text.summary(found), flush=True)
    with _regularly("progress", seconds or LINES, lambda: _looked(workdir, say), begun):
      yield
  elif not screen:
    yield
  else:
    live = Live(console=console, auto_refresh=False, redirect_stderr=sys.stderr.isatty())

    def draw(found: list[status.Status]) -> None:
      width, height = console.size
      said = status_text.text(found, width, height - 1, bars=True)
      if all(one.state in status.DONE for one in found):  # the results follow
        said = "\n".join(status_text.summary(found, width))
      live.update(Text(said, no_wrap=True, overflow="crop"), refresh=True)

    with live, _regularly("progress", seconds or SCREEN, lambda: _looked(workdir, draw), begun):
      yield


def _looked(workdir: Path, say: Callable[[list[status.Status]], None]) -> Act:
  """Returns what says how far the trials are."""
  of, before = status.watched(workdir), []

  def act(last: bool) -> None:
    before[:] = status.look(of, before)
    say(before)

  return act


def _passed_on(of: status.Watched, logger: ModuleType) -> Act:
  """Returns what passes on to a logger that which the trials have logged since the last time.

  A step is passed on as a whole: the last one, of which there may be more to come, is left.
  """
  logs: dict[str, tuple[loggers_.Trial, loggers_.Log]] = {}
  passed, ended = dict.fromkeys(of.steps, 0), set()

  def act(last: bool) -> None:
    for name in of.steps:
      folder = of.place(name)
      if name in ended or not (folder / "metrics.jsonl").exists():
        continue
      if name not in logs:
        trial = _trial(of, name)
        logs[name] = trial, logger.begin(trial)
      (trial, log), result, rows = logs[name], results.read(folder), _rows(folder)
      steps = sorted(step for step in rows if step > passed[name])
      for step in steps if result else steps[:-1]:
        log.write(step, rows[step] | {"learning_rate": _rate(trial.config, step)})
        passed[name] = step
      if result or last:
        log.end(result.get("final", {}))
        ended.add(name)

  return act


def _trial(of: status.Watched, name: str) -> loggers_.Trial:
  """Reads what a logger is told of a trial that has begun."""
  config = schema.read_json(of.place(name) / "config.json")
  varied = lambda path: any(f"{path}.".startswith(f"{axis}.") for axis in of.axes)
  settings = {path: value for path, value in grid.flatten(config).items() if varied(path)}
  return loggers_.Trial(of.folder, name, config, settings)


def _rows(folder: Path) -> dict[int, dict[str, float]]:
  """Returns {step: all metrics of it} of a trial."""
  rows: dict[int, dict[str, float]] = {}
  for row in read_history(folder):
    numbers = {name: value for name, value in row.items() if isinstance(value, int | float)}
    rows.setdefault(numbers.pop("step"), {}).update(numbers)
  return rows


def _rate(config: dict, step: int) -> float:
  """Returns the learning rate of a trial's update, of which the first one is 1."""
  chosen, steps = config["optim"], config["train"]["steps"]
  share = optim.share(chosen["schedule"], step - 1, chosen["warmup"], steps)
  return chosen["learning_rate"] * float(share)


@contextlib.contextmanager
def _regularly(
  what: str, seconds: float, make: Callable[[], Act], begun: Callable[[], bool]
) -> Iterator[None]:
  """Calls what `make` returns every so many seconds, in a thread, and a last time at the end.

  If it fails, that is said once, and it is not called again.

  Args:
    begun: says whether it may be made.
  """
  over = threading.Event()

  def run() -> None:
    rest, act, last = seconds, None, False
    try:
      while not last:
        last, began = over.wait(rest), time.perf_counter()
        act = make() if act is None and begun() else act
        if act is not None:
          act(last)
        rest = max(seconds, (time.perf_counter() - began) / SHARE)
    except Exception as error:
      reason = f"{type(error).__name__}: {error}".splitlines()[0][:300]
      print(f"warning: {what} ends ({reason}); training goes on without it", file=sys.stderr)

  thread = threading.Thread(target=run, name=what, daemon=True)
  thread.start()
  try:
    yield
  finally:
    over.set()
    thread.join(GRACE)
    if thread.is_alive():
      print(f"warning: {what} has not ended after {GRACE:.0f} s and is left", file=sys.stderr)
