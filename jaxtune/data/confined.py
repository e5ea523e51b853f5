"""Renders templates in another process, which has limits and can be stopped.

A template may loop for days or fill the memory within a single operation, which nothing in the same
process can interrupt. The other process is started when it is first needed, and serves until this
one ends. It imports no jax. The kernel ends it when its computing time is used up, whatever it is
doing. It also ends when this process is gone. It answers with texts and lists as JSON, and never
with pickled objects, which could run code here.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from types import FunctionType
from typing import Any

from jaxtune.errors import UserError

try:
  import resource
except ImportError:  # native Windows: there is no such process, see `each`
  resource = None

SECONDS = 10.0  # the processor's time for one item
MEMORY = 2**30  # bytes beyond those that the process holds before it begins
OUTPUT = 1_000_000  # bytes of one item's result, plus ten for each byte of the item

_WATCHED = sys.platform != "linux"  # only Linux enforces a limit on memory by itself

inside = False  # whether this is the other process
_lock = threading.Lock()
_running: _Process | None = None


class Exceeded(UserError):
  """A template reached a limit. It may do so for every row, so such a row is never skipped."""


def each(
  make: Callable[..., Callable], items: Sequence, *shared: Any, here: bool = False
) -> Iterator[Any]:
  """Calls `make(*shared)` in the other process, and the function that this returns with each item.

  Args:
    make: a function at the top of a module.
    items, shared: what can be pickled.
    here: whether to do it in this process, for templates that cannot reach a limit. Where the
      system knows no limits (native Windows) everything is done in this process, without limits.

  Yields:
    For each item the result, plain data that JSON keeps, or the UserError that it ended in. After
    an `Exceeded` nothing follows.
  """
  if here or inside or resource is None:
    run = make(*shared)
    yield from (_attempt(run, item) for item in items)
    return
  at_a_time = 256
  for start in range(0, len(items), at_a_time):
    results = _ask(make, items[start : start + at_a_time], shared)
    yield from results
    if isinstance(results[-1], Exceeded):
      return


def one(make: Callable[..., Callable], item: Any, *shared: Any) -> Any:
  """Does what `each` does for a single item, and raises its error if it ends in one."""
  (result,) = each(make, [item], *shared)
  if isinstance(result, UserError):
    raise result
  return result


def _ask(make: Callable[..., Callable], items: Sequence, shared: tuple) -> list:
  """Returns the other process's results; where a limit is reached, it is asked item by item.

  When the kernel ends it, the results that it had are lost, and so is which item was at fault.
  """
  global _running
  with _lock:
    if _running is None or not _running.alive():
      _running = _Process()
    results = _running.ask(make, items, shared)
  if len(items) > 1 and isinstance(results[-1], Exceeded):
    results = []
    for item in items:
      results += _ask(make, [item], shared)
      if isinstance(results[-1], Exceeded):
        break
  return results


class _Process:
  """The other process and the pipe to it."""

  def __init__(self):
    self.owner, (self.pipe, theirs) = os.getpid(), Pipe()
    code = f"from jaxtune.data import confined; confined.serve({theirs.fileno()})"
    more = {"PYTHONPATH": os.pathsep.join(sys.path), "TRANSFORMERS_VERBOSITY": "error"}
    # -P, as the folder in which a command is given may hold a file that is named like a module.
    self.process = subprocess.Popen(
      [sys.executable, "-P", "-c", code], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
      pass_fds=[theirs.fileno()], env=os.environ | more,
    )  # fmt: skip
    theirs.close()
    atexit.register(self.stop)

  def alive(self) -> bool:
    """Tells whether the process runs, and whether it was started here and not before a fork."""
    return self.owner == os.getpid() and self.process.poll() is None

  def ask(self, make: FunctionType, items: Sequence, shared: tuple) -> list:
    """Returns the results up to the first `Exceeded`, after which the process is gone."""
    try:
      sent = [_attempt(pickle.dumps, item) for item in items]
      limits = (SECONDS, MEMORY, OUTPUT)
      self.pipe.send((make.__module__, make.__qualname__, shared, sent, limits))
      while not self.pipe.poll(0.05 if _WATCHED else None):
        if _resident(self.process.pid) > MEMORY:
          raise Exceeded(_too_much())
      answers = json.loads(self.pipe.recv_bytes())
    except (EOFError, ConnectionError):
      answers = [("Exceeded", _reason(self.process.wait()))]
    except Exceeded as error:
      answers = [("Exceeded", str(error))]
    except BaseException:  # an interrupt: what is still under way must not answer the next call
      self.stop()
      raise
    errors = {"UserError": UserError, "Exceeded": Exceeded}
    results = [errors[kind](result) if kind else result for kind, result in answers]
    if isinstance(results[-1], Exceeded):
      self.stop()
    return results

  def stop(self) -> None:
    """Ends the process, unless this is a fork of the one that started it."""
    if self.owner == os.getpid():
      self.pipe.close()
      self.process.kill()
      self.process.wait()


def _resident(process: int) -> int:
  """Counts the bytes of memory that a process holds."""
  command = ["ps", "-o", "rss=", "-p", str(process)]
  kilobytes = subprocess.run(command, capture_output=True, text=True, check=False).stdout
  return int(kilobytes or 0) * 1024


def _reason(code: int) -> str:
  """Says why the process ended, by its exit code."""
  if code == -signal.SIGPROF:
    return f"the template took more than {SECONDS:g} seconds of computing, and was stopped"
  what = signal.Signals(-code).name if code < 0 else f"code {code}"
  return f"the process that rendered the template ended with {what}"


def _too_much() -> str:
  return f"the template needed more than {MEMORY / 2**20:g} MiB of memory, and was stopped"


def _attempt(function: Callable, *args: Any) -> Any:
  """Calls the function; an error of whatever kind becomes a UserError of one line."""
  try:
    return function(*args)
  except UserError as error:
    return error
  except MemoryError:
    return Exceeded(_too_much())
  except UnicodeEncodeError:
    return UserError("the template writes half of a surrogate pair, which is no character")
  except Exception as error:
    return UserError(f"the template failed: {said(error)}")


def said(error: Exception | str) -> str:
  """Writes an error's message in one line."""
  return " ".join(str(error).split()) or type(error).__name__


