"""Several processes that train one run together, on one host or many: how they join and end.

Every process runs the same program on its own devices. The first one alone writes files and shows
progress. The end of any process is the end of all.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import socket
import subprocess
import sys
import time
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import PyTree
from rich.file_proxy import FileProxy

from jaxtune.errors import UserError

JOIN = 120  # seconds in which all processes must have started
HEARTBEAT = 40  # seconds without a sign of life after which a process counts as dead
GRACE = 3  # seconds that the others have to say a mistake which all have made
LOST = (
  "another process of this run has ended, and so does this one: that one's output says why; start "
  "all again to go on from the last checkpoint"
)

# When a process is lost, jax prints many lines and aborts, and no handler can stop that. So what is
# printed by libraries goes through a small process of its own, which says it in one line.
_FILTER = """
import re, sys
hidden = False
for line in sys.stdin.buffer:
  if b"Terminating process because the JAX distributed" in line:
    rest = line + sys.stdin.buffer.read()
    said = next((text for key, text in zip(*[iter(sys.argv[1:])] * 2) if key.encode() in rest))
    sys.exit("jaxtune: " + said)
  if re.match(rb"[IWEF]\\d{4} ", line):
    hidden = re.search(rb"coordination_service|preemption_", line)
  if not hidden:
    sys.stderr.buffer.write(line)
    sys.stderr.flush()
"""


def memory() -> float:
  """Returns the bytes of this machine's memory; infinite where the system does not tell."""
  if not hasattr(os, "sysconf"):
    return math.inf
  return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def join(coordinator: str | None, processes: int | None, process: int | None) -> None:
  """Makes this process one of several, before jax has used any device.

  Args:
    coordinator: HOST:PORT of the first process, which listens there; "auto" to let jax find all
      of it on TPU pods, SLURM, Open MPI and Kubernetes; None for a process that is alone.
    processes: how many there are.
    process: the number of this one, from 0.

  Raises:
    UserError: for arguments that are out of range or missing, for an address that is unknown or
      not free. If not all processes join, the program is ended with such a line.
  """
  if coordinator is None:
    if processes is not None or process is not None:
      raise UserError("--processes and --process need --coordinator HOST:PORT")
    return
  _check(coordinator, processes, process)
  _filter_errors(coordinator, processes)
  try:
    jax.distributed.initialize(
      None if coordinator == "auto" else coordinator, processes, process,
      initialization_timeout=JOIN, heartbeat_timeout_seconds=HEARTBEAT,
    )  # fmt: skip
  except (ValueError, RuntimeError) as error:
    raise UserError(
      f"--coordinator {coordinator} finds no other processes ({error}); expected a TPU pod, SLURM, "
      "Open MPI or Kubernetes, or HOST:PORT with --processes N and --process I"
    ) from error
  # C++ libraries print to the first descriptor too, which is left to them.
  kept = os.dup(1) if primary() else os.open(os.devnull, os.O_WRONLY)
  sys.stdout.flush()
  sys.stdout = os.fdopen(kept, "w", buffering=1, encoding=sys.stdout.encoding)
  os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
  sys.excepthook = _end_of_a_bug


def _check(coordinator: str, processes: int | None, process: int | None) -> None:
  if coordinator == "auto":
    if processes is not None or process is not None:
      raise UserError(
        "--coordinator auto finds --processes and --process by itself: leave them out"
      )
    return
  host, _, port = coordinator.rpartition(":")
  if not host or not re.fullmatch(r"\d{1,5}", port):
    raise UserError(f"--coordinator is {coordinator!r}, expected HOST:PORT or auto")
  if processes is None or process is None:
    raise UserError("--coordinator HOST:PORT needs --processes N and --process I too")
  if not 0 <= process < processes:
    raise UserError(
      f"--process is {process}, expected 0 to {processes - 1}: --processes is {processes}"
    )
  try:
    socket.getaddrinfo(host.strip("[]"), int(port))
  except (OSError, OverflowError, UnicodeError) as error:
    raise UserError(f"--coordinator is {coordinator!r}, whose host is not known here") from error
  if process == 0:
    try:
      socket.create_server(("", int(port))).close()
    except (OSError, OverflowError) as error:  # where jaxlib 0.10 may crash
      raise UserError(f"--coordinator is {coordinator!r}, whose port is not free here") from error


