"""Kills of a sweep, of its Ray driver, of a Ray worker and of the Ray head: nothing is lost.

  python experiments/reliability/kills.py [--times N] [--kind NAME ...] [--keep]

Runs one sweep undisturbed in one process, and then N times for each kind with SIGKILL at a random
moment: of a sweep of one process, of the driver of a sweep on two Ray workers, of one of these
workers while it trains, and of all processes of the cluster's head. Then the same command runs
again, but where a worker was killed: the driver has to go on by itself. Every file must be that of
the undisturbed sweep, to the byte but for times. With --keep the outcomes are kept in kills.csv.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import datetime
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import faulty
import psutil

RESULTS = Path(__file__).parent / "kills.csv"
KINDS = ("sweep", "driver", "worker", "head")
COLUMNS = ("kind", "number", "after", "verdict", "date")
LIMIT = 600  # seconds for one command
CONFIG = """
from ml_collections import ConfigDict
from jaxtune.sweeps import declare

def get_config():
  config = ConfigDict()
  config.model = ConfigDict({{"path": "{place}/llama"}})
  config.data = ConfigDict({{"train": "{place}/train.jsonl", "validation": "{place}/val.jsonl"}})
  config.data.test = "{place}/test.jsonl"
  config.method = ConfigDict({{"name": "lora", "rank": 2}})
  config.train = ConfigDict({{"steps": 60, "batch_size": 2, "mesh": {{"data": 1}}, "log_every": 1}})
  config.train.update({{"eval_every": 6, "checkpoint_every": 3}})
  config.evaluate = ConfigDict({{"batch_size": 4, "max_new_tokens": 2, "resamples": 10}})
  config.search = ConfigDict({{"early_exit": "halving"}})
  rates = declare.tune([1e-3, 1e-2])
  config.sweep = (
    {{"method.rank": [1, 2], "seed": [0, 1]}},
    {{"method": [{{"name": "prefix"}}], "optim.learning_rate": [rates]}},
    {{"method": [{{"name": "adapter"}}], "seed": [0, 1]}},
  )
  return config
"""
DATA = """
import conftest, sys; from pathlib import Path; from support import folders
place = Path(sys.argv[1]); folders.base(place, "llama")
rows = lambda a, n: [{"prompt": f"a{i % 10} b{i // 10} :", "completion": f"c{i % 10}"}
                     for i in range(a, a + n)]
for name, first, count in (("train", 0, 24), ("val", 24, 8), ("test", 32, 8)):
  folders.write(place, f"{name}.jsonl", rows(first, count))
"""


def environment(work: Path) -> dict[str, str]:
  """Returns what every command runs under: programs that compile fast, and are kept."""
  return os.environ | {
    "JAX_COMPILATION_CACHE_DIR": str(work / "compiled"), "JAX_PLATFORMS": "cpu",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "RAY_AUTH_MODE": "disabled",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0", "HF_HUB_OFFLINE": "1",
    "PYTHONPATH": f"{faulty.ROOT}:{faulty.ROOT}/tests", "PYTHONUNBUFFERED": "1",
    "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
  }  # fmt: skip


def start(work: Path, folder: Path, address: str | None) -> subprocess.Popen:
  """Starts the sweep, in this process's group or on a Ray cluster."""
  command = [sys.executable, "-m", "jaxtune.main", "sweep", "--config", work / "config.py"]
  command += ["--workdir", folder]
  if address:
    command += ["--launcher", "ray", "--address", address, "--workers", "2"]
  with (work / "said").open("w") as said:
    return subprocess.Popen(command, env=environment(work), stdout=said, stderr=said)


@contextlib.contextmanager
def head(work: Path) -> Iterator[str]:
  """Starts the head of a Ray cluster and yields its address; ends all its processes."""
  with socket.create_server(("127.0.0.1", 0)) as free:
    port = free.getsockname()[1]
  command = [Path(sys.executable).with_name("ray"), "start", "--head", "--port", str(port)]
  command += ["--num-cpus", "2", "--include-dashboard", "false", "--temp-dir", work / "ray"]
  subprocess.run(command, env=environment(work), check=True, capture_output=True)
  try:
    yield f"127.0.0.1:{port}"
  finally:
    end_head(work)


def end_head(work: Path) -> None:
  """Kills all processes of the head that was started last, and waits for the end of its workers."""
  ours = lambda process: str(work / "ray") in " ".join(process.cmdline())
  found = []
  for process in psutil.process_iter():
    with contextlib.suppress(psutil.Error):
      found += [process, *process.children(recursive=True)] if ours(process) else []
  for process in found:
    with contextlib.suppress(psutil.Error):
      process.kill()
  psutil.wait_procs(found, timeout=30)


