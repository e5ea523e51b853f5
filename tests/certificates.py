"""Exports every method of every family, reloads it in PyTorch, and prints how far logits differ.

  make certify
  python tests/certificates.py [--skip-adapterhub] [--only TEXT] [--out results.csv]

The methods are those of `support/methods.py`, and the models those of `support/tiny.py`, with
random weights: a certificate proves arithmetic and file layout, which do not depend on what was
learnt. Every adapter is also imported and exported again ("round trip"), bit by bit. What a format
cannot hold must be refused. The last rows corrupt one tensor of an export and pass only where the
certificate finds it.

AdapterHub's rows run in the interpreter that JAXTUNE_ADAPTERS_PYTHON names (adapters 1.3.0).
Exits with 1 if a row fails or could not be run. Costs about three minutes on 2 cores.
"""

from __future__ import annotations

import argparse
import atexit
import csv
import gc
import json
import multiprocessing
import os
import sys
import tempfile
import time
from contextlib import ExitStack
from functools import cache, partial
from pathlib import Path

import conftest  # noqa: F401  cheap compilation
import numpy as np
from safetensors.numpy import load_file, save_file
from support import tiny
from support.methods import SECTIONS
from support.reloaders import reloaders

from jaxtune import certify, formats, peft, tree
from jaxtune.api.export import export
from jaxtune.errors import UserError
from jaxtune.models import hf

FAMILIES = {
  "gpt2": "gpt2",
  "llama (grouped query)": "llama",
  "bert (classify)": "bert",
  "bert (tokens)": "bert",
  "bert (reward)": "bert",
  "llama (reward)": "llama",
  "t5": "t5",
}
HEADS = {f"bert ({head})": dict(head=head, labels=3) for head in ("classify", "tokens")}
HEADS |= {f"{name} (reward)": dict(head="reward") for name in ("bert", "llama")}
PEFT = (
  "LoRA", "LoRA, all linear", "rsLoRA, all linear", "LoRA, ranks by pattern", "LoRA of embeddings",
  "LoRA-FA", "PiSSA", "OLoRA", "DoRA, all linear", "AdaLoRA, pruned", "VeRA, of outputs", "LoHa",
  "LoKr, both factors", "IA3", "norms", "prefix", "prefix, MLP", "prompt", "P-tuning",
)  # fmt: skip
FEW = ("LoRA", "prompt", "P-tuning")
# What PEFT cannot hold: the row passes where the export says so.
REFUSED = {
  "gpt2": ("LoHa", "LoKr, both factors"),
  "bert (classify)": ("prompt", "P-tuning"),
  "t5": ("LoRA of embeddings", "prefix", "prefix, MLP", "prefix at 0"),
}
CORRUPTED = (
  ("peft", "LoRA"), ("peft", "DoRA, all linear"), ("peft", "IA3"), ("peft", "prefix"),
  ("peft", "prompt"), ("adapterhub", "adapter, Pfeiffer"), ("merged", "LoRA, all linear"),
)  # fmt: skip
# Read back as what their files hold: a plain LoRA, or a prompt that no network makes any more.
READ_AS = dict.fromkeys(("LoRA-FA", "PiSSA", "OLoRA"), "as LoRA") | {"P-tuning": "as a prompt"}
ADAPTERHUB = (
  "adapter, Pfeiffer", "adapter, Houlsby", "adapter, of an odd width", "AdapterPlus",
  "adapter with LayerNorms", "adapter, widths by layer", "Compacter", "Compacter++, own rules",
  "prefix at 0", "MAM, prefix as arrays",
)  # fmt: skip
# Of BERT and T5, whose layers are two, and two and three.
ADAPTERHUB_FEW = {
  "bert (classify)": ("adapter, Pfeiffer", "adapter, Houlsby", "Compacter", "prefix at 0"),
  "t5": ("adapter, Pfeiffer", "adapter, Houlsby", "AdapterPlus", "prefix at 0"),
}
MERGED = (
  "LoRA, all linear", "full", "last layers and norm", "LoRA of embeddings", "PiSSA",
  "DoRA, all linear", "AdaLoRA, pruned", "VeRA, of outputs", "LoHa", "LoKr, both factors", "IA3",
  "norms",
)  # fmt: skip
COLUMNS = ("format", "family", "method", "difference", "change", "round trip", "verdict")
EMPTY = dict.fromkeys(COLUMNS[3:5]) | {"round trip": "", "verdict": "not run"}


