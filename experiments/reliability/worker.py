"""A process that reads damaged folders, watched from outside.

It is killed when one input takes too much time, and tells of what it wrote outside the folder, of
programs and connections that it opened and of memory that it took. A new one is a fork of a process
that has imported the libraries, so it costs little.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import resource
import select
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
SECONDS, WALL, MEMORY = 20, 300, 2**30  # of CPU and of time for an input; bytes for an input
SPACE = 8 * 2**30  # of addresses for the process
WARM = ("jax", "flax.linen", "transformers", "datasets", "safetensors", "tokenizers", "yaml",
        "orbax.checkpoint", "jinja2.sandbox", "pydantic", "pyarrow.parquet")  # fmt: skip
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Found(NamedTuple):
  """What an input did.

  Attributes:
    kind: "read" (success), "refused" (UserError), "crash", "hang", "memory" or "outside".
    what: the exception's type, or what was opened.
    where: the innermost function of ours that the exception passed.
    message: of the exception.
  """

  kind: str
  what: str = ""
  where: str = ""
  message: str = ""

  @property
  def bad(self) -> bool:
    return self.kind not in ("read", "refused")

  @property
  def bucket(self) -> str:
    """One defect's name: findings that share it are taken for one."""
    return f"{self.kind}: {self.what}" + (f" in {self.where}" if self.where else "")


def warm(work: Path) -> None:
  """Imports the libraries and the readers, without starting jax."""
  os.environ |= {
    "JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error", "PYTHONPATH": str(ROOT), "HF_HOME": str(work / "hub"),
  }  # fmt: skip
  sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
  sys.dont_write_bytecode = True
  for name in (*WARM, "conftest", "support.readers"):
    importlib.import_module(name)
  gc.freeze()


class Worker:
  """A forked process for the inputs of one reader; made anew when an input ends it."""

  def __init__(self, reader: str, work: Path):
    self.reader, self.place = reader, work / reader
    self.place.mkdir(parents=True, exist_ok=True)
    self.pid = None

  def seed(self) -> dict[str, bytes]:
    """Lets the worker write the valid folder, and returns its files."""
    answer = self._ask({"seed": True})
    if isinstance(answer, Found):
      raise RuntimeError(f"{self.reader} does not read its valid folder: see {self.place}/log.txt")
    return {name: bytes.fromhex(text) for name, text in answer["files"].items()}

  def run(self, files: dict[str, bytes | None]) -> Found:
    """Writes a folder, lets the worker read it, and says what that did."""
    from support import readers

    case = self.place / "case"
    _clear(case)
    case.mkdir()
    readers.lay(case, files)
    answer = self._ask({"seed": False})
    return answer if isinstance(answer, Found) else Found(*answer["found"])

  def close(self) -> None:
    if self.pid is not None:
      os.kill(self.pid, signal.SIGKILL)
      os.waitpid(self.pid, 0)
      os.close(self.inside)
      os.close(self.outside)
      self.pid = None

  def _ask(self, question: dict):
    if self.pid is None:
      self._start()
    os.write(self.outside, (json.dumps(question) + "\n").encode())
    until, answer = time.monotonic() + WALL, b""
    while not answer.endswith(b"\n"):
      ready, _, _ = select.select([self.inside], [], [], max(until - time.monotonic(), 0))
      part = os.read(self.inside, 2**20) if ready else b""
      if not part:
        return self._ended(hung=not ready)
      answer += part
    return json.loads(answer)

  def _ended(self, hung: bool) -> Found:
    if hung:
      os.kill(self.pid, signal.SIGKILL)
    _, status = os.waitpid(self.pid, 0)
    os.close(self.inside)
    os.close(self.outside)
    self.pid = None
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    if hung or number == signal.SIGPROF:
      return Found("hang", "asleep" if hung else f"more than {SECONDS} s of CPU")
    name = signal.Signals(number).name if number else f"exit code {os.WEXITSTATUS(status)}"
    return Found("crash", name)

  def _start(self) -> None:
    here, self.outside = os.pipe()
    self.inside, there = os.pipe()
    sys.stdout.flush()
    self.pid = os.fork()
    if not self.pid:
      os.close(self.outside)
      os.close(self.inside)
      try:
        _serve(self.reader, self.place, here, there)
      except BaseException:
        traceback.print_exc()
      os._exit(1)
    os.close(here)
    os.close(there)


