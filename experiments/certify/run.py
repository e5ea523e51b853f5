"""Exports every method of every family, reloads it in PyTorch, and prints how far logits differ.

  make certify
  python experiments/certify/run.py [--skip-adapterhub] [--only TEXT] [--out results.csv]

The models are small, with random weights, and so are the trained arrays: a certificate proves
arithmetic and file layout, which do not depend on what was learnt. Every adapter is also imported
and exported again ("round trip"), bit by bit. What a format cannot hold must be refused. The last
rows corrupt one tensor of an export and pass only where the certificate finds it.

AdapterHub's rows run in the interpreter that JAXTUNE_ADAPTERS_PYTHON names (adapters 1.3.0).
Exits with 1 if a row fails or could not be run. Costs about four minutes on 2 cores.
"""

from __future__ import annotations

import argparse
import atexit
import csv
import json
import multiprocessing
import os
import sys
import tempfile
import time
import zlib
from contextlib import ExitStack
from functools import cache, partial
from pathlib import Path

import jax
import numpy as np
from safetensors.numpy import load_file, save_file

from jaxtune import certify, formats, peft, tree
from jaxtune.api.export import export
from jaxtune.errors import UserError
from jaxtune.models import hf

SMALL = {"vocab_size": 257, "tie_word_embeddings": True}
BERT = SMALL | dict(model_type="bert", hidden_size=96, num_hidden_layers=2, num_attention_heads=4,
                    intermediate_size=160, max_position_embeddings=96)  # fmt: skip
FAMILIES = {
  "gpt2": SMALL | dict(model_type="gpt2", n_embd=96, n_layer=3, n_head=4, n_positions=96),
  "llama (grouped query)": SMALL | dict(
    model_type="llama", hidden_size=96, num_hidden_layers=3, num_attention_heads=6,
    num_key_value_heads=2, intermediate_size=160, max_position_embeddings=96,
    tie_word_embeddings=False,
  ),
  "bert (classify)": BERT,
  "bert (tokens)": BERT,
  "t5": SMALL | dict(
    model_type="t5", d_model=96, d_kv=16, d_ff=160, num_layers=2, num_decoder_layers=3,
    num_heads=4, feed_forward_proj="gated-gelu", tie_word_embeddings=False,
    decoder_start_token_id=0,
  ),
}  # fmt: skip
HEADS = {f"bert ({head})": dict(head=head, labels=3) for head in ("classify", "tokens")}
# T5 does not scale its scores: under larger weights PyTorch's own fp32 is 4e-5 from its fp64.
DEVIATIONS = {"t5": 0.05}
LINEAR = (".*_proj",)
PEFT = {
  "LoRA, q and v": dict(name="lora", rank=4),
  "LoRA, all linear": dict(name="lora", rank=4, targets=LINEAR),
  "rsLoRA, all linear": dict(name="lora", rank=8, rslora=True, targets=LINEAR),
  "LoRA, ranks by pattern": dict(name="lora", rank=4, ranks={"down_proj": 2},
                                 targets=("q_proj", "down_proj")),
  "LoRA of embeddings": dict(name="lora", rank=4, targets=("embed", "q_proj")),
  "LoRA-FA": dict(name="lora", rank=4, train_a=False),
  "LoRA from PiSSA": dict(name="lora", rank=4, initialise="pissa"),
  "LoRA from OLoRA": dict(name="lora", rank=4, initialise="olora"),
  "DoRA, all linear": dict(name="lora", rank=4, dora=True, targets=LINEAR),
  "AdaLoRA": dict(name="adalora", init_rank=4, target_rank=2),
  "VeRA": dict(name="vera", rank=16, targets=("o_proj", "down_proj")),
  "LoHa": dict(name="loha", rank=4),
  "LoKr": dict(name="lokr", rank=4, factor=4, decompose_both=True),
  "IA3": dict(name="ia3"),
  "norms": dict(name="norms"),
  "prefix": dict(name="prefix", length=7),
  "prefix with MLP": dict(name="prefix", length=7, projection=24),
  "prompt": dict(name="prompt", length=7),
  "P-tuning": dict(name="p_tuning", length=7),
}  # fmt: skip
FEW = ("LoRA, q and v", "prompt", "P-tuning")
# What PEFT cannot hold: the row passes where the export says so.
REFUSED = {
  "gpt2": ("LoHa", "LoKr"),
  "bert (classify)": ("prompt", "P-tuning"),
  "t5": ("LoRA of embeddings", "prefix", "prefix with MLP", "prefix at 0"),
}
CORRUPTED = ("LoRA, q and v", "DoRA, all linear", "IA3", "prefix", "prompt")
# Written as the LoRA that they are, and read back as such.
AS_LORA = ("LoRA-FA", "LoRA from PiSSA", "LoRA from OLoRA")
ADAPTERHUB = {
  "adapter, Pfeiffer": dict(name="adapter", width=12),
  "adapter, Houlsby": dict(name="adapter", width=7, placement="houlsby"),
  "adapter, parallel": dict(name="adapter", width=40, placement="parallel"),
  "AdapterPlus": dict(name="adapter", width=12, placement="plus"),
  "adapter with LayerNorms": dict(name="adapter", width=12, ln_before=True, ln_after=True),
  "adapter, widths by layer": dict(name="adapter", width=(12, 4, 8)),
  "Compacter": dict(name="compacter", width=12, n=4),
  "Compacter++, own rules": dict(name="compacter", width=12, n=4, placement="pfeiffer",
                                 shared=False),
  "prefix at 0": dict(name="prefix", length=7, shift=False),
  "MAM": dict(name="mam", prefix=dict(length=5, projection=None), adapter=dict(width=12)),
}  # fmt: skip
# Of BERT and T5, whose layers are two, and two and three.
ADAPTERHUB_FEW = {
  "bert (classify)": ("adapter, Pfeiffer", "adapter, Houlsby", "Compacter", "prefix at 0"),
  "t5": ("adapter, Pfeiffer", "adapter, Houlsby", "AdapterPlus", "prefix at 0"),
}
MERGED = {
  "LoRA, all linear": dict(name="lora", rank=4, targets=LINEAR),
  "full": dict(name="full"),
  "last layers": dict(name="last_layers", layers=1, norm=True),
}
DELTAS = ("LoRA of embeddings", "LoRA from PiSSA", "DoRA, all linear", "AdaLoRA", "VeRA", "LoHa",
          "LoKr", "IA3", "norms")  # fmt: skip
