"""Compares every family's logits with PyTorch's: plain, with LoRA and with a prefix.

  make parity
  python tests/parity.py [--only TEXT] [--keep] [--workers 2]

Models are small, with random weights whose every number is a bf16 number, so that both libraries
start from the same weights in either type. LoRA and prefix are exported in PEFT's format and loaded
by peft; a prefix that PEFT cannot express is laid into PyTorch's attention by
`support/prefix_by_hand.py`. `--keep` writes experiments/parity. Exits with 1 if a cell exceeds its
bound. Costs about three minutes on 2 cores.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import importlib.metadata
import multiprocessing
import os
import sys
import tempfile
import zlib
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import conftest  # noqa: F401  cheap compilation
import jax
import jax.numpy as jnp
import numpy as np
import peft as torch_peft
import torch
import transformers
from support import prefix_by_hand, tiny

from jaxtune import peft, tree
from jaxtune.api.export import export
from jaxtune.models import hf

OUT = tiny.ROOT / "experiments" / "parity"
FP32_BOUND = 1e-4  # of the largest difference
BF16_BOUND = 1.5  # of our root mean square error, in units of PyTorch's own
ROWS, TOKENS, PREFIX = 4, 24, 4

# Frequencies that depend on a length: here one below the text's, so that all rows are beyond it.
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=8)
LONGROPE = dict(
  rope_type="longrope", short_factor=[1.0, 1.3, 1.6, 2.5], long_factor=[1.2, 2.0, 3.0, 9.0]
)
DYNAMIC = dict(rope_type="dynamic", factor=3.0)
# Windows are shorter than the text, but for the prefix: see the note on windows in README.md.
WIDE = dict(sliding_window=TOKENS + PREFIX)
WHOLE = dict(partial_rotary_factor=1.0)
T5_RELU = dict(feed_forward_proj="relu", tie_word_embeddings=True)


class Family(NamedTuple):
  """One line of the table.

  Attributes:
    name: of the line.
    model: the tiny model's name.
    changes: entries of its config.json that are replaced.
    prefix: entries that are replaced where a prefix is laid over it.
    by_hand: whether PEFT cannot express its prefix.
    even: whether only rows of one length are compared: transformers lets the longest decide on all.
  """

  name: str
  model: str
  changes: dict = {}
  prefix: dict = {}
  by_hand: bool = False
  even: bool = False

  @property
  def kind(self) -> str:
    if self.model in tiny.ENCODERS:
      return "encoder"
    return "encoder-decoder" if self.model in ("t5", "bart") else "decoder"


FAMILIES = [
  Family("gpt2", "gpt2"),
  Family("llama", "llama"),
  Family("llama, RoPE of Llama 3", "llama3"),
  Family("llama, YaRN", "llama", dict(rope_parameters=YARN)),
  Family("llama, as SmolLM", "llama", dict(
    hidden_size=48, num_attention_heads=3, num_key_value_heads=1, tie_word_embeddings=True,
  )),
  Family("mistral", "mistral", prefix=WIDE),
  Family("qwen2", "qwen2", prefix=WIDE),
  Family("qwen3", "qwen3"),
  Family("gemma", "gemma"),
  Family("gemma2", "gemma2", prefix=WIDE),
  Family("gemma3_text", "gemma3_text", prefix=WIDE),
  Family("phi3", "phi3", WHOLE, WIDE),
  Family("phi3, partly rotated", "phi3", prefix=WIDE),
  Family("phi3, longrope", "phi3", WHOLE | dict(
    sliding_window=None, original_max_position_embeddings=8, rope_parameters=LONGROPE,
  )),
  Family("olmo2", "olmo2"),
  Family("gpt_neox", "gpt_neox"),
  Family("gpt_neox, sequential", "gpt_neox", dict(
    use_parallel_residual=False, tie_word_embeddings=True,
  )),
  Family("gpt_neox, dynamic RoPE", "gpt_neox", dict(
    max_position_embeddings=8, rope_parameters=DYNAMIC,
  ), even=True),
  Family("bert", "bert"),
  Family("roberta", "roberta"),
  Family("distilbert", "distilbert", by_hand=True),
  Family("modernbert", "modernbert", by_hand=True),
  Family("t5, v1.0", "t5", T5_RELU, by_hand=True),
  Family("t5, v1.1", "t5", dict(initializer_factor=0.4), by_hand=True),
  Family("bart", "bart", by_hand=True),
]  # fmt: skip
METHODS = {
  "plain": None,
  "LoRA": dict(name="lora", rank=3, targets=(".*_proj",)),
  "prefix": dict(name="prefix", length=PREFIX),
}


class Kind(NamedTuple):
  """What the families of a kind have in common.

  Attributes:
    auto: transformers' class that makes one.
    head: the head that is compared.
    methods: those that are laid over it.
    sides: where rows are padded; "left" wherever PyTorch takes position_ids.
  """

  auto: str
  head: str
  methods: tuple[str, ...]
  sides: tuple[str, ...]


KINDS = {
  "decoder": Kind("AutoModelForCausalLM", "lm", tuple(METHODS), ("none", "left", "right")),
  "encoder": Kind("AutoModelForTokenClassification", "tokens", tuple(METHODS), ("none", "right")),
  "encoder-decoder": Kind("AutoModelForSeq2SeqLM", "lm", tuple(METHODS), ("none", "right")),
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
COLUMNS = (
  "family", "kind", "method", "theirs", "dtype", "padding", "largest", "rms", "torch_rms",
  "measured", "bound", "verdict",
)  # fmt: skip


def inputs(kind: str, side: str) -> tuple[dict, dict, np.ndarray]:
  """Makes a batch: what our model takes, what PyTorch's takes, and which outputs are compared."""
  random = np.random.default_rng(0)
  tokens = random.integers(3, tiny.VOCABULARY, (ROWS, TOKENS)).astype(np.int32)
  mask = np.ones((ROWS, TOKENS), bool)
  for i in range(ROWS if side != "none" else 0):
    mask[i, : 3 * i] = False
  mask = mask[:, ::-1].copy() if side == "right" else mask
  theirs = dict(input_ids=torch.tensor(tokens).long(), attention_mask=torch.tensor(mask).long())
  if kind == "encoder-decoder":
    outputs = random.integers(3, tiny.VOCABULARY, (ROWS, 9)).astype(np.int32)
    theirs["decoder_input_ids"] = torch.tensor(outputs).long()
    seen = np.ones_like(outputs, bool)
    return dict(inputs=tokens, inputs_mask=mask, tokens=outputs, mask=seen), theirs, seen
  if side == "left":
    positions = np.maximum(np.cumsum(mask, 1) - 1, 0)
    theirs["position_ids"] = torch.tensor(positions)
  return dict(tokens=tokens, mask=mask), theirs, mask


