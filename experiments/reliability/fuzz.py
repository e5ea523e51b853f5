"""Fuzzing: every reader of a file against damaged files.

  python experiments/reliability/fuzz.py [--seconds N] [--target NAME ...] [--keep] [--replay]

Each reader of tests/support/readers.py gets valid folders with changes, in a process of its own.
Reading may succeed or raise UserError; a stack trace, a signal, 20 s of CPU, a gigabyte of memory,
anything written outside the folder, a program or a connection is a finding. Findings are made small
and kept in tests/corpus, where test_corpus replays them; with --keep the figures are added to
fuzz.csv. With --replay only the corpus is read.
"""

from __future__ import annotations

import argparse
import base64
import csv
import datetime
import hashlib
import json
import sys
import tempfile
import time
import warnings
import zlib
from pathlib import Path

import edits
import hypothesis
import worker
from hypothesis.database import DirectoryBasedExampleDatabase
from hypothesis.errors import HypothesisWarning

HERE = Path(__file__).parent
RESULTS, CORPUS = HERE / "fuzz.csv", HERE.parents[1] / "tests" / "corpus"
COLUMNS = ("reader", "seconds", "inputs", "read", "refused", "findings", "date")
ROUND = 200  # inputs between two looks at the clock


warnings.simplefilter("ignore", HypothesisWarning)


class Bad(Exception):
  """Tells hypothesis that an input is a finding."""


def pack(seed: dict[str, bytes], files: dict[str, bytes | None]) -> dict:
  """Writes what differs from the valid folder: text as text, other bytes zipped; None: gone."""
  packed = {}
  for name, content in files.items():
    if content is None or content == seed.get(name):
      if content is None and name in seed:
        packed[name] = None
      continue
    try:
      text = content.decode()
      short = len(text) < 5000 and "\r" not in text
    except ValueError:
      short = False
    zipped = {"zlib": base64.b64encode(zlib.compress(content, 9)).decode()}
    packed[name] = {"text": text} if short else zipped
  return packed


def fuzz(reader: str, seconds: float, work: Path) -> dict:
  """Reads damaged folders for a time; keeps each new kind of finding once."""
  one = worker.Worker(reader, work)
  seed, began, counts, known = one.seed(), time.monotonic(), {}, corpus_buckets(reader)
  old = set(known)
  while time.monotonic() - began < seconds:
    found = _round(one, seed, counts, known, began + seconds, work)
    if found:
      known.add(found[0].bucket)
      keep(reader, seed, *found)
      print(f"  {reader}: {found[0].bucket} ({found[0].message[:100]})", flush=True)
  one.close()
  spent = time.monotonic() - began
  print(f"{reader}: {spent:.0f} s, {counts}, {len(known - old)} new findings", flush=True)
  return {"reader": reader, "seconds": round(spent), "inputs": sum(counts.values()),
          "read": counts.get("read", 0), "refused": counts.get("refused", 0),
          "findings": len(known - old)}  # fmt: skip


def _round(one, seed, counts, known, until, work):
  """Lets hypothesis look for one finding of a new kind and make it small; None without one."""
  best = []

  @hypothesis.settings(
    max_examples=ROUND, deadline=None, suppress_health_check=list(hypothesis.HealthCheck),
    database=DirectoryBasedExampleDatabase(work / "examples" / one.reader),
    report_multiple_bugs=False, print_blob=False, verbosity=hypothesis.Verbosity.quiet,
  )  # fmt: skip
  @hypothesis.given(edits.damaged(seed))
  def test(files):
    if time.monotonic() > until + 60 * bool(best):  # a minute more to make a finding small
      return
    found = one.run(files)
    counts[found.kind] = counts.get(found.kind, 0) + 1
    if found.bad and found.bucket not in known and (not best or best[0].bucket == found.bucket):
      best[:] = found, files
      if found.kind in ("hang", "memory"):  # too slow to be made smaller
        raise KeyboardInterrupt
      raise Bad

  try:
    test()
  except KeyboardInterrupt:
    if not best:
      raise
  except BaseException as error:  # Bad, and hypothesis's own when time ran out in between
    if not best:
      raise error
  return best or None


def keep(reader: str, seed: dict, found: worker.Found, files: dict) -> None:
  """Writes a finding into the corpus."""
  whole = reader == "checkpoint"  # orbax names its files anew each time
  packed = pack({} if whole else seed, files)
  case = {"reader": reader, "found": found.bucket, "date": datetime.date.today().isoformat(),
          "whole": whole, "files": packed}  # fmt: skip
  name = hashlib.sha256(json.dumps([reader, found.bucket]).encode()).hexdigest()[:8]
  CORPUS.mkdir(exist_ok=True)
  text = json.dumps(case, indent=2, ensure_ascii=True)
  (CORPUS / f"{reader}-{name}.json").write_text(text + "\n")


def corpus_buckets(reader: str) -> set[str]:
  """Names the findings that are kept already."""
  cases = [json.loads(path.read_text()) for path in CORPUS.glob(f"{reader}-*.json")]
  return {case["found"] for case in cases if case["reader"] == reader}


def replay(names: list[str], work: Path) -> int:
  """Reads the corpus again; returns how many of its cases are still findings."""
  from support import readers

  bad = 0
  for reader in names:
    cases = [json.loads(path.read_text()) for path in sorted(CORPUS.glob(f"{reader}-*.json"))]
    cases = [case for case in cases if case["reader"] == reader]
    if not cases:
      continue
    one = worker.Worker(reader, work)
    seed = one.seed()
    for case in cases:
      found = one.run(readers.unpacked({} if case.get("whole") else seed, case["files"]))
      bad += found.bad
      if found.bad:
        print(f"{reader}: {found.bucket} ({found.message[:150]})", flush=True)
    one.close()
  return bad


def add(row: dict) -> None:
  """Adds one reader's figures to those of earlier runs."""
  with RESULTS.open(newline="") if RESULTS.exists() else open("/dev/null") as file:
    rows = {old["reader"]: old for old in csv.DictReader(file)}
  before = rows.get(row["reader"], {})
  sums = {c: int(before.get(c, 0)) + row[c] for c in COLUMNS[1:-1]}
  rows[row["reader"]] = row | sums | {"date": datetime.date.today().isoformat()}
  with RESULTS.open("w", newline="") as file:
    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows[name] for name in sorted(rows))


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--seconds", type=float, default=60, help="for each reader")
  parser.add_argument("--target", action="append", help="a reader's name; default all")
  parser.add_argument("--replay", action="store_true", help="read the corpus again, and stop")
  parser.add_argument("--keep", action="store_true", help="add the figures to fuzz.csv")
  parser.add_argument("--work", default=f"{tempfile.gettempdir()}/jaxtune-fuzz",
                      help="where inputs and hypothesis's examples are kept")  # fmt: skip
  options = parser.parse_args()
  work = Path(options.work)
  worker.warm(work)
  from support import readers

  names = options.target or list(readers.READERS)
  if options.replay:
    return 1 if replay(names, work) else 0
  new = 0
  for name in names:
    row = fuzz(name, options.seconds, work)
    new += row["findings"]
    if options.keep:
      add(row)
  return 1 if new else 0


if __name__ == "__main__":
  sys.exit(main())
