"""Writes and reads checkpoints of a running group, which never contain the base."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils

from jaxtune import hosts, libraries, schema
from jaxtune.errors import UserError
from jaxtune.files import writing

ocp = libraries.Lazy("orbax.checkpoint")
# Numbers the steps of this process, whatever they train: jax stops all processes at one number that
# must not be left out, and each of them takes the same steps since it began.
_steps = itertools.count(1)


def check_folder(folder: str | Path) -> None:
  """Raises UserError for a folder in which Orbax could not read checkpoints again."""
  whole = str(Path(folder).absolute())
  if "[" in whole:  # it takes its own path for a pattern
    raise UserError(
      f"{whole} has a '[' in its path, expected none: checkpoints in it could not be read again; "
      "give another --workdir"
    )


class Checkpoints(contextlib.AbstractContextManager):
  """Keeps the last two checkpoints of one run, in orbax's format; a context manager.

  Each holds the state (trained tree, optimizer, step, seed, best so far), the seconds that the run
  has taken, and a record of what it belongs to: the configuration, the base's fingerprint and the
  data's hashes.
  """

  def __init__(self, folder: Path, record: dict):
    self.folder, self.record = folder, record
    options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=False)
    with undamaged(folder), writing(folder):
      self.manager = ocp.CheckpointManager(folder.absolute(), options=options)

  def __exit__(self, *error: Any) -> None:
    self.manager.close()

  def save(self, step: int, state: Any, seconds: float = 0.0) -> None:
    """Writes a checkpoint, unless the latest one is of this step.

    If the process is killed meanwhile, the one before it remains.

    Args:
      seconds: seconds that the run has taken so far, over all its restarts.
    """
    if self.manager.latest_step() != step:
      record = ocp.args.JsonSave(self.record | {"seconds": seconds})
      args = ocp.args.Composite(state=ocp.args.StandardSave(state), record=record)
      with writing(self.folder), _patient_loops():
        self.manager.save(step, args=args)
        self.manager.wait_until_finished()

  def restore(
    self, start: Any, as_now: Callable[[dict], dict] = lambda record: record
  ) -> tuple[Any, float]:
    """Returns the latest state and its seconds, or `start` and 0.0 if there is no checkpoint.

    Args:
      start: a state with the shapes, types and shardings that are wanted. A caller that keeps it
        keeps its arrays on the devices beside those of the checkpoint.
      as_now: returns the record of an earlier version as this version would have written it.

    Raises:
      UserError: if it belongs to another configuration, base or data, is of an older version of
        jaxtune, or is damaged.
    """
    step = self.manager.latest_step()
    if step is None:
      return start, 0.0
    read = lambda **what: self.manager.restore(step, args=ocp.args.Composite(**what))
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, start)
    with undamaged(self.folder / str(step)), _patient_loops():
      record = read(record=ocp.args.JsonRestore()).record
      if "seconds" not in record:
        raise UserError(
          f"{self.folder} holds a checkpoint of an older version of jaxtune: give another --workdir"
        )
      check_same(f"{self.folder} holds a checkpoint", as_now(record), self.record)
      return read(state=ocp.args.StandardRestore(abstract)).state, record["seconds"]


def exists(folder: Path) -> bool:
  """Says whether a folder holds a whole checkpoint, of whatever it may be."""
  return any(path.name.isdigit() for path in folder.glob("*"))


def read_record(folder: Path) -> dict:
  """Reads what the latest checkpoint of a folder belongs to; {} where there is none.

  Another process may remove it meanwhile.
  """
  steps = [int(path.name) for path in folder.glob("*") if path.name.isdigit()]
  if not steps:
    return {}
  latest = folder / str(max(steps))
  path = latest / "record" / "metadata"
  try:
    return schema.read_json(path, dict, f"remove {latest} to go on from the checkpoint before it")
  except UserError:
    if path.exists():
      raise
    return {}


class _PatientLoop(asyncio.SelectorEventLoop):
  """An event loop that waits for its unfinished tasks before it closes."""

  def close(self) -> None:
    pending = () if self.is_closed() else asyncio.all_tasks(self)
    if pending:
      self.run_until_complete(asyncio.gather(*pending, return_exceptions=True))
    super().close()

  def call_exception_handler(self, context: dict[str, Any]) -> None:
    """Says nothing of the tasks that failed beside the one whose error is raised."""


@contextlib.contextmanager
def _patient_loops() -> Iterator[None]:
  """Makes orbax wait for all its reads and writes before it closes an event loop.

  If one of them fails, orbax does not wait for the others, whose threads would then print "Event
  loop is closed".
  """
  before, asyncio.new_event_loop = asyncio.new_event_loop, _PatientLoop
  try:
    yield
  finally:
    asyncio.new_event_loop = before


@contextlib.contextmanager
def undamaged(path: Path) -> Iterator[None]:
  """Raises UserError for `path` in place of any other error inside, most of which are orbax's.

  The end of another process is no damage, nor is too little memory or a path that may not be read.
  """
  try:
    yield
  except UserError:
    raise
  except Exception as error:
    if isinstance(error, PermissionError) or "os_error_code='13'" in str(error):  # tensorstore's
      raise UserError(f"cannot read {path}: permission denied") from error
    full = isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)
    if full or hosts.lost(error):
      raise
    cause = (str(error) or type(error).__name__).splitlines()[0][:200]
    raise UserError(
      f"{path} is damaged ({cause}): remove it to go on from the checkpoint before it, or from the "
      "start if there is none"
    ) from error


def check_same(holds: str, old: dict, new: dict) -> None:
  """Raises UserError, with the keys that differ, if an entry of `new` is another one in `old`.

  Args:
    holds: the beginning of the message, such as "FOLDER holds a checkpoint".
    old: {"config", "base", "data set", ...: value} of what the folder holds, as read from JSON.
    new: the same of the run that is to be resumed.
  """
  for key, value in json.loads(json.dumps(new, default=str)).items():
    if old.get(key, value) != value:  # older versions wrote fewer entries
      raise UserError(
        f"{holds} of another {key}: {differences(old[key], value)}; resume with what it was "
        "started with, or give another --workdir"
      )


def differences(old: Any, new: Any, path: str = "") -> str:
  """Describes where two nested dicts, or lists of dicts, differ; "" if they are equal."""
  lists = isinstance(old, list) and isinstance(new, list) and len(old) == len(new)
  if lists and all(isinstance(x, dict) for x in old + new):
    names = [f"{path}[{i}]" if len(old) > 1 else path for i in range(len(old))]
    parts = map(differences, old, new, names)
  elif isinstance(old, dict) and isinstance(new, dict):
    keys = sorted({*old, *new})
    parts = (differences(old.get(k), new.get(k), f"{path}.{k}" if path else k) for k in keys)
  else:
    return "" if old == new else f"{path or 'value'} was {old!r}, is now {new!r}"
  return "; ".join(part for part in parts if part)


@contextlib.contextmanager
def interrupts() -> Iterator[Callable[[], bool]]:
  """Yields () -> whether to save and exit now, since SIGTERM has come; to be asked at every step.

  Of several processes any may get it; all then stop after the same step, which jax agrees on.
  """
  if jax.distributed.is_initialized():
    yield lambda: multihost_utils.reached_preemption_sync_point(next(_steps))
    return
  requested = threading.Event()
  try:
    before = signal.signal(signal.SIGTERM, lambda *_: requested.set())
  except ValueError:  # only the main thread can handle signals
    before = None
  try:
    yield requested.is_set
  finally:
    if before is not None:
      signal.signal(signal.SIGTERM, before)
