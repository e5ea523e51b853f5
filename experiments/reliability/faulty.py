"""Commands of jaxtune in forks, with faults at their writes.

A fault is injected in the fork's own process, by an audit hook that sees each file opened for
writing, each rename, each folder made and each file removed below a folder: the library has no
hooks for it. The fork comes from a process that has imported the libraries and has not started jax.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import importlib
import json
import os
import re
import resource
import shutil
import signal
import struct
import sys
import time
import traceback
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
WARM = ("jax", "flax.linen", "optax", "orbax.checkpoint", "transformers", "scipy.stats",
        "matplotlib.pyplot", "sacrebleu", "rouge_score.rouge_scorer", "sklearn.metrics",
        "jaxtune.api", "jaxtune.main", "jaxtune.sweeps.report")  # fmt: skip
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
LIMIT, COMPUTING = 3600, 300  # seconds of time, and of computing, for one command


class Ended(NamedTuple):
  """How a command ended.

  Attributes:
    code: its exit code; minus a signal's number; None where it is stopped and lives on.
    said: what it wrote to stderr.
    writes: how many times it wrote below the folder.
    seconds: how long it ran.
  """

  code: int | None
  said: str
  writes: int
  seconds: float
  pid: int

  @property
  def refused(self) -> bool:
    """Whether it ended as a user's mistake or a full disk must: code 2 and one line."""
    lines = [x for x in self.said.splitlines() if x.startswith("jaxtune: ")]
    return self.code == 2 and len(lines) == 1 and "Traceback" not in self.said


def warm(work: Path) -> None:
  """Imports the libraries and jaxtune, and sets what keeps compiled programs."""
  os.environ |= {
    "JAX_COMPILATION_CACHE_DIR": str(work / "compiled"), "JAX_PLATFORMS": "cpu",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "MPLBACKEND": "agg",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0", "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(ROOT),
    "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
  }  # fmt: skip
  sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
  for name in WARM:
    importlib.import_module(name)
  gc.freeze()


def run(place: Path, arguments: list[str], watched: Path, fault: dict | None = None) -> Ended:
  """Runs `jaxtune ARGUMENTS` in a fork; waits for its end, or for it to stop itself.

  Args:
    place: the folder that it runs in, where its output is kept.
    watched: the folder whose writes count.
    fault: {"kind": "kill" | "stop" | "full" | "denied", "at": the write, from 1} or
      {"kind": "kill", "after": seconds}.
  """
  sys.stdout.flush()
  begin, pid = time.monotonic(), os.fork()
  if not pid:
    _child(place, arguments, watched, fault or {})
  until = begin + fault["after"] if fault and "after" in fault else begin + LIMIT
  while True:
    done, status = os.waitpid(pid, os.WNOHANG | os.WUNTRACED)
    if done:
      break
    if time.monotonic() > until:
      os.kill(pid, signal.SIGKILL)
    time.sleep(0.01)
  code = None if os.WIFSTOPPED(status) else os.waitstatus_to_exitcode(status)
  counted = place / "writes"
  writes = int(counted.read_text() or 0) if counted.exists() else 0
  said = (place / "stderr").read_text(errors="replace")
  return Ended(code, said, writes, time.monotonic() - begin, pid)


def end(pid: int) -> None:
  """Kills a command that stopped itself."""
  os.kill(pid, signal.SIGKILL)
  os.waitpid(pid, 0)


def _child(place: Path, arguments: list[str], watched: Path, fault: dict) -> None:
  code = 1
  try:
    for number, name in ((1, "stdout"), (2, "stderr")):
      os.dup2(os.open(place / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    (place / "writes").unlink(missing_ok=True)
    os.chdir(place)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (COMPUTING, COMPUTING + 10))
    if fault.get("kind") == "powerless":
      _drop_capabilities()
    writes = _watch(watched, fault)
    from jaxtune.main import main

    code = main(arguments)
    (place / "writes").write_text(str(writes[0]))
  except SystemExit as error:
    code = error.code if isinstance(error.code, int) else 1
  except BaseException:
    traceback.print_exc()
  finally:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _drop_capabilities() -> None:
  """Gives up what lets root write everywhere: capset(2) with none, in its third version."""
  header = struct.pack("Ii", 0x20080522, 0)
  if ctypes.CDLL(None, use_errno=True).capset(header, bytes(24)):
    raise OSError(ctypes.get_errno(), "capset")


def _watch(folder: Path, fault: dict) -> list[int]:
  """Counts writes below a folder, and strikes at one of them; of errors, at all that follow."""
  count, prefix = [0], str(folder)
  kind, at = fault.get("kind"), fault.get("at", 0)
  errors = {"full": errno.ENOSPC, "denied": errno.EACCES}

  def hook(event: str, args: tuple) -> None:
    if event == "open":
      if not isinstance(args[0], str | bytes) or not (args[2] or 0) & WRITES:
        return
    elif event not in ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate"):
      return
    if not os.path.abspath(os.fsdecode(args[0])).startswith(prefix):
      return
    count[0] += 1
    if at and count[0] == at and kind in ("kill", "stop"):
      os.kill(os.getpid(), signal.SIGKILL if kind == "kill" else signal.SIGSTOP)
    if at and count[0] >= at and kind in errors and event not in ("os.remove", "os.rmdir"):
      raise OSError(errors[kind], os.strerror(errors[kind]), args[0])

  sys.addaudithook(hook)
  return count


# What differs between two equal runs: seconds, and the hash of a result that holds them.
_TIMES = re.compile(r'"seconds[^"]*": [\d.]+|\bseconds\b.*|^  "sha256": "\w+"$', re.MULTILINE)


def contents(folder: Path) -> dict[str, str]:
  """Reads a folder for comparison: {path: content without times}; checkpoints by their names."""
  found = {}
  for path in sorted(folder.rglob("*")):
    name = str(path.relative_to(folder))
    if path.is_dir():
      continue
    if name.endswith(".lock"):
      continue
    if "checkpoints/" in name or "groups/" in name:
      found["/".join(name.split("/")[:2])] = ""
    elif name == "results.csv":
      found[name] = _without_seconds(path.read_text())
    elif name.endswith((".png", ".html", "report.md", ".parquet", ".tex")):
      found[name] = ""  # they show the seconds
    elif name.endswith((".json", ".jsonl", ".md")):
      found[name] = _TIMES.sub("", path.read_text())
    else:
      found[name] = path.read_bytes().hex()
  return found


def _without_seconds(text: str) -> str:
  import csv
  import io

  rows = list(csv.DictReader(io.StringIO(text)))
  return json.dumps([{k: v for k, v in row.items() if "seconds" not in k} for row in rows])


def differences(now: dict[str, str], then: dict[str, str]) -> str:
  """Names the files in which two folders differ; "" for equal ones."""
  missing = [f"{name} is missing" for name in then if name not in now]
  more = [f"{name} was left over" for name in now if name not in then]
  other = [f"{name} differs" for name in then if name in now and now[name] != then[name]]
  return ", ".join(missing + more + other)


def fresh(folder: Path, source: Path | None = None) -> None:
  """Makes a folder empty, or a copy of another."""
  shutil.rmtree(folder, ignore_errors=True)
  if source is not None:
    shutil.copytree(source, folder, symlinks=True)
