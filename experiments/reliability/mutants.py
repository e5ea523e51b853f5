"""Mutation testing: would the tests notice a change of the code that makes published numbers?

  python experiments/reliability/mutants.py [--count N] [--only MODULE ...] [--minutes N] [--retry]
  python experiments/reliability/mutants.py --check N

Draws mutants by seed, a share of each module, runs the tests that reach the changed line, and keeps
each result in mutants.csv as it comes, so that a stopped run goes on. A mutant's key is made of its
code alone: results live on while the code around them changes, and are dropped with their code.
With --retry, survivors meet the tests of today once more. With --check, N mutants that were killed
meet the tests that killed them, nothing is kept, and one that now survives is an error.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import hashlib
import json
import sys
import tempfile
import time
from fnmatch import fnmatch
from pathlib import Path

import forked
import mutating

HERE = Path(__file__).parent
RESULTS, EQUIVALENT = HERE / "mutants.csv", HERE / "equivalent.csv"
COLUMNS = (
  "key", "module", "function", "line", "operator", "before", "after", "mutated", "outcome",
  "killed_by", "tests", "seconds", "date",
)  # fmt: skip
# Which test files are asked about a module, nearest first; those with the line are run.
TESTS = {
  "training/step.py": ["training/test_step", "training/test_loop", "training/test_packing",
                       "peft/methods/test_regularize", "peft/methods/test_adalora",
                       "evaluation/test_judge"],
  "training/optim.py": ["training/test_step", "training/test_loop", "test_config",
                        "peft/methods/test_head", "peft/methods/test_ia3"],
  "training/*": ["training/*", "runs/test_resume", "api/test_tasks", "test_sharding"],
  "runs/group.py": ["training/*", "runs/test_resume", "api/test_tasks", "test_sharding"],
  "evaluation/generate.py": ["evaluation/test_generate", "peft/methods/test_prompt",
                             "peft/test_unions"],
  "evaluation/*": ["evaluation/*", "api/test_tasks"],
  "metrics/*": ["metrics/*", "evaluation/*", "api/test_tasks"],
  "peft/methods/adapter.py": ["peft/methods/test_adapters", "peft/test_methods",
                              "compose/test_mixed"],
  "peft/methods/compacter.py": ["peft/methods/test_adapters", "peft/test_methods",
                                "compose/test_mixed"],
  "peft/methods/lo[hk]*.py": ["peft/methods/test_loha_lokr", "peft/test_methods",
                              "compose/test_mixed"],
  "peft/methods/p_tuning.py": ["peft/methods/test_prompt", "peft/test_methods",
                               "compose/test_mixed"],
  "peft/methods/*s.py": ["peft/methods/test_subsets", "peft/test_methods", "compose/test_mixed"],
  "peft/methods/bitfit.py": ["peft/methods/test_subsets", "peft/test_methods",
                             "compose/test_mixed"],
  "peft/methods/full.py": ["peft/methods/test_subsets", "peft/test_methods", "compose/test_mixed",
                           "training/test_loop"],
  "peft/methods/*": ["peft/methods/test_{}", "peft/test_methods", "compose/test_mixed"],
  "peft/*": ["peft/test_methods", "peft/test_unions", "preflight/test_gradients",
             "peft/methods/test_prompt", "peft/methods/test_subsets", "peft/methods/test_lora",
             "compose/*", "training/test_loop"],
  "objectives/*": ["objectives/*", "api/test_tasks", "models/test_heads", "evaluation/test_judge"],
  "compose/*": ["compose/*", "api/test_adapters"],
  "formats/peft/*": ["formats/test_peft_write", "formats/test_layout", "formats/test_heads",
                     "formats/test_peft_read", "formats/test_quantised",
                     "formats/test_encoder_decoders"],
  "data/mix.py": ["data/test_mix", "data/test_batches", "sweeps/test_mixtures"],
  "data/encode/*": ["data/encode/test_{}", "data/encode/*", "data/test_data", "data/test_load"],
  "data/*": ["data/test_{}", "data/test_batches", "data/test_data", "data/test_load",
             "data/test_stream", "training/test_packing"],
  "sweeps/stats.py": ["sweeps/test_stats", "sweeps/test_report", "sweeps/test_plot"],
}  # fmt: skip
ALWAYS = ["test_properties", "*/test_properties*", "test_defaults"]
BUDGET = 90.0  # seconds of CPU that the unchanged tests of one mutant may take in all


def test_files(tests: Path, module: str) -> list[str]:
  """Lists the test files to ask about a module, below the copy."""
  patterns = next(names for pattern, names in TESTS.items() if fnmatch(module, pattern))
  names = [p.replace("{}", Path(module).stem) for p in patterns] + ALWAYS
  found = [path for name in names for path in sorted(tests.glob(f"{name}.py"))]
  return list(dict.fromkeys(str(path.relative_to(tests.parent)) for path in found
                            if path.name.startswith("test_")))  # fmt: skip


class Lines:
  """The lines of a module by what they say: "module|function|text" for each line number."""

  def __init__(self, package: Path):
    self.package, self.known = package, {}

  def __call__(self, module: str) -> list[str]:
    if module not in self.known:
      import ast

      text = (self.package / module).read_text()
      names = [""] * (text.count("\n") + 2)

      def visit(node, prefix):
        for child in ast.iter_child_nodes(node):
          inner = prefix
          if isinstance(child, ast.FunctionDef | ast.ClassDef):
            inner = f"{prefix}.{child.name}".strip(".")
            names[child.lineno : child.end_lineno + 1] = [inner] * (
              child.end_lineno + 1 - child.lineno
            )
          visit(child, inner)

      visit(ast.parse(text), "")
      lines = ["", *text.splitlines()]
      self.known[module] = [
        f"{module}|{name}|{line.strip()}" for name, line in zip(names, lines, strict=False)
      ]
    return self.known[module]


def mapped(work: Path, file: str, lines: Lines) -> list[forked.Test]:
  """Notes which lines each test of a file runs; kept until the file changes."""
  content = (work / "copy" / file).read_bytes()
  kept = work / "maps" / f"{file.replace('/', '-')}.json"
  sha = hashlib.sha256(content).hexdigest()
  known = json.loads(kept.read_text()) if kept.exists() else {}
  if known.get("sha") != sha:
    print(f"mapping {file}", flush=True)
    found = forked.run(work, work / "map.log", files=[file], record=True)
    failed, texts, tests = set(found["failed"]), {}, {}
    for name, test in found.get("tests", {}).items():
      if name not in failed:
        said = {lines(m)[n] for m, numbers in test["lines"].items() for n in numbers}
        indices = sorted(texts.setdefault(text, len(texts)) for text in said)
        tests[name] = [test["seconds"], indices]
    known = {"sha": sha, "texts": list(texts), "tests": tests, "failed": sorted(failed)}
    kept.parent.mkdir(exist_ok=True)
    kept.write_text(json.dumps(known))
    if failed or found["outcome"] == "broken":
      print(f"  without the mutant {found['outcome']}: {sorted(failed)[:3]}", flush=True)
  return [
    forked.Test(file, name, seconds, frozenset(known["texts"][i] for i in indices))
    for name, (seconds, indices) in known["tests"].items()
  ]


def chosen(mutant: mutating.Mutant, tests: list[forked.Test], lines: Lines) -> list[forked.Test]:
  """Orders the tests that run a mutant's statement, and then the others of its nearest file.

  What is run on import, such as a constant or a default, is run by no test: all of them are asked,
  the shortest first.
  """
  said = set(lines(mutant.module)[mutant.lines[0] : mutant.lines[1] + 1])
  reach = [test for test in tests if said & test.lines]
  near = lambda test: not reach or test.file == tests[0].file
  nearest = [test for test in tests if near(test) and test not in reach]
  files = list(dict.fromkeys(test.file for test in tests))
  order = lambda test: (test in nearest, files.index(test.file) if reach else 0, test.seconds)
  picked, spent = [], 0.0
  for test in sorted(reach + nearest, key=order):
    spent += test.seconds
    if spent <= BUDGET or not picked:
      picked.append(test)
  return picked


def judge(work: Path, text: str, mutant: mutating.Mutant, tests: list[forked.Test]) -> dict:
  """Runs tests over the mutant and says what became of it."""
  path = work / "copy" / "jaxtune" / mutant.module
  before = path.read_text()
  compiled = list((path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"))
  try:
    path.write_text(text)
    for old in compiled:
      old.unlink()
    cost = sum(test.seconds for test in tests)
    found = forked.run(
      work, work / "mutant.log", files=list(dict.fromkeys(t.file for t in tests)),
      only=[t.name for t in tests], cpu=30 + 3 * cost,
    )  # fmt: skip
  finally:
    path.write_text(before)
  by = {"failed": (found["failed"] or [""])[0], "broken": "import", "timeout": "time limit"}
  outcome = "survived" if found["outcome"] == "passed" else "killed"
  return {"outcome": outcome, "killed_by": by.get(found["outcome"], ""),
          "tests": len(tests), "seconds": round(found["seconds"], 1)}  # fmt: skip


def changed_line(tree, mutant: mutating.Mutant) -> str:
  """Returns the first line of the module that the mutant changes, as it is then."""
  before, after = tree.code.splitlines(), (mutating.write(tree, mutant) or "").splitlines()
  pairs = zip(before, after + [""] * len(before), strict=False)
  return next((new.strip() for old, new in pairs if old != new), "")


def read(path: Path) -> dict[str, dict]:
  """Reads kept rows by their key."""
  with path.open(newline="") if path.exists() else open("/dev/null") as file:
    return {row["key"]: row for row in csv.DictReader(file)}


def keep(rows: dict[str, dict]) -> None:
  """Writes all rows, in the order of modules and lines."""
  new = RESULTS.with_suffix(".new")
  with new.open("w", newline="") as file:
    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(sorted(rows.values(), key=lambda r: (r["module"], int(r["line"]), r["key"])))
  new.replace(RESULTS)


def draw(package: Path, only: list[str], count: int, seed: int) -> dict[str, tuple]:
  """Draws the sample: {module: (its tree, mutants in the order of their draw)}."""
  made = {module: mutating.mutants(package, module) for module in mutating.files(package)}
  shares = mutating.quotas({m: len(found) for m, (_, found) in made.items()}, count)
  return {
    m: (tree, mutating.sample(found, shares[m], seed), {x.key: x for x in found})
    for m, (tree, found) in made.items()
    if not only or any(fnmatch(m, pattern) for pattern in only)
  }


def run(options) -> None:
  """Judges every drawn mutant that has no result yet (with --retry, survivors too)."""
  work = Path(options.work)
  work.mkdir(parents=True, exist_ok=True)
  package = forked.copy(work) / "jaxtune"
  forked.warm(work)
  lines, until = Lines(package), time.monotonic() + 60 * options.minutes
  drawn = draw(package, options.only, options.count, options.seed)
  rows, equivalent = read(RESULTS), read(EQUIVALENT)
  for module, (tree, sample, every) in drawn.items():
    for key, row in list(rows.items()):
      if row["module"] == module and key not in every:
        del rows[key]  # its code is no longer there
      elif row["module"] == module:
        row |= {"line": every[key].line, "mutated": changed_line(tree, every[key])}
    todo = [mutant for mutant in sample if mutant.key not in rows]
    if options.retry:
      lived = {k for k, row in rows.items() if row["outcome"] == "survived"} - equivalent.keys()
      todo += [mutant for key, mutant in every.items() if key in lived]
    if not todo or time.monotonic() > until:
      continue
    files = test_files(work / "copy" / "tests", module)
    tests = [test for file in files for test in mapped(work, file, lines)]
    for mutant in todo:
      text = mutating.write(tree, mutant)
      if text is None or time.monotonic() > until:
        continue
      shown = {f: getattr(mutant, f) for f in COLUMNS[:7]}
      shown["mutated"] = changed_line(tree, mutant)
      found = judge(work, text, mutant, chosen(mutant, tests, lines))
      rows[mutant.key] = shown | found | {"date": datetime.date.today().isoformat()}
      keep(rows)
      print(f"{found['outcome']:8} {found['seconds']:6.1f} s {module}:{mutant.line} "
            f"{mutant.before[:50]!r} -> {mutant.after[:50]!r}", flush=True)  # fmt: skip


def check(options) -> int:
  """Lets killed mutants meet the test that killed them; returns how many of them now survive."""
  work = Path(options.work)
  work.mkdir(parents=True, exist_ok=True)
  package = forked.copy(work) / "jaxtune"
  forked.warm(work)
  test = lambda row: work / "copy" / row["killed_by"].split("::")[0]
  killed = [r for r in read(RESULTS).values() if "::" in r["killed_by"] and test(r).exists()]
  rank = lambda row: hashlib.sha256(f"{options.seed}:{row['key']}".encode()).hexdigest()
  made, alive = {}, 0
  for row in sorted(killed, key=rank)[: options.check]:
    module = row["module"]
    tree, found = made.setdefault(module, mutating.mutants(package, module))
    mutant = next((m for m in found if m.key == row["key"]), None)
    if mutant is None:
      continue  # its code is no longer there
    name = row["killed_by"]
    tests = [forked.Test(name.split("::")[0], name, 60.0, frozenset())]
    found = judge(work, mutating.write(tree, mutant), mutant, tests)
    if found["outcome"] != "killed":
      alive += 1
      print(f"{module}:{mutant.line} {mutant.before[:60]!r} -> {mutant.after[:60]!r} is no longer "
            f"killed by {name}", flush=True)  # fmt: skip
  print(f"{min(options.check, len(killed))} killed mutants: {alive} of them live now")
  return alive


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--count", type=int, default=360, help="size of the whole sample")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--only", action="append", default=[], help="modules, such as peft/*")
  parser.add_argument("--minutes", type=float, default=1e6, help="begin none after these")
  parser.add_argument("--retry", action="store_true", help="survivors meet today's tests")
  parser.add_argument("--check", type=int, metavar="N", help="only N that were killed before")
  parser.add_argument(
    "--work", default=f"{tempfile.gettempdir()}/jaxtune-mutants",
    help="where the copy, its maps and its compiled programs are kept",
  )  # fmt: skip
  options = parser.parse_args()
  if options.check:
    return 1 if check(options) else 0
  run(options)
  return 0


if __name__ == "__main__":
  sys.exit(main())
