"""The model card of an export: what it is, how it was made, and the PyTorch that loads it."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxtune import libraries, peft, tree
from jaxtune.data.tokenizer import ends_texts
from jaxtune.formats import loading, references
from jaxtune.formats.facts import Facts
from jaxtune.formats.merged import Rounding
from jaxtune.models import hf

# The lines name BASE and FOLDER, so that their reader changes each in one place.
SNIPPETS = {
  "peft": """\
from peft import PeftModel
from transformers import {names}

{where}base = {auto}.from_pretrained(BASE{options})
model = PeftModel.from_pretrained(base, FOLDER)
""",
  "adapterhub": """\
import adapters
from transformers import {names}

{where}model = {auto}.from_pretrained(BASE{options})
adapters.init(model)
model.load_adapter(FOLDER, use_safetensors=True, set_active=True)
""",
  "merged": """\
from transformers import {names}

{where}model = {auto}.from_pretrained(FOLDER)
""",
}
CALLS = {
  "lm": "answers = model.generate(**inputs, max_new_tokens=32{stops})\n"
  "print(tokenizer.decode(answers[0]))\n",
  "qa": "print(model(**inputs).start_logits, model(**inputs).end_logits)\n",
  None: "print(model(**inputs).logits)\n",
}
# What an export is, the packages that it needs, and the library of them that loads it.
NEEDS = {
  "peft": ("An adapter in PEFT's format", "torch 'transformers<5.24' peft", "peft"),
  "adapterhub": (
    "An adapter in the format of AdapterHub's `adapters`", "torch adapters==1.3.0", "adapters",
  ),
  "merged": ("A whole model in transformers' format", "torch transformers", "transformers"),
}  # fmt: skip
TASKS = {
  "classify": "text-classification", "regression": "text-classification",
  "reward": "text-classification", "tokens": "token-classification", "qa": "question-answering",
  "mlm": "fill-mask",
}  # fmt: skip
WINDOW = (
  "It equals the trained model on texts of up to {seen} tokens: beyond, the base's sliding window "
  "hides the prefix from the last tokens in PyTorch, where in training every token saw it.\n\n"
)

QUANTISED = (
  "It was trained over a base whose linear layers are quantised to {form}, and a certificate "
  "compares with that base. The lines below load the base as it is stored, with which logits "
  "differ a little.\n\n"
)


def write(
  folder: Path,
  form: str,
  pretrained: hf.Pretrained,
  methods: Sequence[peft.Method],
  facts: Facts,
  *,
  rounding: Rounding | None,
  seen: int | None,
) -> None:
  """Writes README.md into a folder; `references` keeps paths of this machine out of it.

  Args:
    methods: those that the card names, without what training alone reads.
    rounding: what the cast of merged weights lost; None where they were not cast.
    seen: how many tokens of text see a prefix under a sliding window; None for any number.
  """
  config, result = facts.recipe.get("config") or {}, facts.recipe.get("result") or {}
  base = facts.base_name or "a model initialised at random"
  base = Path(base).name if references.is_local(base) else base
  what, packages, _ = NEEDS[form]
  title = f"{' + '.join(dict.fromkeys(m.name for m in methods))} for {Path(base).name}"
  text = front(form, pretrained, methods, facts.base_name, result)
  made = "trained" if result else "made"  # composed or imported, unless there is a result
  mark = result.get("base_fingerprint") or tree.fingerprint(pretrained.params)
  text += f"# {title}\n\n{what}, {made} with jaxtune on the base model `{base}`, "
  text += f"whose weights have the fingerprint `{mark}`.\n\n"
  quantised = pretrained.model.config.quantize if form != "merged" else None
  text += _differences(rounding, quantised, seen)
  text += f"## Use\n\n```sh\npip install {packages}\n```\n\n```python\n"
  text += snippet(form, pretrained, methods, facts) + "```\n\n"
  text += _prompts(result.get("data") or {})
  text += _section("Recipe", ("", ""), _recipe(methods, config, result))
  text += _section("Metrics", ("", "base", "trained"), _metrics(result))
  text += _section("Data", ("file", "SHA-256"), _files(result.get("data") or {}))
  versions = result.get("versions")  # of the training, else of this export
  if not versions:
    versions = {"python": platform.python_version()} | libraries.versions("jax", "flax", "numpy")
  text += _section("Versions", ("", ""), versions.items())
  text += "`certificate.json`, where there is one, states how far its logits in PyTorch were from "
  text += "those of the model that was trained.\n"
  (folder / "README.md").write_text(text)


def _differences(rounding: Rounding | None, quantised: str | None, seen: int | None) -> str:
  """Says where the export is not what was trained, over a base that may have been quantised."""
  text = ""
  if rounding:
    error, lost = rounding.overall
    text += f"Weights are stored as {rounding.dtype}. Of the trained change, the cast loses "
    text += f"{error:.2%} (relative Frobenius error), and {lost:.2%} of the changed entries.\n\n"
  if quantised:
    text += QUANTISED.format(form=quantised)
  return text if seen is None else text + WINDOW.format(seen=seen)


def front(
  form: str,
  pretrained: hf.Pretrained,
  methods: Sequence[peft.Method],
  base_name: str | None,
  result: dict,
) -> str:
  """Returns the YAML that the hub reads: JSON values are YAML too."""
  head = pretrained.model.config.head
  entries: dict[str, Any] = {"library_name": NEEDS[form][2]}
  if base_name and not references.is_local(base_name):
    entries["base_model"] = base_name
    entries["base_model_relation"] = "finetune" if form == "merged" else "adapter"
  entries["pipeline_tag"] = "text-generation" if head is None else TASKS[head.kind]
  entries["tags"] = list(dict.fromkeys(["jaxtune", *(m.kind or m.name for m in methods)]))
  files = dict(_files(result.get("data") or {}))
  if datasets := [name.split(":")[0] for name in files if references.on_hub(name)]:
    entries["datasets"] = list(dict.fromkeys(datasets))
  lines = "".join(f"{key}: {json.dumps(value)}\n" for key, value in entries.items())
  return f"---\n{lines}---\n\n"


def snippet(
  form: str, pretrained: hf.Pretrained, methods: Sequence[peft.Method], facts: Facts
) -> str:
  """Returns the lines that load the export, and with a tokenizer those that call it once."""
  labels, base_name, stop_tokens = facts.labels, facts.base_name, facts.stop_tokens
  options = loading.options(pretrained, form)
  if form == "adapterhub" and any(m.kind == "prefix" for m in methods):
    options["attn_implementation"] = "eager"  # under others, adapters computes something else
  auto = loading.auto_class(pretrained.model.config)
  named = auto if pretrained.tokenizer is None else f"{auto}, AutoTokenizer"
  where = 'FOLDER = "."  # where this card lies\n\n'
  if form != "merged":
    what = "on the hub, or its folder"
    if base_name is None or references.is_local(base_name):
      what = "where the base model lies: write its folder here"
    where = f"BASE = {json.dumps(base_name or 'BASE')}  # {what}\n{where}"
  text = SNIPPETS[form].format(
    auto=auto, names=named, where=where, options=_arguments(options, labels)
  )
  if pretrained.tokenizer is None:
    return text
  head = pretrained.model.config.head
  kind = "lm" if head is None else "qa" if head.kind == "qa" else None
  prompt = '"Where does she live?", "She lives in Rome."' if kind == "qa" else '"A text."'
  if head is not None and head.kind == "reward" and ends_texts(pretrained.tokenizer):
    prompt = '"A question?", "Its answer."'
  stops = ""
  if stop_tokens and form != "merged":  # a merged folder's generation_config.json has them
    stops = f", eos_token_id={list(stop_tokens)}"
  tokenizer = "FOLDER" if form == "merged" else "BASE"
  text += f"tokenizer = AutoTokenizer.from_pretrained({tokenizer})\n"
  if loading.reads_padding(pretrained):
    text += _padding(form, pretrained)
    if not ends_texts(pretrained.tokenizer):
      prompt += " + tokenizer.eos_token"
  text += f'\ninputs = tokenizer({prompt}, return_tensors="pt")\n'
  return text + CALLS[kind].format(stops=stops)


def _padding(form: str, pretrained: hf.Pretrained) -> str:
  """Returns the line by which rows of a batch are padded so that a head finds their last token."""
  token, pad = loading.padding_token(pretrained), loading.pad_token(pretrained)
  if token is None and pretrained.tokenizer.pad_token_id != pad:
    return f"# fill short rows of a batch with the id {pad}, behind the text\n"
  return f"tokenizer.pad_token = {json.dumps(token)}\n" if token and form != "merged" else ""


def _arguments(options: dict, labels: Sequence[str]) -> str:
  """Writes the options as arguments of a call; labels, where known, in place of their number."""
  if labels and "num_labels" in options:
    options = {name: x for name, x in options.items() if name != "num_labels"}
    options["id2label"] = dict(enumerate(map(str, labels)))
  shown = lambda x: json.dumps(x) if isinstance(x, str) else repr(x)
  return "".join(f", {name}={shown(value)}" for name, value in options.items())


def _section(title: str, columns: tuple[str, ...], rows) -> str:
  """Returns a section with a table; nothing without rows."""
  cells = lambda row: "| " + " | ".join(str(x).replace("|", r"\|") for x in row) + " |\n"
  rows = "".join(map(cells, rows))
  return f"## {title}\n\n{cells(columns)}{cells(['---'] * len(columns))}{rows}\n" if rows else ""


def _recipe(
  methods: Sequence[peft.Method], config: dict, result: dict
) -> Iterator[tuple[str, str]]:
  """Lists how the model was trained; without a run, only the methods with their options."""
  sections = [(method.name, {"name": method.kind, **method.options}) for method in methods]
  if config.get("method"):
    sections = peft.sections(config["method"]).items()
  for name, section in sections:
    options = {key: x for key, x in section.items() if key != "name"}
    kind = section["name"]
    yield "method" if name == kind else f"method {name}", f"{kind}: {_listed(options)}"
  if result.get("trained_parameters") is not None:
    of = f"{result['trained_parameters']:,} of {result['base_parameters']:,}"
    yield "trained parameters", of
  if not result:
    return
  train, optim = config.get("train") or {}, dict(config.get("optim") or {})
  if config.get("objective"):
    objective = dict(config["objective"])
    yield "objective", f"{objective.pop('name')}: {_listed(objective)}".removesuffix(": ")
  for key in ("name", "learning_rate", "schedule"):
    if key in optim:
      yield key.replace("_", " ").replace("name", "optimizer"), optim.pop(key)
  if optim:
    yield "of the optimizer", _listed(optim)
  if train:
    best = result.get("best_step")
    last = train.get("keep") == "last" or best in (None, 0, train["steps"])
    kept = "" if last else f", of which step {best} is kept"
    yield "steps", f"{train['steps']}{kept}"
    yield "batch size", train["batch_size"]
  if "seed" in config:
    yield "seed", config["seed"]
  splits = (result.get("data") or {}).get("splits") or {}
  if splits:
    yield "examples", ", ".join(f"{name} {counts.get('kept')}" for name, counts in splits.items())
  data = config.get("data") or {}
  shown = ("answer", "text", "rename", "chat_template", "turns", "max_length", "limit")
  if options := {key: x for key, x in data.items() if key in shown and x}:
    yield "of the data", _listed(options)


def _prompts(report: dict) -> str:
  """Returns a section with the template of the training's prompts; nothing without one."""
  form = (report.get("format") or {}).get("train") or {}
  texts = [t["prompt"] for t in form.get("templates") or () if t.get("prompt")]
  if not texts:
    return ""
  many = f"the first of {len(texts)} templates" if len(texts) > 1 else "this template"
  return f"## Prompts\n\nTexts were made by {many} (Jinja):\n\n````jinja\n{texts[0]}\n````\n\n"