def _filter_errors(coordinator: str, processes: int | None) -> None:
  """Sends what C++ libraries print on stderr through _FILTER; Python's own stderr stays."""
  says = {
    "ALREADY_EXISTS": "two processes have the same --process number",
    "RegisterTask": f"after {JOIN} seconds not all {processes or ''} processes have joined at "
    f"{coordinator}; expected process 0 on that host, and the same address for all",
    "": LOST,
  }
  command = [sys.executable, "-S", "-c", _FILTER, *(text for pair in says.items() for text in pair)]
  stderr = os.fdopen(os.dup(2), "w", buffering=1, encoding=sys.stderr.encoding)
  # Ctrl-C is for this process alone: the filter ends when this one has ended.
  filtered = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
  os.dup2(filtered.stdin.fileno(), 2)
  filtered.stdin.close()
  sys.stderr = stderr


def primary() -> bool:
  """Says whether this process is the first one, which alone writes; a single process is."""
  return not jax.distributed.is_initialized() or jax.process_index() == 0


def several() -> bool:
  """Says whether this process is one of a run of several."""
  return jax.distributed.is_initialized()


def bars() -> bool | None:
  """Returns what tqdm takes as `disable`: bars are for terminals, and of the first process.

  There are none where a view of all trials (`api.follow`) has taken the terminal.
  """
  return None if primary() and not isinstance(sys.stderr, FileProxy) else True


def wait(for_what: str) -> None:
  """Waits until all processes are at this place, which `for_what` names."""
  if jax.distributed.is_initialized():
    multihost_utils.sync_global_devices(for_what)


def check_same(what: str, value: str) -> None:
  """Raises UserError, in every process, unless all processes have the same value.

  Args:
    what: names the value in the message, such as "config".
  """
  if not jax.distributed.is_initialized():
    return
  digest = np.frombuffer(hashlib.sha256(value.encode()).digest(), np.uint8)
  digests = multihost_utils.process_allgather(digest)
  if others := np.flatnonzero((digests != digests[0]).any(1)).tolist():
    raise UserError(
      f"process {others[0]} has another {what} than process 0; expected the same command, model "
      "and data for all"
    )


def of_first(number: int) -> int:
  """Returns the number that the first process has, for choices that depend on the machine."""
  return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def of_first_arrays(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Returns the arrays of float64 that the first process has; those of others have their shapes."""
  if not several():
    return arrays
  words = {name: x.astype(np.float64).view(np.uint32) for name, x in arrays.items()}
  told = multihost_utils.broadcast_one_to_all(words)  # which would round float64
  return {name: np.array(x).view(np.float64) for name, x in told.items()}


def put(x: Any, sharding: jax.sharding.Sharding) -> jax.Array:
  """Puts an array that every process has on the devices: each process its own shards."""
  if sharding.is_fully_addressable or not getattr(x, "is_fully_addressable", True):
    return jax.device_put(x, sharding)
  whole = np.asarray(x)  # device_put would send it around, to compare it between the processes
  return jax.make_array_from_callback(x.shape, sharding, lambda index: whole[index])


def fetch(tree: PyTree) -> PyTree:
  """Returns whole arrays in numpy, in every process, and all must call it."""

  def whole(x: Any) -> Any:
    here = not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated
    return x if here else multihost_utils.process_allgather(x, tiled=True)

  return jax.device_get(jax.tree.map(whole, tree))


def lost(error: BaseException | None) -> bool:
  """Says whether an error means that another process has ended."""
  if error is None or not jax.distributed.is_initialized():
    return False
  signs = r"Gloo|[Cc]oordination|[Bb]arrier|[Hh]eartbeat|UNAVAILABLE"
  known = isinstance(error, RuntimeError | ValueError) and re.search(signs, str(error))
  return bool(known) or lost(error.__cause__)


def end(code: int, error: BaseException | None = None) -> int:
  """Returns an exit code; one of several processes that fails ends here, and waits for no other.

  At its usual end a process waits until all are there.

  Args:
    error: what it failed with, if that is not said yet.
  """
  if not jax.distributed.is_initialized() or code in (0, 1):
    return code
  sys.stdout.flush()
  if lost(error):
    os.write(2, b"Terminating process because the JAX distributed peer has ended\n")  # for _FILTER
  elif primary():
    time.sleep(GRACE)  # its end ends the others at once, who may be about to say the same mistake
  os._exit(code)


def _end_of_a_bug(*error: Any) -> None:
  """Shows a traceback, as Python does, and ends this process."""
  sys.__excepthook__(*error)
  end(4)