def sides(family: Family, method: str) -> tuple[str, ...]:
  """Lists the paddings compared; peft ignores position_ids with a prefix, so "left" is no test."""
  if family.even:
    return ("none",)
  return tuple(s for s in KINDS[family.kind].sides if (s, method) != ("left", "prefix"))


def bf16(x):
  """Rounds to numbers that bf16 holds."""
  return x.astype(jnp.bfloat16).astype(jnp.float32)


def make_twin(family: Family, config, folder: Path) -> None:
  """Saves a random PyTorch model, no parameter of which keeps its plain start."""
  torch.manual_seed(0)
  auto = getattr(transformers, KINDS[family.kind].auto)
  model = auto.from_config(config, attn_implementation="eager")
  with torch.no_grad():
    for parameter in model.parameters():
      moved = parameter + 0.1 * torch.randn_like(parameter)
      parameter.copy_(moved.to(torch.bfloat16).float())
  model.save_pretrained(folder)


def lay(pretrained, section: dict | None):
  """Lays a method with random trained arrays over a model."""
  methods = peft.build(section) if section else ()
  sites = peft.find_sites(pretrained.model)
  adapted = peft.init(jax.random.key(0), methods, sites, pretrained.params)
  rng = lambda path: np.random.default_rng(zlib.crc32(path.encode()))
  moved = {path: bf16(x + 0.1 * rng(path).standard_normal(x.shape).astype(np.float32))
           for path, x in tree.flatten(adapted.tuned).items()}  # fmt: skip
  return adapted._replace(tuned={"params": {}, "peft": {}} | tree.unflatten(moved))


def our_logits(pretrained, laid, ours: list[dict]) -> list[np.ndarray]:
  run = jax.jit(lambda **batch: peft.apply(pretrained.model, laid, **batch))
  return [np.asarray(run(**batch)) for batch in ours]