def _clear(folder: Path) -> None:
  import shutil

  shutil.rmtree(folder, ignore_errors=True)


def _serve(reader: str, place: Path, here: int, there: int) -> None:
  """Answers questions until it is killed."""
  from support import readers

  log = os.open(place / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
  os.dup2(log, 1)
  os.dup2(log, 2)
  for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME", "TORCHINDUCTOR_CACHE_DIR"):
    os.environ[name] = str(place / "home")
  (place / "home").mkdir(exist_ok=True)
  (place / "outside").mkdir(exist_ok=True)
  os.chdir(place / "outside")
  resource.setrlimit(resource.RLIMIT_AS, (SPACE, SPACE))
  resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
  outside: list[str] = []
  watching = _watch(outside, place)
  made = readers.READERS[reader]
  for line in os.fdopen(here):
    if json.loads(line)["seed"]:
      folder = place / "seed"
      _clear(folder)
      folder.mkdir()
      made.write(folder)
      made.read(folder)  # also starts jax, and compiles what every input needs
      paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
      answer = {"files": {str(p.relative_to(folder)): p.read_bytes().hex() for p in paths}}
    else:
      outside.clear()
      watching[0] = True
      answer = {"found": _read(made, place / "case", outside)}
      watching[0] = False
    os.write(there, (json.dumps(answer) + "\n").encode())


def _read(made, folder: Path, outside: list[str]) -> tuple:
  from jaxtune.errors import UserError

  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  signal.setitimer(signal.ITIMER_PROF, SECONDS)
  try:
    made.read(folder)
    found = Found("read")
  except UserError as error:
    found = Found("refused", message=str(error)[:2000])
    if len(str(error)) > 2100:
      found = Found("crash", "a message of more than 2,000 characters", _where(error))
  except BaseException as error:
    message = str(error)[:500]
    found = Found("crash", type(error).__name__, _where(error), message)
  finally:
    signal.setitimer(signal.ITIMER_PROF, 0)
  grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
  if not found.bad and grown > MEMORY:
    found = Found("memory", f"more than {MEMORY >> 20} MiB")
  if not found.bad and outside:
    found = Found("outside", outside[0])
  return tuple(found)


def _where(error: BaseException) -> str:
  """Names the innermost function of ours in a traceback."""
  frames = traceback.extract_tb(error.__traceback__)
  ours = [f for f in frames if f"{ROOT}/jaxtune/" in f.filename]
  if not ours:
    return ""
  return f"{Path(ours[-1].filename).relative_to(ROOT / 'jaxtune')}:{ours[-1].name}"


def _watch(outside: list[str], place: Path) -> list[bool]:
  """Notes what is written elsewhere, started or connected to, while the returned switch is on."""
  on, ours = [False], (str(place.parent), "/dev/null", "/dev/shm")

  def hook(event: str, args: tuple) -> None:
    if not on[0]:
      return
    if event == "open" and isinstance(args[0], str | bytes) and (args[2] or 0) & WRITES:
      path = os.path.abspath(os.fsdecode(args[0]))
      if not path.startswith(ours):
        outside.append(f"wrote {path}")
    elif event in ("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink", "os.link"):
      path = os.path.abspath(os.fsdecode(args[1 if event == "os.rename" else 0]))
      if not path.startswith(ours):
        outside.append(f"{event} {path}")
    elif event == "subprocess.Popen" and "jaxtune" not in str(args[1]):
      outside.append(f"started {args[0]}")
    elif event in ("os.system", "os.exec", "socket.connect", "pickle.find_class"):
      outside.append(f"{event} {str(args[-1])[:80]}")

  sys.addaudithook(hook)
  return on
