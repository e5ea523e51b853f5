"""Examples for training and evaluation: rows, text, tokens, splits and batches.

`load` reads and checks everything before a run starts. `batch` and `batches` then only take rows of
arrays. The modules, in the order in which data pass through them:

  options                  the `data` section of a config
  load, task               a whole data set, and one task of it
  sources, hub             files to rows
  reading                  rows to examples, as an objective reads them: by templates, as
                           conversations, or by the columns of labelled rows (cells, labels)
  divide                   examples to train, validation and test
  encode                   examples to the arrays of a split, as an objective encodes them
  mix, batches, pack       the order in which training draws the rows of a split
  stream                   training data that are too large for memory
  shots                    few-shot prompts for evaluation
  show, views              examples as they are shown to people
  conversations, wording   conversations, and their text by a chat template
  confined, speaker        another process, which renders templates within limits
"""

from __future__ import annotations

from collections.abc import Sequence

from jaxtune.data import cells, conversations, ids, mix, templates
from jaxtune.data.batches import arrange, batch, batches, join, kinds, sample, tokens_seen
from jaxtune.data.encode import chat
from jaxtune.data.encode.choices import same_folding
from jaxtune.data.load import load
from jaxtune.data.options import DataOptions, EncodeOptions
from jaxtune.data.padding import to_widest
from jaxtune.data.prompts import encode_prompts, prompt_texts
from jaxtune.data.shots import check_shots, shots
from jaxtune.data.split import SPLITS, Split, most_targets
from jaxtune.data.task import Data
from jaxtune.data.templates import render_prompts
from jaxtune.errors import UserError

__all__ = [
  "Data", "DataOptions", "EncodeOptions", "Split", "align", "arrange", "batch", "batches", "cells",
  "chat", "check_shots", "conversations", "describe", "encode_prompts", "identity",
  "ids", "join", "kinds", "load", "mix", "most_targets", "prompt_texts", "render_prompts",
  "sample", "shots", "templates", "tokens_seen",
]  # fmt: skip


def align(datasets: Sequence[Data]) -> list[Data]:
  """Pads the splits of several data sets so that their examples have equal shapes, for one program.

  Raises:
    UserError: data sets of different labels, stop tokens or inputs.
  """
  for dataset in datasets:
    if dataset.labels != datasets[0].labels:
      raise UserError(
        f"trials of one sweep have different labels, {', '.join(datasets[0].labels)} and "
        f"{', '.join(dataset.labels)}: set data.labels to all of them"
      )
    if dataset.stop_tokens != datasets[0].stop_tokens:
      raise UserError(
        "trials of one sweep end their answers with different tokens, "
        f"{list(datasets[0].stop_tokens)} and {list(dataset.stop_tokens)}: run two"
      )
  aligned = list(datasets)
  for name in (*SPLITS, "general"):
    splits = [getattr(dataset, name) for dataset in aligned]
    if len(splits) == 1 or not all(isinstance(split, Split) for split in splits):
      continue
    splits = same_folding(splits)
    if any({*split.arrays} != {*splits[0].arrays} for split in splits):
      raise UserError(f"trials of one sweep have {name} splits of one text and of pairs: run two")
    padded = to_widest([split.arrays for split in splits])
    for at, (split, arrays) in enumerate(zip(splits, padded, strict=True)):
      aligned[at] = aligned[at]._replace(**{name: split._replace(arrays=arrays)})
  return aligned


def identity(report: dict) -> dict:
  """Returns the hashes of files and splits in a data set's report, to compare data sets.

  Returns:
    {"files": {path: hash}, "splits": {name: hash}, "tokenizer": hash, "tasks": {name: the same of
    each task of a mixture}, "general": {"text": hash, path: hash}}, with hashes of 16 digits.
  """
  short = lambda hashes: {name: str(h)[:16] for name, h in hashes.items() if h is not None}
  splits = {name: (s or {}).get("sha256") for name, s in report.get("splits", {}).items()}
  general = report.get("general") or {}
  return {
    "files": short(report.get("files", {})),
    "splits": short(splits),
    "tokenizer": (report.get("tokenizer") or "")[:16],
    "tasks": {name: identity(task) for name, task in report.get("tasks", {}).items()},
    "general": short({"text": general.get("sha256")} | general.get("files", {})),
  }


def describe(data: Data) -> str:
  """Writes the counts of every split as a table."""
  heads = ("split", "read", "kept", "tokens", "trained", "longest", "skipped")
  lines = [heads]
  for name, counts in data.report["splits"].items():
    skipped = counts["skipped"] | ({"cut": counts["truncated"]} if counts["truncated"] else {})
    skipped |= {f"with {n.upper()}": c for n, c in counts.get("special_tokens", {}).items()}
    reasons = ", ".join(f"{count} {reason}" for reason, count in skipped.items()) or "none"
    numbers = ("read", "kept", "tokens", "trained_tokens", "longest")
    lines.append((name, *(f"{counts[number]:,}" for number in numbers), reasons))
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  pads = [str.ljust] + [str.rjust] * 5 + [str.ljust]
  rows = [
    "  ".join(pad(cell, width) for pad, cell, width in zip(pads, line, widths, strict=True))
    for line in lines
  ]
  return "\n".join(row.rstrip() for row in rows)