def their_logits(family: Family, base: Path, dtype: str, theirs: list[dict], adapter=None, laid=()):
  """Runs PyTorch's model: with an exported `adapter`, or with a prefix that is `laid` by hand."""
  auto = getattr(transformers, KINDS[family.kind].auto)
  model = auto.from_pretrained(base, dtype=DTYPES[dtype], attn_implementation="eager")
  if adapter:
    model = torch_peft.PeftModel.from_pretrained(model, adapter, autocast_adapter_dtype=False)
  model = model.to(DTYPES[dtype]).eval()
  with torch.no_grad(), prefix_by_hand.prefix(model, *laid) if laid else nullcontext():
    return [model(**batch).logits.float().numpy() for batch in theirs]


def cells(family: Family, method: str, scratch: Path):
  """Yields the table's rows of one family and method."""
  changes = family.changes | (family.prefix if method == "prefix" else {})
  labels = {"num_labels": 5} if family.kind == "encoder" else {}
  folder, lays = scratch / "base", {}
  make_twin(family, tiny.torch_config(family.model, **changes, **labels), folder)
  batches = [inputs(family.kind, side) for side in sides(family, method)]
  ours, theirs, kept = zip(*batches, strict=True)
  made = {}
  for dtype in DTYPES:
    pretrained = hf.load(str(folder), dtype=dtype, head=KINDS[family.kind].head)
    laid = lay(pretrained, METHODS[method])
    if dtype == "float32" and METHODS[method]:
      lays = by_hand(family, pretrained, laid, method) or dict(
        adapter=export(pretrained, peft.Adapted(*laid), scratch / "adapter", format="peft").folder
      )
    made[dtype] = our_logits(pretrained, laid, ours)
  found = {dtype: their_logits(family, folder, dtype, theirs, **lays) for dtype in DTYPES}
  for dtype in DTYPES:
    for i, side in enumerate(sides(family, method)):
      exact = found["float32"][i][kept[i]]
      numbers = compare(dtype, made[dtype][i][kept[i]], found[dtype][i][kept[i]], exact)
      row = dict(family=family.name, kind=family.kind, method=method, dtype=dtype, padding=side)
      yield row | dict(theirs=route(lays)) | numbers


def route(lays: dict) -> str:
  return "by hand" if "laid" in lays else "peft" if lays else "transformers"


def by_hand(family: Family, pretrained, laid, method: str) -> dict:
  """Returns what `prefix_by_hand.prefix` lays where PEFT cannot; {} elsewhere."""
  if method != "prefix" or not family.by_hand:
    return {}
  methods, tuned, _, _ = laid
  table = hf.family_module(pretrained.family).names(pretrained.model.config)
  queries = {row.ours: row.theirs for row in table if row.ours.endswith("/q_proj/kernel")}
  pairs = {}
  for site, pair in peft.arrays_of(methods[0], tuned["peft"]).items():
    name = queries[site.removesuffix("attend") + "q_proj/kernel"].rsplit(".", 2)[0]
    for i, (key, value) in enumerate(zip(pair["key"], pair["value"], strict=True)):
      pairs[name.format(i)] = np.asarray(key), np.asarray(value)
  return dict(laid=(pairs, PREFIX))


def compare(dtype: str, ours, theirs, exact) -> dict:
  """Judges one cell against PyTorch in fp32: by 1e-4, or by what bf16 costs PyTorch itself."""
  rms = lambda x: float(np.sqrt(np.mean(np.square(x, dtype=np.float64))))
  largest, error, own = float(np.abs(ours - exact).max()), rms(ours - exact), rms(theirs - exact)
  measured, bound = (largest, FP32_BOUND) if dtype == "float32" else (error / own, BF16_BOUND)
  return dict(
    largest=f"{largest:.1e}", rms=f"{error:.1e}", torch_rms=f"{own:.1e}",
    measured=f"{measured:.1e}" if dtype == "float32" else f"{measured:.2f}", bound=f"{bound:g}",
    verdict="passed" if measured <= bound else "FAILED",
  )  # fmt: skip


def line(row: dict) -> str:
  widths = (23, 16, 8, 13, 9, 8, 9, 9, 10, 9, 7, 7)
  return " ".join(f"{row[c]!s:<{w}}" for c, w in zip(COLUMNS, widths, strict=True))


