"""Every method on every family: what holds, cell by cell, and the README's table of it.

  python tests/matrix.py [--only TEXT] [--keep] [--workers 2]

A cell is one method over one tiny model with random weights. It passes where a gradient reaches
every trained array in every layer, two trials in one program end as each does alone, a run that is
saved and restored goes on to the same bits, cached decoding equals teacher forcing, and the export,
where there is one, gives the same logits in PyTorch. `--keep` writes the cells that were run into
experiments/matrix/results.csv, and README.md's table. AdapterHub's exports are reloaded where
JAXTUNE_ADAPTERS_PYTHON is set.
"""

from __future__ import annotations

import argparse
import atexit
import csv
import gc
import multiprocessing
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import cache, partial
from pathlib import Path

import conftest  # cheap compilation
import jax
import jax.numpy as jnp
import numpy as np
from support import tiny
from support.methods import METHODS
from support.reloaders import reloaders

from jaxtune import certify, objectives, peft, tree
from jaxtune.api import export
from jaxtune.errors import UserError
from jaxtune.evaluation import generate, texts
from jaxtune.formats.choose import choose_format
from jaxtune.peft.methods import head
from jaxtune.training import checkpoint, optim
from jaxtune.training import step as update

FAMILIES = ("gpt2", "llama", *tiny.DECODERS, *tiny.ENCODERS, "t5", "bart")
CELLS = [(method, family) for method in METHODS for family in FAMILIES]
DIAGONAL = [(method, FAMILIES[i % len(FAMILIES)]) for i, method in enumerate(METHODS)]
MARKS = ("<!-- methods: written by make matrix -->", "<!-- end of methods -->")
ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "experiments" / "matrix" / "results.csv"
COLUMNS = ("method", "family", "trained", "grouped", "generated", "export", "difference", "note")
LETTERS = {"peft": "P", "adapterhub": "A", "merged": "M", "": "✓"}
ROWS, LENGTH, NEW = 4, 9, 3


@cache
def model(family: str, quantize: str | None = None):
  """Makes a family's tiny model; an encoder's with a head of three labels, all of it fresh."""
  changes = {} if quantize is None else {"quantize": quantize}
  if family in tiny.ENCODERS:
    pretrained = tiny.make(family, head="classify", labels=3, **changes)
    fresh = [p for p in tree.flatten(pretrained.params) if p.startswith(("head/", "pooler/"))]
    return pretrained._replace(fresh=tuple(fresh))
  return tiny.make(family, **changes)


def lay(pretrained, section: dict, seed: int = 0):
  """Lays a method over a model, moved off its start: (methods, state, base)."""
  methods = peft.build(section)
  if pretrained.model.config.head is not None:
    methods += (head.method(pretrained.fresh),)
  sites = tiny.find_sites(pretrained.model)
  _, tuned, hyper, base = peft.init(jax.random.key(seed), methods, sites, pretrained.params)
  tuned = {"params": {}, "peft": {}} | tiny.perturb(tuned, seed + 1, 0.05)
  names = {"learning_rate": 0.02, "warmup": 0.0, "weight_decay": 0.0, "head_ratio": 1.0}
  numbers = {name: jnp.float32(value) for name, value in names.items()}
  optimizer = make_optimizer(numbers).init(tuned)
  return (
    methods,
    update.State(jnp.int32(0), jnp.int32(seed), tuned, hyper, numbers, optimizer),
    base,
  )


def make_optimizer(numbers):
  return optim.make(numbers, 10, name="sgd", schedule="constant", b1=0.0, clip=None)


def batch(pretrained) -> dict:
  """Draws one batch (A = 1, B, T), rows padded on the right."""
  rng, c = np.random.default_rng(0), pretrained.model.config
  draw = lambda: rng.integers(2, tiny.VOCABULARY, (ROWS, LENGTH)).astype(np.int32)
  mask = np.arange(LENGTH)[None] < rng.integers(LENGTH - 3, LENGTH + 1, ROWS)[:, None]
  made = {"tokens": np.where(mask, draw(), 0), "mask": mask}
  if c.head is None:
    made["weights"] = mask.astype(np.float32)
  else:
    made |= {"labels": np.arange(ROWS) % 3, "weights": np.ones(ROWS, np.float32)}
  if c.encoder is not None:
    made |= {"inputs": draw(), "inputs_mask": mask}
  return {name: jnp.asarray(x)[None] for name, x in made.items()}


