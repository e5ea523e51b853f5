"""What `jaxtune analyse` has measured of a sweep, as tables; analysis.json keeps it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NotRequired

from typing_extensions import TypedDict

from jaxtune import schema
from jaxtune.errors import UserError
from jaxtune.files import write_atomically
from jaxtune.runs.results import hash_of
from jaxtune.sweeps import stats
from jaxtune.sweeps.table import Table

NAME = "analysis.json"
_MOST_PAIRS = 20  # in the table of subspaces


class Analysis(TypedDict):
  """What is read of an analysis.json; `api.analyse` describes what each part holds."""

  __pydantic_config__ = schema.STRICT
  examples: int
  split: str
  trials: dict[str, dict[str, Any]]
  similarity: list[dict[str, Any]]
  sha256: NotRequired[str]


class Measured(NamedTuple):
  """A configuration with the measures of its analysed trials."""

  label: str
  trials: tuple[str, ...]
  entries: tuple[dict[str, Any], ...]


def write(folder: Path, analysis: Analysis) -> None:
  """Writes the analysis of a sweep, with its own hash."""
  text = json.dumps({**analysis, "sha256": hash_of(analysis)}, allow_nan=False)
  write_atomically(folder / NAME, text)


def read(folder: Path) -> Analysis | None:
  """Reads the analysis of a sweep; None where there is none.

  Raises:
    UserError: where it is not what was written.
  """
  path = folder / NAME
  if not path.exists():
    return None
  found = schema.read_json(path)
  schema.check(str(path), found, Analysis)
  if found.get("sha256") != hash_of(found):
    raise UserError(
      f"{path} was changed since it was written: run `jaxtune analyse {folder}` again, or delete it"
    )
  return found


def join(analyses: Mapping[str, Analysis | None]) -> Analysis | None:
  """Joins {prefix of the trials' names: analysis}; None where there is none.

  Raises:
    UserError: where they are of other numbers of examples, or of other splits.
  """
  present = {name: one for name, one in analyses.items() if one is not None}
  if not present:
    return None
  first = next(iter(present.values()))
  measured = {f"{one['examples']} examples of {one['split']}" for one in present.values()}
  if len(measured) > 1:
    raise UserError(
      f"the sweeps were analysed on {' and '.join(sorted(measured))}, expected the same: run "
      "`jaxtune analyse` again with the same --examples, or delete analysis.json of one"
    )
  joined = Analysis(examples=first["examples"], split=first["split"], trials={}, similarity=[])
  for prefix, one in present.items():
    joined["trials"] |= {f"{prefix}{name}": entry for name, entry in one["trials"].items()}
    named = lambda names, prefix=prefix: [f"{prefix}{name}" for name in names]
    for pair in one["similarity"]:
      joined["similarity"].append(pair | {"a": named(pair["a"]), "b": named(pair["b"])})
  return joined


def configurations(rows: Sequence[stats.Row], analysis: Analysis) -> list[Measured]:
  """Lists the configurations of which trials were analysed, in the order of the rows.

  A trial that was trained again since then is left out.
  """
  found, known = [], {name: one["result"] for name, one in analysis["trials"].items()}
  for row in rows:
    names = [r["trial"] for r in row.results if known.get(r["trial"], "") == r.get("sha256")]
    if names:
      entries = tuple(analysis["trials"][name] for name in names)
      found.append(Measured(row.label, tuple(names), entries))
  return found


def mean(values: Iterable[float | None], geometric: bool = False) -> float | None:
  """Returns the mean of the values that are known, or None."""
  known = [x for x in values if x is not None]
  if not known:
    return None
  if geometric:
    return math.exp(sum(math.log(x) for x in known) / len(known)) if min(known) > 0 else None
  return sum(known) / len(known)


def tables(measured: Sequence[Measured], analysis: Analysis) -> dict[str, Table]:
  """Makes {title: table} of all that has rows."""
  found = {
    "What training changed": _changes(measured),
    "Loss with changes cut to a rank": _cuts(measured),
    "Shared subspaces": _subspaces(measured, analysis),
    "Nearest tokens": _nearest(measured),
  }
  return {title: table for title, table in found.items() if table.rows}


def _matrices(measured: Measured) -> Iterator[dict[str, Any]]:
  return (x for entry in measured.entries for x in entry["weights"].values())


def _changes(measured: Sequence[Measured]) -> Table:
  """Makes the table of each configuration's means over matrices, layers and seeds."""
  header = [
    "configuration", "change of W (%)", "effective rank", "amplification", "by chance",
    "change of last states (%)", "attention to virtual tokens (%)", "if uniform (%)",
  ]  # fmt: skip
  rows = []
  for one in measured:
    amplified = [x["amplification"] for x in _matrices(one)]
    by_chance = [
      f * u / r
      for x in amplified
      for f, u, r in zip(x["factor"], x["update"], x["random"], strict=True)
      if f and r
    ]
    seen = [x for entry in one.entries for x in entry["attention"].values()]
    of_last = [states[-1] for entry in one.entries for states in entry["states"].values()]
    cells = [
      _percent(mean(y for x in _matrices(one) for y in x["relative"])),
      _number(mean(y for x in _matrices(one) for y in x["effective_rank"] if y)),
      _number(mean((y for x in amplified for y in x["factor"]), geometric=True)),
      _number(mean(by_chance, geometric=True)),
      _percent(mean(of_last)),
      _percent(mean(y for x in seen for heads in x["mass"] for y in heads)),
      _percent(mean(y for x in seen for y in x["uniform"])),
    ]
    rows.append([one.label, *cells])
  kept = [i for i in range(len(header)) if i == 0 or any(row[i] != "-" for row in rows)]
  return Table([header[i] for i in kept], [[row[i] for i in kept] for row in rows])


def cut_losses(measured: Measured) -> dict[int, float | None]:
  """Returns {rank: mean loss over seeds, with the changes of all matrices cut to the rank}."""
  curves = [dict(zip(x["rank"], x["loss"], strict=True)) for e in measured.entries
            if (x := e["truncated"])]  # fmt: skip
  ranks = sorted({rank for curve in curves for rank in curve})
  return {rank: mean(c[rank] for c in curves if rank in c) for rank in ranks}


def _cuts(measured: Sequence[Measured]) -> Table:
  losses = {one.label: cut for one in measured if (cut := cut_losses(one))}
  ranks = sorted({rank for cut in losses.values() for rank in cut})
  rows = [[label, *(_number(cut.get(rank)) for rank in ranks)] for label, cut in losses.items()]
  return Table(["configuration", *map(str, ranks)], rows)


def _subspaces(measured: Sequence[Measured], analysis: Analysis) -> Table:
  """Makes the table of the pairs whose changes are most alike in the directions of outputs."""
  label_of = {name: one.label for one in measured for name in one.trials}
  rows = []
  for pair in analysis["similarity"]:
    if not {pair["a"][0], pair["b"][0]} <= label_of.keys():
      continue
    k = largest_common(pair)
    cells = [
      _number(pair[side][what][i][i])
      for side in ("outputs", "inputs")
      for i in (0, k)
      for what in ("similarity", "random")
    ]
    labels = (label_of[pair[one][0]] for one in ("a", "b"))
    first = (*labels, str(pair["dimensions"][k]), pair["seeds"])
    rows.append([*first, *cells])
  rows.sort(key=lambda row: -float(row[6]))
  columns = [f"{side} {n}{what}" for side in ("outputs", "inputs") for n in ("1", "k")
             for what in ("", " by chance")]  # fmt: skip
  return Table(["configuration", "and", "k", "seeds", *columns], rows[:_MOST_PAIRS])


def largest_common(pair: Mapping[str, Any]) -> int:
  """Returns the index of the most dimensions that both of two changes have."""
  known = [i for i, row in enumerate(pair["outputs"]["similarity"]) if row[i] is not None]
  return known[-1]


def _nearest(measured: Sequence[Measured]) -> Table:
  """Makes the table of the tokens nearest to virtual ones, of each configuration's first trial."""
  rows = []
  for one in measured:
    entry = one.entries[0]
    if entry["prompt"]:
      rows.append([one.label, "embeddings", _tokens(entry["prompt"], None)])
    for name, attention in entry["attention"].items():
      for layer in range(len(attention.get("nearest", ()))):
        rows.append([one.label, f"keys of {name}, layer {layer}", _tokens(attention, layer)])
  return Table(["configuration", "of", "nearest tokens (cosine)"], rows)


def _tokens(found: Mapping[str, Any], layer: int | None) -> str:
  pick = lambda name: found[name] if layer is None else found[name][layer]
  pairs = zip(pick("nearest"), pick("cosine"), strict=True)
  known = ((text, x) for text, x in pairs if text is not None and x is not None)
  return ", ".join(f"{json.dumps(text, ensure_ascii=False)} {x:.2f}" for text, x in known)


def _percent(value: float | None) -> str:
  return "-" if value is None else _number(100 * value)


def _number(value: float | None) -> str:
  return "-" if value is None else f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
