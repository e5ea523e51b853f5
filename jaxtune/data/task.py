"""One task's files to tokenised splits: read, divided, checked against each other, encoded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jaxtune.data import chat, conversations, ids, labelled, sources, splits, stream, templates
from jaxtune.data.tokenize import Split, tokenize
from jaxtune.errors import UserError, nearest


class _Part(NamedTuple):
  """A split's examples, a group for each row, and how they were read."""

  groups: list[list[templates.Example]]
  form: dict  # for the report
  conversations: bool
  skipped: dict[str, int]


def read(
  tokenizer, objective: str, start: tuple[int, ...], vocabulary: int | None, o: dict
) -> tuple[dict[str, Any], dict, Sequence[str]]:
  """Reads the splits of one task; returns them, their report and the names of the labels."""
  wanted = {name: o[name] for name in ("train", "validation", "test")}
  if wanted["train"] is None:
    raise UserError("data.train is missing: expected a file, several, or a hub name")
  if isinstance(wanted["train"], (int, float)):
    raise UserError(f"data.train={wanted['train']}: expected a file or a hub name.")
  found: dict[str, Any] = {}
  if o["stream"] is not None:
    found["train"] = _open_stream(tokenizer, objective, start, vocabulary, o)
  parts, files = _read(wanted | ({"train": None} if found else {}), objective, o)
  if found:
    files = stream.stamps(wanted["train"]) | files
  file_rows = {name: len(part.groups) for name, part in parts.items()}
  _divide(parts, wanted, o["seed"])
  for name in parts:
    # A test of a mixture holds its rare tasks; what is trained on keeps the shares of the file.
    most, tasks = (o["limit"], None) if name == "train" else (o["eval_limit"], o["tasks"])
    chosen = splits.limited(_heads(parts[name]), most, o["seed"], tasks)
    parts[name] = _kept(parts[name], chosen)
  examples = {name: [one for group in part.groups for one in group] for name, part in parts.items()}
  before = {name: len(rows) for name, rows in examples.items()}
  examples, shared = splits.separate(examples, o["overlap"])
  counts: dict[str, dict] = {}
  labels = o["labels"]
  for name in parts:  # train first: its labels are the others' too
    rows = examples[name]
    encode = _encoder(tokenizer, objective, start, parts[name].conversations, labels, o)
    found[name], counts[name] = _tokenized(name, encode, rows, before[name], parts[name].skipped)
    if vocabulary is not None:
      ids.check_split(tokenizer, found[name], vocabulary)
    labels = counts[name].get("labels", labels)
  report = {
    "splits": {name: counts[name] for name in wanted if name in counts},
    "overlap": shared,
    "files": files,
    "file_rows": file_rows,
    "format": {name: part.form for name, part in parts.items()},
  }
  return found, report, labels if objective in ("classify", "tokens") else ()


def _read(wanted: dict, objective: str, o: dict) -> tuple[dict[str, _Part], dict[str, str]]:
  """Reads and renders the splits that have files of their own."""
  parts, files = {}, {}
  for name, source in wanted.items():
    if source is None or isinstance(source, (int, float)):
      continue
    table = sources.read(source, name, o["columns"])
    table = _only(table, o["only"] or {}, name)
    place = source if isinstance(source, str) else ", ".join(map(str, source))
    parts[name] = _rendered(table, place, name, objective, o)
    files |= table.hashes
  if o["columns"] and not any(sources.kind(path) in ("csv", "tsv") for path in files):
    raise UserError("data.columns names the columns of CSV or TSV files, and there are none.")
  return parts, files


def _only(table: sources.Table, wanted: dict, name: str) -> sources.Table:
  """Keeps the rows whose columns have the wanted values, compared as text."""
  for column, values in wanted.items():
    values = set(map(str, values if isinstance(values, (list, tuple)) else [values]))
    there = {str(row[column]) for row in table.rows if column in row}
    if missing := sorted(values - there):
      raise UserError(
        f"data.only: no row of {name} has {missing[0]!r} as its {column}. "
        f"{nearest(missing[0], sorted(there)[:20])}"
      )
    kept = [i for i, row in enumerate(table.rows) if str(row.get(column)) in values]
    pick = lambda items, kept=kept: [items[i] for i in kept]
    table = table._replace(rows=pick(table.rows), where=pick(table.where))
  return table


