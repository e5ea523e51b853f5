"""Writes README.md from the tables here and from the corpus.

python experiments/reliability/report.py [FOLDER]
"""

from __future__ import annotations

import csv
import json
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import mutating

HERE = Path(__file__).parent
PACKAGE = HERE.parents[1] / "jaxtune"
OUTCOMES = ("inputs", "read", "refused", "findings")  # columns of fuzz.csv
CORPUS = HERE.parents[1] / "tests" / "corpus"
TEXT = """# Reliability

<!-- written by python experiments/reliability/report.py -->

Five instruments. Each section says when its figures were made: they are of the code of that day.

- `mutants.py`: would the tests notice a change of the code? The long form is
  `mutants.py --count 360`, and `--retry` once there are new tests.
- `fuzz.py`: what do damaged files do to every reader? The long form is
  `fuzz.py --seconds 3600 --keep`, an hour for each reader.
- `faults.py`: what do kills, full disks, lost permissions and flipped bits leave? The long form is
  `faults.py --keep`.
- `kills.py`: does SIGKILL of a sweep, of its Ray driver, of a Ray worker or of the Ray head change
  a byte? The long form is `kills.py --keep`, an hour or two.
- `coverage.py`: do the intervals of reports cover, and does Holm's correction keep the error of a
  family? The long form is `coverage.py --keep`.

`make reliability` runs a short form of all but `kills.py`, in at most ten minutes on two quiet
cores, and fails on anything new. The long forms can be stopped, and go on. `report.py` writes
this page.

## Mutants

{mutants}

## Fuzzing

{fuzz}

## Faults

{faults}

## Kills

{kills}

## Coverage

{coverage}
"""


def rows(name: str) -> list[dict]:
  """Reads a kept table; none where it has not been made."""
  path = HERE / name
  with path.open(newline="") if path.exists() else open("/dev/null") as file:
    return list(csv.DictReader(file))


def table(header: Iterable[str], lines: Iterable[Iterable]) -> str:
  header, lines = list(header), [list(line) for line in lines]
  marks = ["---:" if all(isinstance(x, int) or str(x)[:1].isdigit() for x in column) else "---"
           for column in zip(*lines, strict=True)]  # fmt: skip
  return "\n".join(f"| {' | '.join(map(str, line))} |" for line in (header, marks, *lines) if line)


def code(text: str) -> str:
  """Shows code in a cell of a table."""
  text = " ".join(text.split()).replace("|", "\\|")
  return f"`{text[:77]}...`" if len(text) > 80 else f"`{text}`"


def dates(found: list[dict]) -> str:
  """Says when the rows of a kept table were made."""
  days = sorted({row["date"] for row in found})
  return f"Made on {days[0]}." if len(days) == 1 else f"Made from {days[0]} to {days[-1]}."


def of_today(found: list[dict]) -> list[dict]:
  """Returns the mutants whose code is still there, with the lines on which it stands now."""
  names = dict.fromkeys(r["module"] for r in found if (PACKAGE / r["module"]).exists())
  lines = {one.key: one.line for m in names for one in mutating.mutants(PACKAGE, m)[1]}
  return [row | {"line": lines[row["key"]]} for row in found if row["key"] in lines]


def mutants() -> str:
  """The score by module, the survivors, and why some of them change nothing."""
  judged, equivalent = rows("mutants.csv"), {r["key"]: r["why"] for r in rows("equivalent.csv")}
  if not (found := of_today(judged)):
    return "None were run yet."
  count = lambda rs: (
    len(rs), sum(r["outcome"] == "killed" for r in rs),
    sum(r["outcome"] != "killed" and r["key"] in equivalent for r in rs),
  )  # fmt: skip
  score = lambda all_, killed, same: f"{100 * killed / (all_ - same):.0f} %" if all_ > same else "-"
  names = dict.fromkeys(r["module"] for r in found)
  modules = {m: [r for r in found if r["module"] == m] for m in names}
  lines = [[m, *count(rs), score(*count(rs))] for m, rs in modules.items()]
  total = ["**all**", *count(found), f"**{score(*count(found))}**"]
  left = [r for r in found if r["outcome"] != "killed"]
  open_ = [r for r in left if r["key"] not in equivalent]
  show = lambda r: [f"{r['module']}:{r['line']}", code(r["before"]), code(r["mutated"])]
  parts = [
    "Mutants are drawn by seed, a share of each module, from the operators of mutmut and two of our"
    " own: a call becomes its first argument (`fold_in(key, seed)`: `key`), and an operation one of"
    " its sides (`rate * ratio`: `rate`). Each meets the tests that run its line, those of its own"
    " file first. Texts of errors are not mutated. A mutant that takes four times as long as the"
    " tests do, or cannot be imported, counts as killed.",
    f"{dates(found)} {len(judged)} were judged; {len(judged) - len(found)} of them are left out"
    " here, as their code has changed since.",
    table(["module", "mutants", "killed", "equivalent", "score"], [*lines, total]),
    f"### Survivors that no test tells apart: {len(open_)}",
    table(["line", "what is replaced", "the line then"], map(show, open_)) if open_ else "None.",
    f"### Survivors that change nothing: {len(left) - len(open_)}",
    table(["line", "what is replaced", "the line then", "why it is the same"],
          ([*show(r), equivalent[r["key"]]] for r in left if r["key"] in equivalent)),
  ]  # fmt: skip
  return "\n\n".join(parts)