def rows(family: str):
  """Yields (format, dtype, method) of everything that is exported."""
  if family.endswith("(reward)"):
    yield "peft", "float32", "LoRA"
    yield "merged", "float32", "LoRA, all linear"
    return
  groups = [("peft", "float32", FEW if family == "bert (tokens)" else PEFT)]
  if family in ("gpt2", "llama (grouped query)"):
    groups += [("adapterhub", "float32", ADAPTERHUB), ("merged", "float32", MERGED)]
    groups += [("merged", "bfloat16", ("LoRA",))]
  elif family in ADAPTERHUB_FEW:
    groups += [("adapterhub", "float32", ADAPTERHUB_FEW[family])]
  groups += [("merged", "float32", ("BitFit",))] if family == "gpt2" else []
  for form, dtype, names in groups:
    for name in names:
      yield form, dtype, name


def lay(pretrained, name: str) -> peft.Adapted:
  """Lays a method with random trained arrays over a model, and beside it the model's own head."""
  section = SECTIONS[name]
  head = {"head": {"name": "head"}} if pretrained.model.config.head else {}
  stack = {"name": "stack", section["name"]: section, **head}
  return tiny.lay(pretrained, stack, noise=0.05)


def certified(pretrained, name: str, form: str, dtype: str, folder: Path, reload) -> dict:
  """Exports and certifies one row, reads it back and writes it again."""
  adapted, how = lay(pretrained, name), dict(format=form, dtype=dtype)
  try:
    exported = export(pretrained, adapted, folder, certify=True, reload=reload, **how)
    back = ""
    if form != "merged":
      back = round_trip(pretrained, adapted, folder, form, READ_AS.get(name, ""))
  except UserError as error:
    print(f"  {error}", file=sys.stderr)
    return EMPTY | {"verdict": "FAILED"}
  numbers = differences(exported.certificate)
  return numbers | {"round trip": back, "verdict": "FAILED" if "FAILED" in back else "passed"}


def differences(certificate: dict) -> dict:
  """Picks the two numbers of a certificate that the table shows."""
  return {
    "difference": certificate["largest_logit_difference"],
    "change": certificate["change_from_base"],
  }


def round_trip(pretrained, adapted, folder: Path, form: str, read_as: str) -> str:
  """Imports an export, and exports that: arrays and files must be the same, bit by bit.

  The configuration of a prompt, which PEFT has a type of its own for, is not that of P-tuning.
  """
  found = formats.read(folder, pretrained)
  again = folder.with_name(folder.name + "-again")
  export(pretrained, formats.adapt(found, pretrained), again, format=form)
  files = [load_file(place / certify.WEIGHTS[form]) for place in (folder, again)]
  configs = [(place / "adapter_config.json").read_bytes() for place in (folder, again)]
  if not equal(*files) or (configs[0] != configs[1] and read_as != "as a prompt"):
    return "FAILED"
  if read_as:
    return read_as
  tuned, ours, theirs = adapted.tuned, {}, {**found.params}
  for method, read in zip(adapted.methods, found.methods, strict=False):  # a head is not among them
    trained, fixed = adapted.overlay.arrays_of(method)
    for name, arrays in (("trained", method.reparametrise(trained)), ("fixed", fixed)):
      ours |= {f"{name} {path}": x for path, x in peft.by_path(method, arrays).items()}
    for name, arrays in (("trained", method.reparametrise(read.trained)), ("fixed", read.fixed)):
      theirs |= {f"{name} {path}": x for path, x in peft.by_path(method, arrays).items()}
  return "bit-equal" if equal(ours | tree.flatten(tuned["params"]), theirs) else "FAILED"


def equal(ours: dict, theirs: dict) -> bool:
  """Says whether two dicts hold the same arrays."""
  return ours.keys() == theirs.keys() and all(
    np.array_equal(x, theirs[name]) for name, x in ours.items()
  )


def refused(pretrained, name: str, form: str, folder: Path, reload) -> dict:
  """Exports what a format cannot hold, and expects to be told why."""
  try:
    export(pretrained, lay(pretrained, name), folder, format=form)
  except UserError as error:
    print(f"  {error}", file=sys.stderr)
    return EMPTY | {"verdict": "refused"}
  return EMPTY | {"verdict": "FAILED: not refused"}


def corrupted(pretrained, name: str, form: str, folder: Path, reload) -> dict:
  """Exports one row, makes one tensor half as large again, and asks for a certificate."""
  adapted = lay(pretrained, name)
  export(pretrained, adapted, folder, format=form)
  path = folder / certify.WEIGHTS.get(form, "model.safetensors")
  tensors = load_file(path)
  key = max(tensors, key=lambda n: ("lora_B" in n, "up.weight" in n, n.endswith("wte.weight"), n))
  tensors[key] = 1.5 * tensors[key]
  save_file(tensors, path, {"format": "pt"})
  (folder / "pytorch_adapter.bin").unlink(missing_ok=True)
  try:
    certify.certify(folder, pretrained, adapted, reload=reload)
  except certify.Rejected:
    certificate = json.loads((folder / "certificate.json").read_text())
    verdict = "found" if not certificate["passed"] else "FAILED"
    return EMPTY | differences(certificate) | {"verdict": verdict}
  return EMPTY | {"verdict": "FAILED: not found"}