def _listed(options: dict) -> str:
  """Writes the options that are set, such as: rank 8, targets `["q_proj"]`."""
  parts = []
  for name, value in options.items():
    if value is None or value in ((), [], {}):
      continue
    if isinstance(value, str):
      value = references.last_part(value)
    shown = str(value) if isinstance(value, int | float) else f"`{json.dumps(value)}`"
    parts.append(f"{name} {shown}")
  return ", ".join(parts)


def _metrics(result: dict) -> Iterator[tuple[str, str, str]]:
  """Lists each metric of the trained model, with the untuned base's beside it."""
  shown = lambda x: f"{x:.4g}" if isinstance(x, int | float) else "-"
  before = result.get("base") or {}
  for name, value in (result.get("final") or {}).items():
    if isinstance(value, int | float):
      yield name, shown(before.get(name)), shown(value)


def _files(report: dict) -> list[tuple[str, str]]:
  """Lists (name, hash) of the data's files, those of a mixture's tasks included.

  A file is named without its folder; a data set on the hub by its full name there.
  """
  hashes = dict(report.get("files") or {})
  for part in (*(report.get("tasks") or {}).values(), report.get("general") or {}):
    hashes |= part.get("files") or {}
  shown = lambda name: name if references.on_hub(name) else Path(name).name
  files = [(shown(name), f"`{value}`") for name, value in hashes.items()]
  tokenizer = report.get("tokenizer")
  return files + ([("(the tokenizer)", f"`{tokenizer}`")] if tokenizer else [])
