"""Examples for training and evaluation: rows, text, tokens, splits and batches.

`load` reads and checks everything before a run starts; `batch` and `batches` then only index.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

from jaxtune.data import sources, splits, templates
from jaxtune.data.batches import batch, batches
from jaxtune.data.templates import render_prompts
from jaxtune.data.tokenize import NO_TARGET, TOO_LONG, Split, check_choice, encode_prompts, tokenize
from jaxtune.errors import UserError

__all__ = [
  "Data", "Split", "batch", "batches", "describe", "encode_prompts", "load", "render_prompts",
]  # fmt: skip


class Data(NamedTuple):
  """The splits of one data set, and the record of how they came about."""

  train: Split
  validation: Split | None
  test: Split | None
  report: dict  # splits (counts and hashes by split), overlap, files, format, tokenizer


def load(
  tokenizer,
  *,
  train: str | Sequence[str],
  validation: str | Sequence[str] | float | int | None = None,
  test: str | Sequence[str] | float | int | None = None,
  columns: Sequence[str] | None = None,
  template: str | None = None,
  answer: str | Sequence[str] | None = None,
  text: str | None = None,
  max_length: int | None = None,
  too_long: str = "error",
  no_target: str = "error",
  overlap: str = "error",
  limit: int | None = None,
  eval_limit: int | None = None,
  seed: int = 0,
) -> Data:
  """Reads, splits, checks and tokenises a data set.

  Args:
    tokenizer: a transformers tokenizer with an eos token.
    train: a file, several, or a hub name; see `sources.read`.
    validation: the same; or a part of train, as a fraction below 1 or a count of rows.
    test: as `validation`.
    columns: names for the columns of CSV and TSV files without a header line.
    template, answer, text: how rows become text; see `templates.choose`.
    max_length, too_long, no_target: see `tokenize.tokenize`.
    overlap: what to do with examples that two splits share: "error", "drop" (from the training
      side) or "allow".
    limit: at most so many rows of train, chosen by hash.
    eval_limit: at most so many rows of validation and of test.
    seed: draws the splits and the limited rows, not the order of batches.

  Raises:
    UserError: whatever is wrong with the options or the data, with file and line.
  """
  # Before anything is read: a misspelt policy should not cost minutes.
  check_choice("too_long", too_long, TOO_LONG)
  check_choice("no_target", no_target, NO_TARGET)
  check_choice("overlap", overlap, splits.OVERLAP)
  wanted = {"train": train, "validation": validation, "test": test}
  options = {"template": template, "answer": answer, "text": text}
  parts, forms, files = _read(wanted, columns, options)
  file_rows = {name: len(examples) for name, examples in parts.items()}
  _divide(parts, forms, wanted, seed)
  for name in parts:
    most = limit if name == "train" else eval_limit
    parts[name] = splits.limited(parts[name], forms[name].used, most, seed)
  chosen = {name: len(examples) for name, examples in parts.items()}
  parts, shared = splits.separate(parts, overlap)
  limits = {"max_length": max_length, "too_long": too_long, "no_target": no_target}
  done = {name: _tokenized(name, tokenizer, parts[name], chosen[name], limits) for name in parts}
  report = {
    "splits": {name: done[name][1] for name in wanted if name in done},
    "overlap": shared,
    "files": files,
    "file_rows": file_rows,
    "format": {name: form._asdict() | {"sha256": form.sha256} for name, form in forms.items()},
    "tokenizer": _tokenizer_hash(tokenizer),
  }
  return Data(*(done[name][0] if name in done else None for name in wanted), report)


def describe(data: Data) -> str:
  """Lays the counts of every split out as a table."""
  heads = ("split", "read", "kept", "tokens", "trained", "longest", "skipped")
  lines = [heads]
  for name, counts in data.report["splits"].items():
    skipped = counts["skipped"] | ({"cut": counts["truncated"]} if counts["truncated"] else {})
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


def _read(
  wanted: dict, columns: Sequence[str] | None, options: dict
) -> tuple[dict[str, list[templates.Example]], dict[str, templates.Format], dict[str, str]]:
  """Reads and renders the splits that have files of their own."""
  parts, forms, files = {}, {}, {}
  for name, source in wanted.items():
    if source is None or isinstance(source, (int, float)):
      continue
    table = sources.read(source, name, columns)
    names = list(dict.fromkeys(column for row in table.rows for column in row))
    place = source if isinstance(source, str) else ", ".join(map(str, source))
    forms[name] = templates.choose(names, where=place, **options)
    parts[name] = templates.render(forms[name], table.rows, table.where)
    files |= table.hashes
  if "train" not in parts:
    raise UserError(f"data.train={wanted['train']!r}: expected a file or a hub name.")
  if columns and not any(sources.kind(path) in ("csv", "tsv") for path in files):
    raise UserError("data.columns names the columns of CSV or TSV files, and there are none.")
  return parts, forms, files


def _divide(parts: dict, forms: dict, wanted: dict, seed: int) -> None:
  """Draws the splits that have no file of their own out of train."""
  # Test before validation: what is held out longest depends on the fewest other settings.
  for name in ("test", "validation"):
    if isinstance(wanted[name], (int, float)):
      forms[name] = forms["train"]
      parts["train"], parts[name] = splits.draw(
        parts["train"], forms[name].used, wanted[name], name, seed
      )


def _tokenized(
  name: str, tokenizer, examples: list, chosen: int, limits: dict
) -> tuple[Split, dict]:
  """Tokenises one split and adds what overlap had dropped of its `chosen` rows to the counts."""
  split, counts = tokenize(tokenizer, examples, **limits)
  if not counts["kept"]:
    raise UserError(
      f"The {name} split is empty: of {len(examples)} examples all were skipped "
      f"({counts['skipped']}). Raise data.max_length, or look at the answers."
    )
  if dropped := chosen - len(examples):
    counts["skipped"]["overlap"] = dropped
  return split, {"read": chosen} | counts


def _tokenizer_hash(tokenizer) -> str | None:
  """Hashes a fast tokenizer whole; None for the slow ones, which have no single description."""
  backend = getattr(tokenizer, "backend_tokenizer", None)
  return backend and hashlib.sha256(backend.to_str().encode()).hexdigest()