MERGED_BF16 = {"LoRA, q and v": dict(name="lora", rank=4)}
COLUMNS = ("format", "family", "method", "difference", "change", "round trip", "verdict")
EMPTY = dict.fromkeys(COLUMNS[3:5]) | {"round trip": "", "verdict": "not run"}


def rows(family: str):
  """Yields (format, dtype, name of the method, its section) of everything that is exported."""
  few = FEW if family == "bert (tokens)" else PEFT
  groups = [("peft", "float32", {name: PEFT[name] for name in few})]
  if family in ("gpt2", "llama (grouped query)"):
    merged = MERGED | {name: PEFT[name] for name in DELTAS}
    groups += [("adapterhub", "float32", ADAPTERHUB)]
    groups += [("merged", "float32", merged), ("merged", "bfloat16", MERGED_BF16)]
  elif family in ADAPTERHUB_FEW:
    some = {name: ADAPTERHUB[name] for name in ADAPTERHUB_FEW[family]}
    groups += [("adapterhub", "float32", some)]
  groups += [("merged", "float32", {"BitFit": dict(name="bitfit")})] if family == "gpt2" else []
  for form, dtype, sections in groups:
    for name, section in sections.items():
      yield form, dtype, name, section


def noise(arrays, deviation: float):
  """Moves every leaf off its start by normal noise, so that no trained array is zero."""
  rng = lambda path: np.random.default_rng(zlib.crc32(path.encode()))
  draw = lambda path, x: deviation * rng(path).standard_normal(x.shape)
  return tree.unflatten(
    {path: x + draw(path, x).astype(x.dtype) for path, x in tree.flatten(arrays).items()}
  )


def lay(pretrained, section: dict):
  """Lays a method with random trained arrays over a model, and beside it the model's own head."""
  head = {"head": {"name": "head"}} if pretrained.model.config.head else {}
  methods = peft.build({"name": "stack", section["name"]: section, **head})
  _, tuned, hyper, base = peft.init(
    jax.random.key(0), methods, peft.find_sites(pretrained.model), pretrained.params
  )
  tuned = {"params": {}, "peft": {}} | noise(tuned, 0.05)
  return methods, tuned, hyper, base


def certified(pretrained, name: str, section: dict, form: str, dtype: str, folder: Path, reload):
  """Exports and certifies one row, reads it back and writes it again."""
  how, laid = dict(format=form, dtype=dtype), lay(pretrained, section)
  try:
    made = export(
      pretrained, peft.Adapted(*laid), folder, certify=True, reload=reload, **how
    ).certificate
    back = ""
    if form != "merged":
      back = round_trip(pretrained, laid, folder, form, name in AS_LORA)
  except UserError as error:
    print(f"  {error}", file=sys.stderr)
    return EMPTY | {"verdict": "FAILED"}
  return {
    "difference": made["largest_logit_difference"],
    "change": made["change_from_base"],
    "round trip": back,
    "verdict": "FAILED" if "FAILED" in back else "passed",
  }