def cell(
  method: str, family: str, reload_of: Callable, scratch: Path, generates: bool = True
) -> dict:
  """Checks one method on one family; returns a row of the results, or raises AssertionError.

  Trials of other sizes are grouped, and states saved, on the first family of each kind alone: that
  compiles more, and hangs on the method. `reload_of` is (format) -> the PyTorch that certifies an
  export of it, or None. `generates` says whether decoding is checked too.
  """
  section, change, quantize = METHODS[method]
  first_of_kind = family in ("gpt2", "bert", "t5")
  pretrained = model(family, quantize)
  try:
    methods, state, base = lay(pretrained, section)
    other = lay(pretrained, section | change if first_of_kind else section, seed=1)[1]
  except UserError as error:
    return dict(method=method, family=family, trained="", note=str(error))
  kind = "sft" if pretrained.model.config.head is None else "classify"
  program = update.Program(
    pretrained.model, methods, objectives.module(kind).loss, make_optimizer, 10
  )
  rows = batch(pretrained)
  step = jax.jit(partial(update.update, program))
  first = step(state, base, rows)[0]
  check_trained(state, first, family)
  grouped = check_grouped(program, step, [state, other], base, rows)
  if first_of_kind:
    check_resumed(step, first, base, rows, scratch / "checkpoints")
  tuned = jax.tree.map(np.asarray, first.tuned)
  made = generates and check_generated(pretrained, methods, tuned, state.hyper, base)
  exported = check_export(pretrained, methods, tuned, first.hyper, base, reload_of, scratch)
  count = tree.size(state.tuned["peft"]) + tree.size(state.tuned["params"])
  return dict(method=method, family=family, trained=count, grouped=f"{grouped:.1e}",
              generated=made) | exported  # fmt: skip


def check_trained(before: update.State, after: update.State, family: str) -> None:
  """Each trained array has moved, in every layer, but for what no logit depends on."""
  old, new = (tree.flatten(jax.device_get(state.tuned)) for state in (before, after))
  still = []
  for path, x in old.items():
    if "/k_proj/" in path and path.endswith("bias"):
      continue  # it adds the same to all scores of a softmax
    moved = np.asarray(x != new[path]).reshape(len(x) if "/layers/" in path else 1, -1).any(1)
    if family == "modernbert" and "/attn_norm/" in path:
      moved = moved[1:] if len(moved) > 1 else moved  # its first layer has no such norm
    if not moved.all():
      still.append(path)
  assert old and not still, f"no gradient reaches {still}"
  for path in old:
    assert np.isfinite(np.asarray(new[path])).all(), path


def check_grouped(program, step, states, base, rows) -> float:
  """Two steps of two trials in one program equal each trial's own; returns the difference."""
  group = tree.stack(states)
  together = jax.jit(jax.vmap(partial(update.update, program), in_axes=(0, None, None)))
  worst = 0.0
  for _ in range(2):
    group, states = together(group, base, rows)[0], [step(s, base, rows)[0] for s in states]
  grouped = jax.device_get(group.tuned)
  for i, alone in enumerate(jax.device_get([state.tuned for state in states])):
    mine = tree.crop(jax.tree.map(lambda x, i=i: x[i], grouped), alone)
    apart = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), mine, alone)
    worst = float(np.max([worst, *jax.tree.leaves(apart)]))  # NaN, where one is
  assert worst < 2e-5, f"grouped and alone differ by {worst}"
  return worst


def check_resumed(step, state, base, rows, folder: Path) -> None:
  """A state that was saved and restored goes on to the same bits."""
  with checkpoint.Checkpoints(folder, {"config": [], "base": ""}) as saved:
    saved.save(1, state)
    restored, _ = saved.restore(state)
  on, again = jax.device_get([step(s, base, rows)[0] for s in (state, restored)])
  same = jax.tree.map(lambda a, b: bool((a == b).all()), on.tuned, again.tuned)
  assert all(jax.tree.leaves(same)), "the resumed run differs"


def check_generated(pretrained, methods, tuned, hyper, base) -> bool | str:
  """Greedy decoding with a cache draws what the whole model draws token by token."""
  c = pretrained.model.config
  if c.head is not None:
    return ""
  prompts, stop = [[5, 9, 2, 7], [7, 3]], (tiny.VOCABULARY,)
  tokens, mask = map(jnp.asarray, texts.pad_left(prompts, 0, 4))
  adapted = lambda overlay: peft.Adapted(methods, *overlay, base)
  go = jax.jit(lambda overlay, *args: generate.generate(
    pretrained.model, adapted(overlay), *args, max_new_tokens=NEW, stop_tokens=stop))  # fmt: skip
  drawn = np.asarray(go((tuned, hyper), tokens, mask))
  ahead = np.asarray(c.decoder_start or ()).astype(np.int32)
  front = np.tile(ahead, (len(prompts), 1)) if len(ahead) else np.asarray(tokens)
  seen = np.ones_like(front, bool) if len(ahead) else np.asarray(mask)
  whole = {"tokens": np.concatenate([front, drawn], 1)}
  whole["mask"] = np.concatenate([seen, np.ones_like(drawn, bool)], 1)
  if c.encoder is not None:
    whole |= {"inputs": tokens, "inputs_mask": mask}
  forward = jax.jit(lambda overlay, **x: peft.apply(pretrained.model, adapted(overlay), **x))
  logits = forward((tuned, hyper), **{name: jnp.asarray(x) for name, x in whole.items()})
  said = np.asarray(logits.argmax(-1))[:, front.shape[1] - 1 : -1]
  assert (said == drawn).all(), f"decoded {drawn.tolist()}, teacher forcing says {said.tolist()}"
  return True


