"""The model card of an export: what it is, how it was made, and the PyTorch that loads it."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxtune import libraries, peft, tree
from jaxtune.formats import loading, references
from jaxtune.formats.facts import Facts
from jaxtune.formats.merged import Rounding
from jaxtune.models import hf

# BASE and FOLDER are names of the lines, so that whoever runs them changes them in one place.
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
FOLDER = 'FOLDER = "."  # where this card lies\n\n'
BASE = "BASE = {base}  # {what}\n"
TEXT = """\
tokenizer = AutoTokenizer.from_pretrained({tokenizer})

inputs = tokenizer({prompt}, return_tensors="pt")
"""
CALLS = {
  "lm": "answers = model.generate(**inputs, max_new_tokens=32{stops})\n"
  "print(tokenizer.decode(answers[0]))\n",
  "qa": "print(model(**inputs).start_logits, model(**inputs).end_logits)\n",
  None: "print(model(**inputs).logits)\n",
}
NEEDS = {
  "peft": ("An adapter in PEFT's format", "pip install torch transformers peft"),
  "adapterhub": (
    "An adapter in the format of AdapterHub's `adapters`",
    "pip install torch adapters==1.3.0",
  ),
  "merged": ("A whole model in transformers' format", "pip install torch transformers"),
}
LIBRARIES = {"peft": "peft", "adapterhub": "adapters", "merged": "transformers"}
TASKS = {
  "classify": "text-classification", "regression": "text-classification",
  "reward": "text-classification", "tokens": "token-classification", "qa": "question-answering",
  "mlm": "fill-mask",
}  # fmt: skip
WINDOW = (
  "It equals the trained model on texts of up to {seen} tokens: beyond, the base's sliding window "
  "hides the prefix from the last tokens in PyTorch, where in training every token saw it.\n\n"
)
ROUNDING = (
  "Weights are stored as {dtype}. Of the trained change, the cast loses {error:.2%} (relative "
  "Frobenius error), and {lost:.2%} of the changed entries.\n\n"
)
DATA = ("answer", "text", "rename", "chat_template", "turns", "max_length", "limit")


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
  """Writes README.md into a folder; see `references` for what it says of this machine.

  Args:
    rounding: what the cast of merged weights lost; None where they were not cast.
    seen: how many tokens of text see a prefix under a sliding window; None for any number.
  """
  config, result = facts.recipe.get("config") or {}, facts.recipe.get("result") or {}
  base_name = facts.base_name
  base = Path(base_name).name if references.is_local(base_name) else base_name
  base = base or "a model initialised at random"
  what, install = NEEDS[form]
  main = [m.name for m in methods if m.kind not in ("head", "regularize")]
  title = f"{' + '.join(main or [m.name for m in methods])} for {Path(base).name}"
  text = front(form, pretrained, methods, base_name, result)
  made = "trained" if result else "made"  # composed or imported, unless there is a result
  mark = result.get("base_fingerprint") or tree.fingerprint(pretrained.params)
  text += (
    f"# {title}\n\n{what}, {made} with jaxtune on the base model `{base}`, whose weights have "
  )
  text += f"the fingerprint `{mark}`.\n\n"
  if rounding:
    text += ROUNDING.format(dtype=rounding.dtype, **rounding.overall._asdict())
  if seen is not None:
    text += WINDOW.format(seen=seen)
  text += f"## Use\n\n```sh\n{install}\n```\n\n```python\n"
  text += snippet(form, pretrained, methods, facts) + "```\n\n"
  text += _prompts(result.get("data") or {})
  text += _section("Recipe", ("", ""), _recipe(methods, config, result))
  text += _section("Metrics", ("", "base", "trained"), _metrics(result))
  text += _section("Data", ("file", "SHA-256"), _files(result.get("data") or {}))
  text += _section("Versions", ("", ""), _versions(result).items())
  text += (
    "`certificate.json`, where there is one, states how far its logits in PyTorch were from those "
    "of the model that was trained.\n"
  )
  (folder / "README.md").write_text(text)


def front(
  form: str, pretrained: hf.Pretrained, methods: Sequence[peft.Method], base_name, result: dict
) -> str:
  """Returns the YAML that the hub reads: JSON values are YAML too."""
  head = pretrained.model.config.head
  entries: dict[str, Any] = {"library_name": LIBRARIES[form]}
  if base_name and not references.is_local(base_name):
    entries["base_model"] = base_name
    entries["base_model_relation"] = "finetune" if form == "merged" else "adapter"
  entries["pipeline_tag"] = "text-generation" if head is None else TASKS[head.kind]
  entries["tags"] = list(dict.fromkeys(["jaxtune", *(m.kind or m.name for m in methods)]))
  hub = [
    name.split(":")[0] for name, _ in _files(result.get("data") or {}) if references.on_hub(name)
  ]
  if hub:
    entries["datasets"] = list(dict.fromkeys(hub))
  lines = "".join(f"{key}: {json.dumps(value)}\n" for key, value in entries.items())
  return f"---\n{lines}---\n\n"


def snippet(
  form: str, pretrained: hf.Pretrained, methods: Sequence[peft.Method], facts: Facts
) -> str:
  """Returns the lines that load the export, and with a tokenizer those that call it once."""
  labels, base_name, stop_tokens = facts.labels, facts.base_name, facts.stop_tokens
  options = loading.options(pretrained)
  if form == "adapterhub" and any(m.kind == "prefix" for m in methods):
    options["attn_implementation"] = "eager"  # under others, adapters computes something else
  auto = loading.auto_class(pretrained.model.config)
  named = auto if pretrained.tokenizer is None else f"{auto}, AutoTokenizer"
  local = "where the base model lies: write its folder here"
  what = (
    local if base_name is None or references.is_local(base_name) else "on the hub, or its folder"
  )
  base = "" if form == "merged" else BASE.format(base=json.dumps(base_name or "BASE"), what=what)
  text = SNIPPETS[form].format(
    auto=auto, names=named, where=base + FOLDER, options=_arguments(options, labels)
  )
  if pretrained.tokenizer is None:
    return text
  head = pretrained.model.config.head
  kind = "lm" if head is None else "qa" if head.kind == "qa" else None
  prompt = '"Where does she live?", "She lives in Rome."' if kind == "qa" else '"A text."'
  text += TEXT.format(tokenizer="FOLDER" if form == "merged" else "BASE", prompt=prompt)
  own = stop_tokens and form != "merged"  # whose generation_config.json has them
  stops = f", eos_token_id={list(stop_tokens)}" if own else ""
  return text + CALLS[kind].format(stops=stops)


def _arguments(options: dict, labels: Sequence[str]) -> str:
  """Writes the options as arguments of a call; names of the labels say how many there are, too."""
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
  """Lists how it was trained; without a run, the methods alone."""
  for name, kind, options in _methods(methods, config.get("method")):
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
    kept = "" if best in (None, 0, train["steps"]) else f", of which step {best} is kept"
    yield "steps", f"{train['steps']}{kept}"
    yield "batch size", train["batch_size"]
  if "seed" in config:
    yield "seed", config["seed"]
  splits = (result.get("data") or {}).get("splits") or {}
  if splits:
    yield "examples", ", ".join(f"{name} {counts.get('kept')}" for name, counts in splits.items())
  options = {key: x for key, x in (config.get("data") or {}).items() if key in DATA and x}
  if options:
    yield "of the data", _listed(options)


def _methods(
  methods: Sequence[peft.Method], section: dict | None
) -> Iterator[tuple[str, str, dict]]:
  """Lists (name, kind, options) of every method: of a run, all options of its config."""
  if not section:
    yield from ((m.name, m.kind, m.options) for m in methods)
    return
  for name, part in peft.sections(section).items():
    yield name, part["name"], {key: x for key, x in part.items() if key != "name"}


def _prompts(report: dict) -> str:
  """Shows the template that made the prompts of training, as a model is to be asked by it."""
  form = (report.get("format") or {}).get("train") or {}
  texts = [t["prompt"] for t in form.get("templates") or () if t.get("prompt")]
  if not texts:
    return ""
  many = f"the first of {len(texts)} templates" if len(texts) > 1 else "this template"
  return f"## Prompts\n\nTexts were made by {many} (Jinja):\n\n````jinja\n{texts[0]}\n````\n\n"


def _listed(options: dict) -> str:
  said = {k: x for k, x in options.items() if x is not None and x not in ((), [], {})}
  return ", ".join(f"{name} {_code(value)}" for name, value in said.items())


def _code(value: Any) -> str:
  if isinstance(value, str):
    value = references.last_part(value)
  return str(value) if isinstance(value, int | float) else f"`{json.dumps(value)}`"


def _metrics(result: dict) -> Iterator[tuple[str, str, str]]:
  """Lists each metric of the trained model, with the untuned base's beside it."""
  shown = lambda x: f"{x:.4g}" if isinstance(x, int | float) else "-"
  before = result.get("base") or {}
  for name, value in (result.get("final") or {}).items():
    if isinstance(value, int | float):
      yield name, shown(before.get(name)), shown(value)


def _files(report: dict) -> list[tuple[str, str]]:
  """Lists the data's files with their hashes, of all tasks of a mixture; on the hub, its names."""
  found = dict(report.get("files") or {})
  for part in (*(report.get("tasks") or {}).values(), report.get("general") or {}):
    found |= part.get("files") or {}
  named = lambda name: name if references.on_hub(name) else Path(name).name
  files = [(named(name), f"`{value}`") for name, value in found.items()]
  tokenizer = report.get("tokenizer")
  return files + ([("(the tokenizer)", f"`{tokenizer}`")] if tokenizer else [])


def _versions(result: dict) -> dict[str, str]:
  """Returns the versions that it was trained with; without a run, those it is written with."""
  if result.get("versions"):
    return result["versions"]
  return {"python": platform.python_version()} | libraries.versions("jax", "flax", "numpy")