README = """\
# Parity: every family beside PyTorch

Written by `make parity` on {date}, with {versions}.

Each family is a small model with random weights, made by transformers (eager attention), every
parameter moved off its plain start. Its logits in jaxtune are compared with those in PyTorch:
plain, with a LoRA on every linear layer, and with a prefix in every attention; unpadded, and padded
on the right, or on the left where PyTorch takes `position_ids` (peft ignores them with a prefix).
Encoders are compared by the scores of a head for tokens.

LoRA and prefixes are exported in PEFT's format and loaded by peft, but for prefixes that it cannot
express, marked "by hand" (`theirs` in `results.csv`): DistilBERT's and ModernBERT's, and those of
encoder-decoders, which here have one in the encoder, in the decoder and over the encoder's states,
in every layer. `tests/support/prefix_by_hand.py` puts their keys and values in front of those that
transformers itself computed, in its own attention, and moves the positions of real tokens. These
rows show that ours reach the right heads, layers and masks. What a prefix is (seen by every token,
not rotated, without T5's relative bias, real tokens behind it) is our own definition, which that
file states once more in PyTorch.

Below, each family's worst cell (a dash: not compared). `results.csv` has all {count}; {failed} of
them exceed their bound.

- fp32: the largest difference of a logit, of which {fp32:g} is allowed.
- bf16: the root mean square error against PyTorch in fp32, in units of the error that PyTorch
  itself makes in bf16 on the same inputs. Two correct orders of rounding give about 1; {bf16:g} is
  allowed. The weights are bf16 numbers already, so that the arithmetic alone is judged.

{table}

**Prefixes and windows.** In PyTorch a prefix occupies the first slots of the cache, so that where
prefix and text together exceed `sliding_window`, far tokens of local layers no longer see it; here
every token does. Rows of decoders with a prefix therefore use a window that holds both, the others
one that is shorter than the text. The card of an exported prefix names the length up to which both
agree.

**RoPE by length.** YaRN, longrope and dynamic scaling are compared beyond the length of the
pretraining, 8 tokens here. Where the frequencies depend on the length, each row here goes by its
own, and in transformers the longest row decides on all of a batch: with dynamic scaling, only rows
of one length are compared.
"""


def readme(table: list[dict]) -> str:
  names = ["jax", "flax", "torch", "transformers", "peft"]
  columns = [(method, dtype) for dtype in DTYPES for method in METHODS]
  lines = [
    "| family | kind | " + " | ".join(f"{m}, {d}" for m, d in columns) + " |",
    "| --- | --- |" + " ---: |" * len(columns),
  ]
  for family in FAMILIES:
    of = lambda method, dtype, name=family.name: [
      row for row in table if (row["family"], row["method"], row["dtype"]) == (name, method, dtype)
    ]
    worst = [max((row["measured"] for row in of(*c)), key=float, default="-") for c in columns]
    worst = [
      f"{x} (by hand)" if any(row["theirs"] == "by hand" for row in of(*c)) else x
      for x, c in zip(worst, columns, strict=True)
    ]
    lines.append(f"| {family.name} | {family.kind} | " + " | ".join(worst) + " |")
  return README.format(
    date=datetime.date.today(), count=len(table), table="\n".join(lines), fp32=FP32_BOUND,
    versions=", ".join(f"{name} {importlib.metadata.version(name)}" for name in names),
    failed=sum(row["verdict"] != "passed" for row in table), bf16=BF16_BOUND,
  )  # fmt: skip


def compared(pair: tuple[Family, str]) -> list[dict]:
  """Lists the table's rows of one family and method, in a process of its own."""
  torch.set_num_threads(1)
  with tempfile.TemporaryDirectory() as scratch:
    rows = list(cells(*pair, Path(scratch)))
  jax.clear_caches()
  return rows


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--only", default="", help="families and methods whose names hold this text")
  parser.add_argument("--keep", action="store_true", help="write results.csv and README.md")
  parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
  options = parser.parse_args()
  pairs = [(family, method) for family in FAMILIES for method in KINDS[family.kind].methods]
  pairs = [(f, method) for f, method in pairs if options.only in f"{f.name} {method}"]
  table = []
  print(line({name: name for name in COLUMNS}))
  with multiprocessing.get_context("spawn").Pool(options.workers) as pool:
    for rows in pool.imap(compared, pairs):
      table += rows
      print(*map(line, rows), sep="\n", flush=True)
  failed = sum(row["verdict"] != "passed" for row in table)
  print(f"{len(table)} cells, {failed} failed")
  if options.keep:
    with (OUT / "results.csv").open("w", newline="") as file:
      writer = csv.DictWriter(file, COLUMNS)
      writer.writeheader()
      writer.writerows(table)
    (OUT / "README.md").write_text(readme(table))
  return int(failed > 0 or not table)


if __name__ == "__main__":
  sys.exit(main())