def check_export(pretrained, methods, tuned, hyper, base, reload_of, scratch: Path) -> dict:
  """Exports in the method's own format and compares logits in PyTorch."""
  made, why = None, ""
  for form in ("auto", "merged"):
    try:
      reload = reload_of(choose_format(peft.Adapted(methods, tuned, hyper, base), form))
      made = export.export(
        pretrained, peft.Adapted(methods, tuned, hyper, base), scratch / "export", format=form,
        certify=reload is not None, reload=reload,
      )  # fmt: skip
      break
    except certify.Rejected:
      raise
    except UserError as error:
      why = why or str(error)
  if made is None:
    return dict(export="", note=why)
  found = made.certificate and f"{made.certificate['largest_logit_difference']:.1e}"
  return dict(export=made.format, difference=found or "not reloaded", note=why)


def table(rows: list[dict]) -> str:
  """Lays the results out as README's table."""
  found = {(row["method"], row["family"]): row for row in rows}
  lines = ["| | " + " | ".join(f"`{family}`" for family in FAMILIES) + " |"]
  lines.append("| --- |" + " :-: |" * len(FAMILIES))
  for method in METHODS:
    cells = [mark(found.get((method, family))) for family in FAMILIES]
    lines.append(f"| {method} | {' | '.join(cells)} |")
  return "\n".join(lines)


def mark(row: dict | None) -> str:
  if row is None or row["trained"] == "failed":
    return "?"
  return LETTERS[row["export"] or ""] if row["trained"] else "-"


def insert(text: str, rows: list[dict]) -> str:
  """Returns a text with the table between its marks."""
  block = "\n".join([MARKS[0], table(rows), MARKS[1]])
  return re.sub(f"{MARKS[0]}.*?{MARKS[1]}", lambda _: block, text, flags=re.DOTALL)


def keep(rows: list[dict]) -> list[dict]:
  """Puts rows among those kept, in the order of the table; returns all."""
  RESULTS.parent.mkdir(parents=True, exist_ok=True)
  old = read() if RESULTS.exists() else []
  found = {(row["method"], row["family"]): row for row in [*old, *rows]}
  rows = [found[cell] for cell in CELLS if cell in found]
  with RESULTS.open("w", newline="") as file:
    writer = csv.DictWriter(file, COLUMNS)
    writer.writeheader()
    writer.writerows(rows)
  return rows


def read() -> list[dict]:
  with RESULTS.open() as file:
    return list(csv.DictReader(file))


@cache
def kept_open() -> dict:
  """Starts this process's reloaders once, for as long as it lives."""
  stack = ExitStack()
  atexit.register(stack.close)
  return reloaders(stack)


def attempt(names: tuple[str, str]) -> tuple[dict, float]:
  """Runs a cell, a failed one too, for its row and its seconds."""
  began = time.perf_counter()
  with tempfile.TemporaryDirectory() as scratch:
    try:
      row = cell(*names, kept_open().get, Path(scratch))
    except Exception as error:
      row = dict(method=names[0], family=names[1], trained="failed", note=repr(error))
  conftest.forget()
  return {name: row.get(name, "") for name in COLUMNS}, time.perf_counter() - began


def main() -> int:
  arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  arguments.add_argument("--only", default="", help="cells whose 'method family' holds this")
  arguments.add_argument("--keep", action="store_true", help="write the table")
  arguments.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
  options, rows = arguments.parse_args(), []
  cells = [names for names in CELLS if options.only in " ".join(names)]
  with multiprocessing.get_context("spawn").Pool(options.workers, gc.disable) as pool:
    for row, seconds in pool.imap(attempt, cells):
      rows.append(row)
      print(*row.values(), f"{seconds:.0f} s", sep=" | ", flush=True)
      if options.keep:
        kept = keep([row])
  if options.keep:
    readme = ROOT / "README.md"
    readme.write_text(insert(readme.read_text(), kept))
  failed = sum(row["trained"] == "failed" for row in rows)
  print(f"{len(rows)} cells, {failed} failed")
  return int(failed > 0)


if __name__ == "__main__":
  sys.exit(main())