def fuzz() -> str:
  """Inputs and seconds of every reader, and what was found."""
  found = rows("fuzz.csv")
  cases = [json.loads(path.read_text()) for path in sorted(CORPUS.glob("*.json"))]
  kinds = Counter(case["reader"] for case in cases)
  if not found:
    return "None was run yet."
  lines = [
    [*(r[name] for name in ("reader", "seconds", *OUTCOMES)), kinds[r["reader"]]] for r in found
  ]
  hours = sum(int(r["seconds"]) for r in found) / 3600
  names = [[c["reader"], c["found"].replace("|", "\\|"), c["date"]] for c in cases]
  lost = [r["reader"] for r in found if int(r["findings"]) > kinds[r["reader"]]]
  others = sorted(kinds.keys() - {r["reader"] for r in found})
  gaps = [f"Not every input was kept of the findings of: {', '.join(lost)}."] * bool(lost)
  gaps += [f"Findings are kept, and no figures, of: {', '.join(others)}."] * bool(others)
  return "\n\n".join([
    f"{dates(found)} {hours:.1f} hours in all. "
    "An input may be read or refused in one line; a stack trace, a"
    " signal, 20 seconds of a core, a gigabyte of memory, a file outside its folder, a program or a"
    " connection is a finding. Inputs that were neither read nor refused show one. Those that are"
    " kept in `tests/corpus` are read again by `tests/test_corpus.py`.",
    table(["reader", "seconds", *OUTCOMES, "findings kept of all runs"], lines),
    *gaps,
    "### Findings that are kept",
    table(["reader", "what happened", "found on"], names) if names else "None.",
  ])  # fmt: skip


def faults() -> str:
  """Counts of what was done to every command, and how it ended."""
  found = rows("faults.csv")
  if not found:
    return "None were tried yet."
  pairs = dict.fromkeys((r["job"], r["fault"]) for r in found)
  verdicts = {pair: Counter(r["verdict"] for r in found if (r["job"], r["fault"]) == pair)
              for pair in pairs}  # fmt: skip
  bad = [r for r in found if r["verdict"] not in ("same", "refused")]
  lines = [
    [f"{job}: {fault}", c.total(), c["same"], c["refused"], c.total() - c["same"] - c["refused"]]
    for (job, fault), c in verdicts.items()
  ]
  return "\n\n".join([
    f"{dates(found)} "
    "After each fault the command was started again. `same`: it ended as the undisturbed run, to"
    " the byte but for times. `refused`: it stopped with one line that names a file, and nothing"
    " was lost; `train` and `sweep` have to go on after a kill.",
    table(["command: fault", "trials", "same", "refused", "otherwise"], lines),
    "### Otherwise",
    table(["command", "fault", "at", "what"],
          ([r["job"], r["fault"], r["at"], f"{r['verdict']}: {r['detail']}".replace("|", "\\|")]
           for r in bad)) if bad else "None.",
  ])  # fmt: skip


def kills() -> str:
  """Counts of what was killed, and how the sweep ended."""
  found = rows("kills.csv")
  if not found:
    return "None were tried yet."
  kinds = {kind: [r for r in found if r["kind"] == kind] for kind in {r["kind"]: 0 for r in found}}
  bad = [r for r in found if r["verdict"] != "same"]
  lines = [
    [kind, len(rs), sum(r["verdict"] == "same" for r in rs), rs[-1]["date"]]
    for kind, rs in kinds.items()
  ]
  return "\n\n".join([
    f"{dates(found)} "
    "One small sweep (LoRA, adapters, prefixes with a rate to choose, early exit), killed at a"
    " random moment and brought to its end by the same command, or by its driver where a worker was"
    " killed. `same`: every file is that of the undisturbed sweep of one process, to the byte but"
    " for times.",
    table(["what was killed", "times", "same", "date"], lines),
    "### Not the same",
    table(["what was killed", "after", "what"],
          ([r["kind"], r["after"], r["verdict"].replace("|", "\\|")] for r in bad))
    if bad else "None.",
  ])  # fmt: skip


def coverage() -> str:
  """How often intervals hold the true value, and families of equal configurations differ."""
  found = rows("coverage.csv")
  if not found:
    return "Nothing was simulated yet."
  keys = ("what", "seeds", "over seeds", "over examples")
  ways = lambda mine: list(dict.fromkeys(r["by"] for r in found if mine(r)))
  parts = []
  for name in ("interval of a difference", "interval of a mean", "family"):
    mine = lambda r, name=name: r["what"].startswith(name)
    columns, lines = ways(mine), {}
    for r in filter(mine, found):
      lines.setdefault(tuple(r[key] for key in keys), {})[r["by"]] = r["percent"]
    body = [[*line, *(cells.get(way, "") for way in columns)] for line, cells in lines.items()]
    parts.append(table([*keys, *columns], body))
  return "\n\n".join([
    f"{dates(found)} "
    "Percent of 4,000 simulated comparisons. Intervals of a difference should hold the true one in"
    " 95 %: differences have the given standard deviations over seeds and over 100 examples, and 1"
    " for what both do together. The first column is what reports have; the others are why.",
    parts[0],
    "Intervals of a mean over seeds. Reports have those of Student's t; the others are why.",
    parts[1],
    "Equal configurations of five seeds, compared with one of them: a difference should be found in"
    " at most 5 %.",
    parts[2],
  ])  # fmt: skip


def main() -> int:
  text = TEXT.format(
    mutants=mutants(), fuzz=fuzz(), faults=faults(), kills=kills(), coverage=coverage()
  )
  ((Path(sys.argv[1]) if sys.argv[1:] else HERE) / "README.md").write_text(text)
  return 0


if __name__ == "__main__":
  sys.exit(main())