def said(work: Path) -> str:
  return (work / "said").read_text(errors="replace")


def until(process: subprocess.Popen, seconds: float) -> None:
  """Waits so long, or until the process has ended."""
  with contextlib.suppress(subprocess.TimeoutExpired):
    process.wait(seconds)


def finish(work: Path, folder: Path, address: str | None) -> None:
  """Runs the sweep to its end."""
  process = start(work, folder, address)
  until(process, LIMIT)
  if process.poll() != 0:
    process.kill()
    raise RuntimeError(f"ended with {process.poll()}: {said(work)[-600:]}")


def kill(work: Path, folder: Path, kind: str, after: float) -> bool:
  """Starts the sweep, kills what is named after so many seconds, and brings it to its end.

  Returns:
    whether the sweep was under way by then.
  """
  with head(work) if kind != "sweep" else contextlib.nullcontext() as address:
    process = start(work, folder, address)
    if kind == "worker":  # the seconds count from its first update
      while process.poll() is None and not list(folder.glob("*/*/metrics.jsonl")):
        time.sleep(0.1)
    until(process, after)
    if process.poll() == 0:
      return False
    if kind in ("sweep", "driver"):
      process.kill()
      process.wait()
      finish(work, folder, address)
      return True
    if kind == "worker":
      workers = re.findall(r"^worker \S+:(\d+) ", said(work), re.MULTILINE)
      with contextlib.suppress(ProcessLookupError):
        os.kill(int(random.Random(after).choice(workers)), signal.SIGKILL)
    else:
      end_head(work)
    until(process, LIMIT)
  if kind == "head" and process.returncode:
    last = said(work).strip().splitlines()[-1]
    if process.returncode != 2 or not re.match("jaxtune: .*(is lost|cannot|no machine)", last):
      raise RuntimeError(f"ended with {process.returncode}: {last}")
    with head(work) as address:
      finish(work, folder, address)
  elif process.returncode:
    raise RuntimeError(f"ended with {process.returncode}: {said(work)[-600:]}")
  return True


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--times", type=int, default=10, help="of each kind")
  parser.add_argument("--kind", action="append", choices=KINDS)
  parser.add_argument("--seed", type=int, default=0, help="of the moments")
  parser.add_argument("--keep", action="store_true", help="keep the outcomes in kills.csv")
  parser.add_argument("--work", default=f"{tempfile.gettempdir()}/jaxtune-kills")
  options = parser.parse_args()
  work, folder = Path(options.work), Path(options.work) / "case"
  work.mkdir(parents=True, exist_ok=True)
  subprocess.run([sys.executable, "-c", DATA, work], check=True, env=environment(work))
  (work / "config.py").write_text(CONFIG.format(place=work))
  faulty.fresh(folder)
  finish(work, folder, None)  # and compiles
  shutil.rmtree(folder)
  began = time.monotonic()
  finish(work, folder, None)
  whole, seconds = faulty.contents(folder), time.monotonic() - began
  kept = read() if options.keep else {}
  rngs = {kind: random.Random(f"{options.seed}:{kind}") for kind in options.kind or KINDS}
  for number in range(options.times):
    for kind, rng in rngs.items():
      # On Ray the start takes some seconds more; a worker is killed within its training.
      after = rng.random() * (seconds if kind in ("sweep", "worker") else 1.5 * seconds)
      if (kind, str(number)) in kept:
        continue
      faulty.fresh(folder)
      try:
        while not kill(work, folder, kind, after):  # it had ended by then
          faulty.fresh(folder)
          after /= 2
        verdict = faulty.differences(faulty.contents(folder), whole) or "same"
      except RuntimeError as error:
        verdict = str(error)
      day = datetime.date.today().isoformat()
      row = (kind, str(number), f"{after:.1f} s", " ".join(verdict.split()), day)
      kept[row[:2]] = dict(zip(COLUMNS, row, strict=True))
      print(*row, sep=", ", flush=True)
      if options.keep:
        keep(kept)
  return int(any(row["verdict"] != "same" for row in kept.values()))


def read() -> dict[tuple[str, str], dict]:
  with RESULTS.open(newline="") if RESULTS.exists() else open("/dev/null") as file:
    return {(row["kind"], row["number"]): row for row in csv.DictReader(file)}


def keep(rows: dict[tuple[str, str], dict]) -> None:
  with RESULTS.open("w", newline="") as file:
    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows.values())


if __name__ == "__main__":
  sys.exit(main())