def round_trip(pretrained, laid, folder: Path, form: str, as_lora: bool) -> str:
  """Imports an export, and exports that: arrays and files must be the same, bit by bit."""
  found = formats.read(folder, pretrained)
  again = folder.with_name(folder.name + "-again")
  export(pretrained, formats.adapt(found, pretrained), again, format=form)
  files = [load_file(place / certify.WEIGHTS[form]) for place in (folder, again)]
  if not equal(*files):
    return "FAILED"
  if as_lora:
    return "as LoRA"
  methods, tuned, *_ = laid
  ours, theirs = {}, {**found.params}
  for method, read in zip(methods, found.methods, strict=False):  # a head is not among them
    ours |= peft.by_path(method, method.realise(peft.arrays_of(method, tuned["peft"])))
    theirs |= peft.by_path(method, method.realise(read.trained))
  return "bit-equal" if equal(ours | tree.flatten(tuned["params"]), theirs) else "FAILED"


def equal(ours: dict, theirs: dict) -> bool:
  """Says whether two dicts hold the same arrays."""
  return ours.keys() == theirs.keys() and all(
    np.array_equal(x, theirs[name]) for name, x in ours.items()
  )


def refused(pretrained, section: dict, form: str, folder: Path, reload) -> dict:
  """Exports what a format cannot hold, and expects to be told why."""
  try:
    export(pretrained, peft.Adapted(*lay(pretrained, section)), folder, format=form)
  except UserError as error:
    print(f"  {error}", file=sys.stderr)
    return EMPTY | {"verdict": "refused"}
  return EMPTY | {"verdict": "FAILED: not refused"}


def corrupted(pretrained, section: dict, form: str, folder: Path, reload) -> dict:
  """Exports one row, makes one tensor half as large again, and asks for a certificate."""
  laid = lay(pretrained, section)
  export(pretrained, peft.Adapted(*laid), folder, format=form)
  path = folder / certify.WEIGHTS.get(form, "model.safetensors")
  tensors = load_file(path)
  name = max(tensors, key=lambda n: ("lora_B" in n, "up.weight" in n, n.endswith("wte.weight"), n))
  tensors[name] = 1.5 * tensors[name]
  save_file(tensors, path, {"format": "pt"})
  (folder / "pytorch_adapter.bin").unlink(missing_ok=True)
  try:
    certify.certify(folder, pretrained, peft.Adapted(*laid), reload=reload)
  except certify.Rejected:
    made = json.loads((folder / "certificate.json").read_text())
    return EMPTY | {
      "difference": made["largest_logit_difference"],
      "change": made["change_from_base"],
      "verdict": "found" if not made["passed"] else "FAILED",
    }
  return EMPTY | {"verdict": "FAILED: not found"}


def jobs(pretrained: dict, scratch: Path):
  """Yields (format, family, method, function that runs it)."""
  for family, model in pretrained.items():
    for i, (form, dtype, name, section) in enumerate(rows(family)):
      folder = scratch / f"{family.replace(' ', '-')}-{i}"
      label = name if dtype == "float32" else f"{name}, as {dtype}"
      if form != "merged" and name in REFUSED.get(family, ()):
        run = partial(refused, model, section, form, folder)
      else:
        run = partial(certified, model, name, section, form, dtype, folder)
      yield form, family, label, run
  broken = [("peft", name, PEFT[name]) for name in CORRUPTED]
  others = {"adapterhub": ADAPTERHUB, "merged": MERGED}
  broken += [(form, *next(iter(sections.items()))) for form, sections in others.items()]
  for i, (form, name, section) in enumerate(broken):
    model, folder = pretrained["gpt2"], scratch / f"corrupt-{i}"
    run = partial(corrupted, model, section, form, folder)
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
  with multiprocessing.get_context("spawn").Pool(options.workers) as pool:
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
  here = stack.enter_context(certify.reloader())
  reload = {"peft": here, "merged": here}
  if not skip_adapterhub and os.environ.get(certify.VARIABLE):
    reload["adapterhub"] = stack.enter_context(certify.reloader(os.environ[certify.VARIABLE]))
  return list(jobs(models(scratch), scratch)), reload


def run_job(index: int, skip_adapterhub: bool) -> dict:
  """Runs one row, in a process of its own."""
  made, reload = workplace(skip_adapterhub)
  form, family, method, run = made[index]
  row = {"format": form, "family": family, "method": method}
  return row | (run(reload[form]) if form in reload else EMPTY)


def models(scratch: Path) -> dict:
  """Makes the base models, as folders that PyTorch and we both load."""
  found = {}
  for family, architecture in FAMILIES.items():
    head = HEADS.get(family, {})
    made = hf.load(architecture=architecture, **head)
    params = noise(made.params, DEVIATIONS.get(family, 0.1))
    folder = hf.save(made, params, scratch / family.replace(" ", "-"))
    found[family] = hf.load(str(folder), **head)
  return found


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