def _rendered(table: sources.Table, place: str, name: str, objective: str, o: dict) -> _Part:
  names = list(dict.fromkeys(column for row in table.rows for column in row))
  if objective not in ("sft", "choices"):
    if o["template"] is not None or o["answer"] is not None:
      raise UserError(
        f"data.template and data.answer are for text; objective {objective!r} reads the columns "
        "that data.rename names"
      )
    fields = {key: value for key, value in (o["rename"] or {}).items()}
    examples, skipped = labelled.read(objective, table.rows, table.where, o["malformed"], **fields)
    return _Part([[one] for one in examples], {"fields": fields}, False, skipped)
  column = conversations.column(names)
  if column and o["template"] is None and o["text"] is None and objective == "sft":
    examples, skipped = conversations.read(table.rows, table.where, o["malformed"])
    return _Part([[one] for one in examples], {"column": column}, True, skipped)
  form = templates.choose(
    names, where=place, template=o["template"], answer=o["answer"], text=o["text"],
    rename=o["rename"], choices=o["choices"],
  )  # fmt: skip
  if name != "train":
    form = form._replace(templates=form.templates[:1])
  examples, count = templates.render(form, table.rows, table.where), len(form.templates)
  groups = [examples[i : i + count] for i in range(0, len(examples), count)]
  return _Part(groups, form.record(), False, {})


def _divide(parts: dict[str, _Part], wanted: dict, seed: int) -> None:
  """Draws the splits that have no file of their own out of train."""
  # Test before validation: what is held out longest depends on the fewest other settings.
  for name in ("test", "validation"):
    if isinstance(wanted[name], (int, float)):
      if "train" not in parts:
        raise UserError(f"data.{name}={wanted[name]} cannot be drawn from a stream: give a file")
      train = parts["train"]
      rest, drawn = splits.draw(_heads(train), wanted[name], name, seed)
      parts["train"] = _kept(train, rest)
      held = _kept(train, drawn)
      parts[name] = held._replace(groups=[group[:1] for group in held.groups])


def _heads(part: _Part) -> list[templates.Example]:
  return [group[0] for group in part.groups]


def _kept(part: _Part, heads: list[templates.Example]) -> _Part:
  chosen = {id(one) for one in heads}
  return part._replace(groups=[group for group in part.groups if id(group[0]) in chosen])


def _encoder(
  tokenizer, objective: str, start: tuple[int, ...], is_chat: bool, labels, o: dict
) -> Callable[[list], tuple[Split, dict]]:
  """Chooses how examples become arrays."""
  limits = {"max_length": o["max_length"], "too_long": o["too_long"]}
  if start and (is_chat or objective != "sft"):
    what = "conversations" if is_chat else f"objective {objective!r}"
    raise UserError(f"{what}: not for encoder-decoders, which are trained by 'sft' on prompts")
  if is_chat:
    more = {name: o[name] for name in ("chat_template", "turns", "malformed", "no_target")}
    return lambda rows: chat.tokenize(tokenizer, rows, **limits, **more)
  if objective == "sft":
    more = {name: o[name] for name in ("no_target", "special_tokens")}
    return lambda rows: tokenize(tokenizer, rows, start=start, **limits, **more)
  encode, limits = getattr(labelled, objective), limits | {"malformed": o["malformed"]}
  if objective in ("classify", "tokens"):
    limits["labels"] = labels
  if objective == "choices":
    limits["special_tokens"] = o["special_tokens"]
  if objective == "qa":
    limits["stride"] = o["stride"]
  return lambda rows: encode(tokenizer, rows, **limits)


def _tokenized(
  name: str, encode: Callable, examples: list, chosen: int, skipped: dict
) -> tuple[Split, dict]:
  """Tokenises one split and adds what was left out of its `chosen` rows before to the counts."""
  split, counts = encode(examples)
  counts["skipped"] = skipped | counts["skipped"]
  if not counts["kept"]:
    raise UserError(
      f"The {name} split is empty: of {len(examples)} examples all were skipped "
      f"({counts['skipped']}). Raise data.max_length, or look at the answers."
    )
  if dropped := chosen - len(examples):
    counts["skipped"]["overlap"] = dropped
  return split, {"read": chosen + sum(skipped.values())} | counts


def _open_stream(
  tokenizer, objective: str, start: tuple[int, ...], vocabulary: int | None, o: dict
) -> stream.Stream:
  used = [f"data.{name}" for name in ("pack", "resample", "limit") if o[name]]
  used += ["data.buckets"] * (o["buckets"] > 1) + ["an encoder-decoder"] * bool(start)
  used += [f"objective {objective!r}"] * (objective != "sft")
  if used:
    raise UserError(
      f"data.stream is for plain training of decoders by 'sft', not with {' and '.join(used)}"
    )
  if o["max_length"] is None:
    raise UserError("data.stream needs data.max_length: the rows to come are not known")
  names = ("train", "max_length", "columns", "too_long", "no_target", "special_tokens")
  form = {name: o[name] for name in ("template", "answer", "text", "rename", "choices")}
  form |= {"vocabulary": vocabulary, "block": o["stream"]}
  return stream.load(tokenizer, **{name: o[name] for name in names}, **form)
