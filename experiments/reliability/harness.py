"""What faults.py does to each command, and how its end is judged."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import faulty

GOOD = ("same", "refused")
CONFIG = """
from ml_collections import ConfigDict

def get_config():
  config = ConfigDict()
  config.model = ConfigDict({{"path": "{base}"}})
  config.data = ConfigDict({{"train": "{place}/train.jsonl", "validation": "{place}/val.jsonl"}})
  config.data.test = "{place}/test.jsonl"
  config.method = ConfigDict({{"name": "lora", "rank": 2}})
  config.train = ConfigDict({{"steps": 4, "batch_size": 2, "mesh": {{"data": 1}}, "log_every": 1}})
  config.train.update({{"eval_every": 2, "checkpoint_every": 1}})
  config.evaluate = ConfigDict({{"batch_size": 4, "max_new_tokens": 2, "resamples": 10}})
  config.sweep = ({{"method.rank": [1, 2], "optim.schedule": ["constant", "linear"]}},)
  return config
"""


class Job(NamedTuple):
  """A command and its arguments; CASE is the folder that it writes."""

  arguments: tuple[str, ...]


CONFIGURED = ("--config", "config.py")
JOBS = {
  "train": Job(("train", *CONFIGURED, "--workdir", "CASE")),
  "sweep": Job(("sweep", *CONFIGURED, "--workdir", "CASE")),
  "export": Job(("export", "--workdir", "a", "--out", "CASE/out")),
  "merged": Job(("export", "--workdir", "a", "--out", "CASE/out", "--format", "merged")),
  "compose": Job(("compose", "--run", "a", "--run", "b", "--how", "cat", "--out", "CASE/out")),
  "import": Job(("import", *CONFIGURED, "--adapter", "adapter", "--out", "CASE/out")),
}
# Which files a job reads back, and how they come to be there.
READS = {
  "train": "half",  # of its own folder, killed in the middle
  "sweep": "half",
  "export": "a",
  "compose": "a",
}


class Harness:
  """The folders of one work place, and the undisturbed end of each job."""

  def __init__(self, work: Path):
    self.place, self.case, self.whole = work / "place", work / "place" / "CASE", {}

  def prepare(self) -> None:
    """Writes a base, data, a config, two finished runs and an adapter, in forks and once."""
    subprocess.run(["umount", self.case], capture_output=True)  # of a harness that was killed
    if (self.place / "adapter").exists():
      return
    shutil.rmtree(self.place, ignore_errors=True)
    self.place.mkdir(parents=True)
    code = (
      "import conftest, sys; from pathlib import Path; from support import folders;"
      "place = Path(sys.argv[1]);"
      "print(folders.base(place, 'llama'));"
      "rows = lambda a, n: [{'prompt': f'a{i % 10} b{i // 10} :', 'completion': f'c{i % 10}'}"
      " for i in range(a, a + n)];"
      "[folders.write(place, f'{x}.jsonl', rows(a, n))"
      " for x, a, n in (('train', 0, 12), ('val', 12, 4), ('test', 16, 4))]"
    )
    paths = {"PYTHONPATH": f"{faulty.ROOT}:{faulty.ROOT}/tests"}
    subprocess.run([sys.executable, "-c", code, self.place], check=True, env=os.environ | paths)
    text = CONFIG.format(place=self.place, base=self.place / "llama")
    (self.place / "config.py").write_text(text)
    for name in ("a", "b"):
      seed = f"--config.seed={ord(name)}"
      self._run(("train", *CONFIGURED, "--workdir", name, seed))
    self._run(("export", "--workdir", "a", "--out", "adapter"))

  def _run(self, arguments: tuple[str, ...], fault: dict | None = None) -> faulty.Ended:
    ended = faulty.run(self.place, list(arguments), self.case, fault)
    if fault is None and ended.code:
      raise RuntimeError(f"{' '.join(arguments)} ended with {ended.code}: {ended.said[-2000:]}")
    return ended

  def undisturbed(self, name: str) -> faulty.Ended:
    """Runs a job to its end, and keeps what it wrote and how often."""
    if name not in self.whole:
      faulty.fresh(self.case)
      ended = self._run(JOBS[name].arguments)
      self.whole[name] = ended, faulty.contents(self.case)
    return self.whole[name][0]

  def go(self, name: str, fault: dict | None = None) -> faulty.Ended:
    return faulty.run(self.place, list(JOBS[name].arguments), self.case, fault)

  def judge(self, name: str, ended: faulty.Ended, names: str = "CASE") -> tuple[str, str]:
    """Compares an end with the undisturbed one: (verdict, what is wrong)."""
    if ended.code == 0:
      apart = faulty.differences(faulty.contents(self.case), self.whole[name][1])
      return ("differs", apart) if apart else ("same", "")
    last = ended.said.strip().splitlines()[-1:] or [""]
    if not ended.refused:
      return "broken", f"code {ended.code}: {last[0][:200]}"
    return ("refused", last[0]) if names in ended.said else ("unnamed", last[0][:300])


def kill(h: Harness, name: str, fault: dict) -> tuple[str, str]:
  """Kills a job and starts it again; a run and a sweep have to go on."""
  faulty.fresh(h.case)
  h.go(name, fault | {"kind": "kill"})
  verdict, detail = h.judge(name, h.go(name))
  stands = verdict == "refused" and name in ("train", "sweep")
  return "not resumed" if stands else verdict, detail


def error(h: Harness, name: str, fault: dict) -> tuple[str, str]:
  """Lets all writes from one on fail: one line that names the place; then it ends as ever."""
  faulty.fresh(h.case)
  ended = h.go(name, fault)
  if ended.code != 0:  # a failure that is no loss may be passed over
    verdict, detail = h.judge(name, ended)
    if verdict != "refused":
      return verdict, detail
  verdict, detail = h.judge(name, h.go(name))
  return ("refused" if verdict == "same" and ended.code else verdict), detail


def small_disk(h: Harness, name: str, size: int) -> tuple[str, str]:
  """Runs a job on a file system of so many KiB, and again with room."""
  faulty.fresh(h.case)
  h.case.mkdir()
  mount = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(h.case)]
  if subprocess.run(mount, capture_output=True).returncode:
    return "same", "no file system could be mounted"
  try:
    first = h.go(name)
    verdict, detail = h.judge(name, first)
    if verdict in GOOD and first.code:
      subprocess.run(["mount", "-o", "remount,size=64m", str(h.case)], check=True)
      again, detail = h.judge(name, h.go(name))
      verdict = verdict if again == "same" else again
    return verdict, detail
  finally:
    subprocess.run(["umount", str(h.case)], check=True)


def other_user(h: Harness, name: str) -> tuple[str, str]:
  """Runs a job in a folder of another user, as one who may read all and write only their own."""
  faulty.fresh(h.case)
  h.case.mkdir(mode=0o755)
  os.chown(h.case, 65534, 65534)
  return h.judge(name, h.go(name, {"kind": "powerless"}))


def damage(h: Harness, name: str, file: str, kind: str, rng: random.Random) -> tuple[str, str]:
  """Truncates a file that a job reads back, or flips one of its bits."""
  path = h.place / file
  if READS[name] == "half":
    _halfway(h, name)
  else:
    faulty.fresh(h.case)
  before = path.read_bytes()
  if not before:
    return "same", "an empty file"
  at = rng.randrange(len(before))
  flipped = before[:at] + bytes([before[at] ^ 1 << rng.randrange(8)]) + before[at + 1 :]
  try:
    path.write_bytes(before[:at] if kind == "truncated" else flipped)
    return h.judge(name, h.go(name), Path(file).parts[0 if READS[name] == "half" else -1])
  finally:
    if READS[name] != "half":
      path.write_bytes(before)


def _halfway(h: Harness, name: str) -> None:
  """Brings a job's folder to where it was killed in the middle."""
  half = h.place / f"half-{name}"
  if not half.exists():
    faulty.fresh(h.case)
    h.go(name, {"kind": "kill", "at": 2 * h.undisturbed(name).writes // 3})
    shutil.copytree(h.case, half)
  faulty.fresh(h.case, half)


def two(h: Harness, name: str, at: int) -> tuple[str, str]:
  """Stops a job at a write, starts a second one in its folder, kills the first and starts again."""
  faulty.fresh(h.case)
  first = h.go(name, {"kind": "stop", "at": at})
  if first.code is not None:
    return "broken", f"the first ended with {first.code}"
  try:
    second = h.go(name)
  finally:
    faulty.end(first.pid)
  if not second.refused:
    return "broken", f"the second process ended with {second.code}, expected to be refused"
  return h.judge(name, h.go(name))


def read_back(h: Harness, name: str) -> list[str]:
  """Lists the files that a job reads back, below the work place."""
  if READS[name] == "half":
    _halfway(h, name)
    return _below(h.place, h.case)
  return _below(h.place, h.place / "a") + ["llama/model.safetensors", "llama/config.json"]


def _below(place: Path, folder: Path) -> list[str]:
  paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
  return [str(path.relative_to(place)) for path in paths if path.suffix not in (".png", ".html")]
