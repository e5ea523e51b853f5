"""Faults: what is killed, runs out of disk, may not write or finds damaged files ends as it should.

  python experiments/reliability/faults.py [--points N] [--job NAME ...] [--kind NAME ...] [--keep]

Runs a training run, a sweep, exports, a composition and an import once undisturbed, and then again
with one fault each: killed at a write or at a random moment and started again; a disk that is full,
or permissions that are gone, from a write on; one file truncated or with one bit flipped before it
is read back; a second process in the same folder. It must end as the undisturbed run, to the byte
but for times, or stop with one line that names a file. With --keep every trial is kept in
faults.csv, and those that are there and ended well are left out.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import random
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import faulty
from harness import (
  GOOD,
  JOBS,
  READS,
  Harness,
  damage,
  error,
  kill,
  other_user,
  read_back,
  small_disk,
  two,
)

HERE = Path(__file__).parent
RESULTS = HERE / "faults.csv"
COLUMNS = ("job", "fault", "at", "verdict", "detail", "date")
KINDS = ("kill at a write", "kill at a moment", "full disk", "small disk", "no permission",
         "other user", "truncated", "flipped", "two processes")  # fmt: skip


def trials(h: Harness, name: str, kind: str, points: int, seed: int) -> Iterator[tuple]:
  """Yields (what it is at, a function that tries it) for one job and one kind of fault."""
  rng = random.Random(f"{seed}:{name}:{kind}")
  ended = h.undisturbed(name)
  writes = list(range(1, ended.writes + 1))
  some = sorted(rng.sample(writes, min(points, len(writes))))
  if kind == "kill at a write":
    yield from ((at, lambda at=at: kill(h, name, {"at": at})) for at in some)
  elif kind == "kill at a moment":
    for number in range(min(points, 50)):
      share = rng.random()
      after = share * ended.seconds
      yield number, lambda after=after: kill(h, name, {"after": after})
  elif kind in ("full disk", "no permission"):
    how = "full" if kind == "full disk" else "denied"
    yield from ((at, lambda at=at: error(h, name, {"kind": how, "at": at})) for at in some)
  elif kind == "small disk" and name in ("train", "sweep", "merged"):
    sizes = [rng.randrange(4, 400, 4) for _ in range(min(points, 12))]
    yield from ((f"{size} KiB", lambda size=size: small_disk(h, name, size)) for size in sizes)
  elif kind == "other user":
    yield "all", lambda: other_user(h, name)
  elif kind in ("truncated", "flipped") and name in READS:
    files = read_back(h, name)
    for file in files[:: max(1, len(files) // points)]:
      yield file, lambda file=file: damage(h, name, file, kind, rng)
  elif kind == "two processes" and name in ("train", "sweep"):
    chosen = some[:: max(1, len(some) // 3)][:3]
    yield from ((at, lambda at=at: two(h, name, at)) for at in chosen)


def read() -> dict[tuple, dict]:
  with RESULTS.open(newline="") if RESULTS.exists() else open("/dev/null") as file:
    return {(row["job"], row["fault"], row["at"]): row for row in csv.DictReader(file)}


def keep(rows: dict[tuple, dict]) -> None:
  with RESULTS.open("w", newline="") as file:
    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows.values())


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--points", type=int, default=10**6, help="of each job and kind")
  parser.add_argument("--job", action="append", choices=JOBS)
  parser.add_argument("--kind", action="append", choices=KINDS)
  parser.add_argument("--seed", type=int, default=0, help="of the points, moments and bits")
  parser.add_argument("--keep", action="store_true", help="in faults.csv; leave out what is there")
  parser.add_argument("--work", default=f"{tempfile.gettempdir()}/jaxtune-faults")
  options = parser.parse_args()
  work = Path(options.work)
  faulty.warm(work)
  harness, rows, bad = Harness(work), read(), 0
  harness.prepare()
  for name in options.job or JOBS:
    for kind in options.kind or KINDS:
      for at, attempt in trials(harness, name, kind, options.points, options.seed):
        key = (name, kind, str(at))
        if options.keep and rows.get(key, {}).get("verdict") in GOOD:
          continue
        verdict, detail = attempt()
        detail = detail.replace(str(work), "")[:300]
        bad += verdict not in GOOD
        values = (*key, verdict, detail, datetime.date.today().isoformat())
        rows[key] = dict(zip(COLUMNS, values, strict=True))
        if options.keep:
          keep(rows)
        if verdict not in GOOD:
          print(f"{name}, {kind} at {at}: {verdict}: {detail}", flush=True)
      print(f"{name}, {kind}: done", flush=True)
  return 1 if bad else 0


if __name__ == "__main__":
  sys.exit(main())