def serve(number: int) -> None:
  """Answers what is asked at the other end of a pipe, until that is closed."""
  global inside, SECONDS, MEMORY, OUTPUT
  inside, pipe = True, Connection(number)
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is for the process that asks
  signal.signal(signal.SIGPROF, signal.SIG_DFL)
  signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGPROF])
  resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
  _, hard = resource.getrlimit(resource.RLIMIT_AS)
  while True:
    try:
      module, name, shared, items, (SECONDS, MEMORY, OUTPUT) = pipe.recv()
      signal.setitimer(signal.ITIMER_PROF, 0)
      make = getattr(importlib.import_module(module), name)
      if not _WATCHED:
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        soft = size + MEMORY if hard == resource.RLIM_INFINITY else min(size + MEMORY, hard)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
      signal.setitimer(signal.ITIMER_PROF, SECONDS)
      run = _attempt(make, *shared)
      pipe.send_bytes(b"[" + b",".join(_answers(run, items)) + b"]")
    except (EOFError, ConnectionError):
      return


def _answers(run: Callable | UserError, items: Sequence[bytes | UserError]) -> Iterator[bytes]:
  """Writes as JSON each item's result, [null, result], or its error, [its class, its message].

  The first item that exceeds a limit is the last.
  """
  for item in items:
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    result = _attempt(_result, run, item)
    if not isinstance(result, UserError):
      yield result
      continue
    yield json.dumps([type(result).__name__, str(result)]).encode()
    if isinstance(result, Exceeded):
      return


def _result(run: Callable | UserError, item: bytes | UserError) -> bytes:
  if isinstance(item, UserError):
    raise item
  if isinstance(run, UserError):
    raise run
  content = json.dumps([None, run(pickle.loads(item))], ensure_ascii=False).encode()
  most = OUTPUT + 10 * len(item)
  if len(content) > most:
    raise Exceeded(f"the template wrote more than {most:,} bytes for one row")
  return content