def jobs(pretrained: dict, scratch: Path):
  """Yields (format, family, method, function that runs it)."""
  for family, model in pretrained.items():
    for i, (form, dtype, name) in enumerate(rows(family)):
      folder = scratch / f"{family.replace(' ', '-')}-{i}"
      label = name if dtype == "float32" else f"{name}, as {dtype}"
      if form != "merged" and name in REFUSED.get(family, ()):
        run = partial(refused, model, name, form, folder)
      else:
        run = partial(certified, model, name, form, dtype, folder)
      yield form, family, label, run
  for i, (form, name) in enumerate(CORRUPTED):
    run = partial(corrupted, pretrained["gpt2"], name, form, scratch / f"corrupt-{i}")
    yield form, "gpt2", f"{name}: one tensor corrupted", run


def line(row: dict) -> str:
  number = lambda x: f"{x:.1e}" if isinstance(x, float) else "-"
  return (
    f"{row['format']:<11}{row['family']:<23}{row['method']:<40}"
    f"{number(row['difference']):>10}{number(row['change']):>10}  {row['round trip']:<12}"
    f"{row['verdict']}"
  )


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--skip-adapterhub", action="store_true", help="no error for its rows")
  parser.add_argument("--only", default="", help="rows whose line holds this text")
  parser.add_argument("--out", type=Path, help="also write the table to this CSV file")
  parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
  options = parser.parse_args()
  skip = options.skip_adapterhub
  table, start = [], time.time()
  print(line({n: n for n in COLUMNS}).replace("         -         -", " largest  method's"))
  chosen = [i for i, names in enumerate(labels()) if options.only in " ".join(names)]
  with multiprocessing.get_context("spawn").Pool(options.workers, gc.disable) as pool:
    for row in pool.imap(partial(run_job, skip_adapterhub=skip), chosen):
      table.append(row)
      print(line(row), flush=True)
  return finish(table, options, time.time() - start)


def labels() -> list[tuple[str, str, str]]:
  """Lists the (format, family, method) of all rows, which needs no model."""
  nothing = dict.fromkeys(FAMILIES)
  return [names for *names, _ in jobs(nothing, Path())]


@cache
def workplace(skip_adapterhub: bool):
  """Makes this process's models and starts its PyTorch, once: (jobs, reloaders)."""
  stack = ExitStack()
  atexit.register(stack.close)
  scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
  reload = reloaders(stack, not skip_adapterhub)
  return list(jobs(models(scratch), scratch)), reload


def run_job(index: int, skip_adapterhub: bool) -> dict:
  """Runs one row, in a process of its own."""
  made, reload = workplace(skip_adapterhub)
  form, family, method, run = made[index]
  row = {"format": form, "family": family, "method": method}
  return row | (run(reload[form]) if form in reload else EMPTY)


def models(scratch: Path) -> dict:
  """Makes the base models, as folders that PyTorch and we both load."""
  bases = {}
  for family, name in FAMILIES.items():
    head = HEADS.get(family, {})
    pretrained = tiny.make(name, **head)
    folder = hf.save(pretrained, pretrained.params, scratch / family.replace(" ", "-"))
    bases[family] = hf.load(str(folder), **head)
  return bases


def finish(table: list[dict], options, seconds: float) -> int:
  """Prints the sum, writes the CSV file and returns the exit code."""
  if options.out:
    with options.out.open("w", newline="") as file:
      writer = csv.DictWriter(file, COLUMNS)
      writer.writeheader()
      writer.writerows(table)
  verdicts = [row["verdict"] for row in table]
  bad = sum(v not in ("passed", "found", "refused", "not run") for v in verdicts)
  skipped = verdicts.count("not run")
  worst = max((row["difference"] for row in table if row["verdict"] == "passed"), default=0.0)
  print(
    f"{verdicts.count('passed')} certified (largest difference {worst:.1e}, tolerance "
    f"{certify.TOLERANCE:g}), {verdicts.count('found')} corruptions found, "
    f"{verdicts.count('refused')} refused with a reason, {bad} failed, "
    f"{skipped} not run, {seconds:.0f} s"
  )
  if skipped and not options.skip_adapterhub:
    print(f"AdapterHub's rows need {certify.VARIABLE}, or --skip-adapterhub")
  return int(bad > 0 or not table or (skipped > 0 and not options.skip_adapterhub))


if __name__ == "__main__":
  sys.exit(main())
