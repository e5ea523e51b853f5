"""Tests of a copy of the repository, in forks of a process that has imported the libraries.

Importing jax, flax, transformers, torch and peft takes twelve seconds of a core. A process that has
imported them, but has not started jax's backend, is forked for each run of tests, and compiled
programs are kept on disk: only what a mutant changed is compiled again.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
WARM = (
  "jax", "flax.linen", "optax", "orbax.checkpoint", "ml_collections", "transformers", "torch",
  "peft", "datasets", "safetensors.torch", "tokenizers", "scipy.stats", "sklearn.metrics",
  "sacrebleu", "rouge_score.rouge_scorer", "seqeval.metrics", "pydantic", "matplotlib.pyplot",
  "pytest", "hypothesis", "coverage", "jinja2.sandbox", "yaml", "tqdm", "pandas",
)  # fmt: skip
MEMORY = 24 * 2**30  # of address space, most of which is only reserved


class Test(NamedTuple):
  """One test of the copy: its cost in seconds of CPU, and the code that it runs.

  Attributes:
    lines: "module|function|text of the line" for each line, which survives edits elsewhere.
  """

  file: str
  name: str
  seconds: float
  lines: frozenset[str]


def copy(work: Path) -> Path:
  """Copies what git knows, as it is in the checkout, to a folder of its own; returns that."""
  place = work / "copy"
  names = subprocess.run(
    ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, check=True,
    capture_output=True, text=True,
  ).stdout.split("\0")  # fmt: skip
  wanted = {n for n in names if n and (ROOT / n).is_file() and not n.endswith((".csv", ".png"))}
  for old in place.rglob("*") if place.exists() else ():
    inside = str(old.relative_to(place))
    if old.is_file() and "__pycache__" not in inside and inside not in wanted:
      old.unlink()
  for name in wanted:
    new, content = place / name, (ROOT / name).read_bytes()
    if not new.exists() or new.read_bytes() != content:
      new.parent.mkdir(parents=True, exist_ok=True)
      new.write_bytes(content)
  return place


def warm(work: Path) -> None:
  """Imports the libraries, and those of their modules that earlier runs imported themselves."""
  os.environ |= {
    "JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg",
    "OPENBLAS_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false",
    "COVERAGE_CORE": "ctrace",
    "JAX_COMPILATION_CACHE_DIR": str(work / "compiled"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
    "PYTHONPATH": os.pathsep.join([str(work / "copy"), str(work / "copy" / "tests")]),
  }  # fmt: skip
  seen = work / "modules.json"
  for name in [*WARM, *(json.loads(seen.read_text()) if seen.exists() else ())]:
    try:
      importlib.import_module(name)
    except Exception as error:
      print(f"not imported beforehand: {name} ({error})", file=sys.stderr)
  # jax warns of forks; there is no thread yet that one could lose.
  warnings.filterwarnings("ignore", message=".*os.fork.*")
  gc.freeze()


def run(work: Path, log: Path, *, files: list[str], only: list[str] | None = None,
        record: bool = False, cpu: float = 3600) -> dict:  # fmt: skip
  """Runs tests of the copy in a fork, until the first that fails.

  Args:
    files: test files, below the copy.
    only: names of tests to run, in this order; default all.
    record: notes the lines that each test runs, and goes on behind a failure.
    cpu: seconds of CPU that the fork may use; six times as much of time.

  Returns:
    {"outcome": "passed", "failed", "broken" (nothing could be collected) or "timeout",
    "failed": names, "seconds": of time, "tests": with `record`, what `_Recorder` noted}.
  """
  answer = log.with_suffix(".json")
  answer.unlink(missing_ok=True)
  begin, pid = time.monotonic(), os.fork()
  if not pid:
    _child(work, log, answer, files, only, record, cpu)
  status = _wait(pid, begin + 6 * cpu)
  seconds = time.monotonic() - begin
  if answer.exists():
    return json.loads(answer.read_text()) | {"seconds": seconds}
  # SIGXCPU and our own SIGKILL are the time limit; other ends are those of a process that broke.
  late = os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL)
  return {"outcome": "timeout" if late else "broken", "failed": [], "seconds": seconds}


def _wait(pid: int, until: float) -> int:
  while True:
    done, status = os.waitpid(pid, os.WNOHANG)
    if done:
      break
    if time.monotonic() > until:
      os.killpg(pid, signal.SIGKILL)
      _, status = os.waitpid(pid, 0)
      break
    time.sleep(0.05)
  return status


def _child(work, log, answer, files, only, record, cpu) -> None:
  try:
    os.setsid()
    with log.open("w") as out:
      os.dup2(out.fileno(), 1)
      os.dup2(out.fileno(), 2)
    resource.setrlimit(resource.RLIMIT_CPU, (int(cpu) + 1, int(cpu) + 30))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    place = work / "copy"
    os.chdir(place)
    sys.path[:0] = [str(place), str(place / "tests")]
    before, sys.dont_write_bytecode = set(sys.modules), not record
    answer.write_text(json.dumps(_pytest(work, files, only, record)))
    if record:
      _remember(work, before)
  except BaseException:
    traceback.print_exc()
  finally:
    sys.stdout.flush()
    os._exit(0)


def _pytest(work: Path, files, only, record) -> dict:
  import pytest

  recorder = _Recorder(work, only, record)
  options = ["-q", "-m", "", "-p", "no:cacheprovider", f"--basetemp={work / 'tmp'}"]
  code = pytest.main([*options, *([] if record else ["-x"]), *files], plugins=[recorder])
  outcome = {0: "passed", 1: "failed", 5: "passed"}.get(int(code), "broken")
  shutil.rmtree(work / "tmp", ignore_errors=True)
  return {"outcome": outcome, "failed": recorder.failed, "tests": recorder.tests}


def _remember(work: Path, before: set[str]) -> None:
  """Notes modules of libraries that a run imported, for the next warm process."""
  kinds = ("transformers.", "torch.", "peft.", "sklearn.", "scipy.", "jax.", "matplotlib.")
  seen = work / "modules.json"
  new = {n for n in set(sys.modules) - before if n.startswith(kinds)}
  old = set(json.loads(seen.read_text())) if seen.exists() else set()
  seen.write_text(json.dumps(sorted(old | new)))


class _Recorder:
  """A pytest plugin: chooses tests, notes failures, costs and the lines that each test runs."""

  def __init__(self, work: Path, only: list[str] | None, record: bool):
    self.only, self.failed, self.tests, self.coverage = only, [], {}, None
    self.package = work / "copy" / "jaxtune"
    _share_compiled(work / "compiled")
    if record:
      import coverage

      self.coverage = coverage.Coverage(
        data_file=None, config_file=False, source=[str(self.package)]
      )
      self.coverage.start()

  def pytest_collection_modifyitems(self, items):
    if self.only is not None:
      place = {name: i for i, name in enumerate(self.only)}
      items[:] = sorted((i for i in items if i.nodeid in place), key=lambda i: place[i.nodeid])

  def pytest_runtest_logreport(self, report):
    if report.failed:
      self.failed.append(report.nodeid)

  def pytest_runtest_protocol(self, item, nextitem):
    self._context(item.nodeid)
    self.began = _cpu()

  def pytest_runtest_logfinish(self, nodeid):
    self.tests[nodeid] = {"seconds": round(_cpu() - self.began, 2), "lines": {}}
    self._context(nodeid.split("::")[0])

  def pytest_fixture_setup(self, fixturedef, request):
    # What a fixture of a whole file runs counts for each of its tests.
    if fixturedef.scope != "function":
      self._context(request.node.nodeid.split("::")[0])

  def pytest_runtest_call(self, item):
    self._context(item.nodeid)

  def _context(self, name: str) -> None:
    if self.coverage:
      self.coverage.switch_context(name)

  def pytest_sessionfinish(self):
    if not self.coverage:
      return
    self.coverage.stop()
    data = self.coverage.get_data()
    for path in data.measured_files():
      module = str(Path(path).relative_to(self.package))
      for line, names in data.contexts_by_lineno(path).items():
        for test, found in self.tests.items():
          if test in names or test.split("::")[0] in names:
            found["lines"].setdefault(module, []).append(line)


def _cpu() -> float:
  children = resource.getrusage(resource.RUSAGE_CHILDREN)
  return time.process_time() + children.ru_utime + children.ru_stime


def _share_compiled(folder: Path) -> None:
  """Lets tests that keep compiled programs in a folder of their own keep them in one for all."""
  import pytest

  folder.mkdir(exist_ok=True)
  real = pytest.TempPathFactory.mktemp
  share = lambda self, name, *args, **options: (
    folder if name == "compiled" else real(self, name, *args, **options)
  )
  pytest.TempPathFactory.mktemp = share
