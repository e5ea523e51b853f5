"""Every reader of a file: a valid folder for it, and a function that reads the folder.

experiments/reliability/fuzz.py damages the folders, and test_corpus replays what it found. A reader
may succeed or raise UserError; all else is a defect.
"""

from __future__ import annotations

import atexit
import base64
import functools
import gzip
import json
import shutil
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from jaxtune import data, formats, objectives, schema
from jaxtune.api.export import export
from jaxtune.data import sources, templates
from jaxtune.data.templates import library
from jaxtune.formats.facts import Facts
from jaxtune.models import hf
from jaxtune.objectives import sft
from jaxtune.runs import finished, results
from jaxtune.runs import folder as runs
from jaxtune.runs.finished import Run
from jaxtune.training import checkpoint
from support import folders, made_trials, tiny

PROMPTS = [{"prompt": f"a{i} b{i} :", "completion": f"c{i}"} for i in range(6)]
CHAT = (
  "{% for m in messages %}{{ ': ' if m['role'] == 'user' else '? ' }}{{ m['content'] }}"
  "{% if m['role'] != 'user' %} </s>{% endif %} {% endfor %}"
)


class Reader(NamedTuple):
  """A kind of file: `write` makes a valid folder, `read` reads one."""

  write: Callable[[Path], None]
  read: Callable[[Path], object]


@functools.cache
def bases() -> Path:
  """Writes the bases that adapters and runs lie over, once for a process; removed at its end."""
  folder = tempfile.mkdtemp(prefix="jaxtune-bases-")
  atexit.register(shutil.rmtree, folder)
  for family in ("llama", "bert"):
    folders.base(Path(folder), family)
  return Path(folder)


@functools.cache
def pretrained(family: str) -> hf.Pretrained:
  head = {"head": "classify", "labels": 2} if family == "bert" else {}
  return hf.load(str(bases() / family), **head)


def tiny_model(family: str) -> Callable[[Path], None]:
  """Writes a model of a few thousand numbers, so that what is kept of it is small."""
  sizes = {
    "llama": {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1},
    "gpt2": {"n_embd": 8, "n_layer": 1},
    "bert": {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1},
    "t5": {"d_model": 8, "d_kv": 2, "d_ff": 8, "num_layers": 1, "num_decoder_layers": 1},
  }

  def write(folder: Path) -> None:
    fields = (tiny.ARCHITECTURES | tiny.ENCODERS)[family] | sizes[family]
    head = {"head": "mlm"} if family == "bert" else {}
    made = tiny.random(fields, **head)._replace(tokenizer=folders.tokenizer(family))
    hf.save(made, made.params, folder / "model")
    folders.write(folder, "train.jsonl", PROMPTS)

  return write


def read_model(folder: Path) -> object:
  made = hf.load(str(folder / "model"))
  if made.tokenizer is not None:
    options = data.DataOptions(train=str(folder / "train.jsonl"), overlap="allow")
    data.load(made.tokenizer, sft, options)
  return made


def write_tokenizer(folder: Path) -> None:
  tokenizer = folders.tokenizer("llama")
  tokenizer.chat_template = CHAT
  tokenizer.save_pretrained(folder / "model")
  fields = tiny.ARCHITECTURES["llama"]
  (folder / "model" / "config.json").write_text(json.dumps(fields))
  turns = [{"role": r, "content": c} for r, c in (("user", "a1"), ("assistant", "b1"))]
  folders.write(folder, "train.jsonl", [{"messages": turns}] * 2)


def read_tokenizer(folder: Path) -> object:
  tokenizer, model, _ = hf.language(str(folder / "model"))
  if tokenizer is None:
    return None
  options = data.DataOptions(train=str(folder / "train.jsonl"), overlap="allow")
  return data.load(tokenizer, sft, options, model.decoder_start, model.vocabulary)


def rows(name: str, write: Callable[[Path], None], objective: str = "sft") -> Reader:
  """A file of data, read whole and as a stream, and made into examples."""

  def read(folder: Path) -> object:
    path = str(folder / name)
    list(sources.stream(path))
    options = data.DataOptions(train=path, overlap="allow")
    return data.load(tokenizer(), objectives.module(objective), options)

  return Reader(lambda folder: write(folder / name), read)


@functools.cache
def tokenizer():
  made = folders.tokenizer("llama")
  made.chat_template = CHAT
  return made


def write_lines(path: Path, found: list[dict]) -> None:
  text = "".join(json.dumps(row) + "\n" for row in found)
  path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


def write_csv(path: Path) -> None:
  lines = ["prompt,completion", "a1 :,b1", '"a2, ""b"" :",b2', '"a3\nb3 :",c3']
  path.write_text("\n".join(lines) + "\n")


def write_parquet(path: Path) -> None:
  import pyarrow
  import pyarrow.parquet

  pyarrow.parquet.write_table(pyarrow.Table.from_pylist(PROMPTS), path)


LABELLED = [{"text": f"a{i} b{i}", "label": ["no", "yes"][i % 2]} for i in range(6)]
TAGGED = [{"tokens": ["a1", "b2"], "ner_tags": ["O", "B-X"]} for _ in range(4)]
TURNS = [
  {"messages": [{"role": "user", "content": f"a{i}"}, {"role": "assistant", "content": "b1"}]}
  for i in range(4)
]
QUESTIONS = [
  {"question": "a1 ?", "context": "b1 c1 d1", "answers": {"text": ["c1"], "answer_start": [3]}}
]

OURS = """task: mine
answer: "{{ answer_choices[label] }}"
answer_choices: ["no", "yes"]
metrics: [accuracy]
templates:
  - name: vague
    clarity: vague
    prompt: "{{ text }} ?"
  - name: context
    clarity: context
    prompt: "{% for w in text.split() %}{{ w | upper }} {% endfor %}{{ extra | default('none') }}"
"""
THEIRS = """dataset: mine
templates:
  0a-1b: !Template
    answer_choices: no ||| yes
    id: 0a-1b
    jinja: "{% if text %}{{ text }} ? ||| {{ answer_choices[label] }}{% endif %}"
    metadata: !TemplateMetadata
      choices_in_prompt: false
      metrics: [Accuracy]
    name: first
    reference: ''
"""


def read_templates(folder: Path) -> object:
  row = {"text": "a1 b1", "label": 1}
  made = []
  for template in library.read(folder / "mine.yaml"):
    form = templates.choose(list(row), template=template, where="mine")
    made.append(templates.render(form, [row], ["mine:1"]))
  return made


def write_adapter(family: str, section: dict) -> Callable[[Path], None]:
  def write(folder: Path) -> None:
    base = pretrained(family)
    adapted = tiny.lay(base, section, noise=0.1)
    export(base, adapted, folder / "adapter", facts=Facts(labels=("no", "yes")))

  return write


def read_adapter(family: str) -> Callable[[Path], object]:
  def read(folder: Path) -> object:
    return formats.adapt(formats.read(folder / "adapter", pretrained(family)), pretrained(family))

  return read


def write_run(folder: Path) -> None:
  base = pretrained("llama")
  config = folders.config(str(base.folder), {"train": "train.jsonl"}, method={"name": "lora"})
  full = made_trials.config.complete(config)
  run = Run(folder, full, base, tiny.lay(base, full["method"], noise=0.1))
  # Runs name their base by an absolute path; it is filled in when they are read.
  run.config["model"]["path"] = "BASE"
  finished.keep(run, folder / "run")
  # Without the weights beside it, whose hash would refuse damaged ones before they are read.
  results.write(folder, {"final": {"test_loss": 1.5}})
  (folder / "result.json").rename(folder / "run" / "result.json")
  lines = [{"step": i, "train_loss": 2.0 / i} for i in range(1, 5)]
  folders.write(folder / "run", "metrics.jsonl", lines)


def read_run(folder: Path) -> object:
  results.read(folder / "run")
  runs.Logs([folder / "run"], [3])
  run = finished.load_run(folder / "run", pretrained("llama"))
  return made_trials.config.complete(run.config)


def write_sweep(folder: Path) -> None:
  write_run(folder)
  for i in range(2):
    shutil.copytree(folder / "run", folder / "trials" / f"rank={i}")
  shutil.rmtree(folder / "run")


RECORD = {"config": {"seed": 0}, "base": "0" * 64}


def state() -> dict:
  arrays = {"a": np.arange(6.0, dtype=np.float32).reshape(2, 3), "b": np.zeros(3, np.float32)}
  return {"tuned": jax.tree.map(jax.numpy.asarray, arrays), "step": jax.numpy.asarray(2)}


def write_checkpoint(folder: Path) -> None:
  with checkpoint.Checkpoints(folder / "checkpoints", RECORD) as made:
    made.save(2, state())


def read_checkpoint(folder: Path) -> object:
  with checkpoint.Checkpoints(folder / "checkpoints", RECORD) as made:
    return made.restore(state())


READERS = {
  "jsonl": rows("rows.jsonl", lambda path: write_lines(path, PROMPTS)),
  "json": rows("rows.json", lambda path: path.write_text(json.dumps(PROMPTS))),
  "gz": rows("rows.jsonl.gz", lambda path: write_lines(path, PROMPTS)),
  "csv": rows("rows.csv", write_csv),
  "tsv": rows("rows.tsv", lambda path: path.write_text("prompt\tcompletion\na1 :\tb1\na2 :\tb2\n")),
  "parquet": rows("rows.parquet", write_parquet),
  "conversations": rows("rows.jsonl", lambda path: write_lines(path, TURNS)),
  "labels": rows("rows.jsonl", lambda path: write_lines(path, LABELLED), objective="classify"),
  "tags": rows("rows.jsonl", lambda path: write_lines(path, TAGGED), objective="tokens"),
  "questions": rows("rows.jsonl", lambda path: write_lines(path, QUESTIONS), objective="qa"),
  "templates": Reader(lambda folder: (folder / "mine.yaml").write_text(OURS), read_templates),
  "promptsource": Reader(lambda folder: (folder / "mine.yaml").write_text(THEIRS), read_templates),
  "tokenizer": Reader(write_tokenizer, read_tokenizer),
  "llama": Reader(tiny_model("llama"), read_model),
  "gpt2": Reader(tiny_model("gpt2"), read_model),
  "t5": Reader(tiny_model("t5"), read_model),
  "peft": Reader(
    write_adapter("llama", {"name": "lora", "rank": 2}), read_adapter("llama")
  ),
  "adapterhub": Reader(
    write_adapter("bert", {"name": "adapter", "width": 2}), read_adapter("bert")
  ),
  "run": Reader(write_run, read_run),
  "sweep": Reader(write_sweep, lambda folder: finished.load_run(folder, pretrained("llama"))),
  "checkpoint": Reader(write_checkpoint, read_checkpoint),
  "schema": Reader(
    lambda folder: (folder / "any.json").write_text('{"a": [1, 2.5, "x", null, true]}'),
    lambda folder: schema.read_json(folder / "any.json"),
  ),
}  # fmt: skip


def unpacked(seed: dict[str, bytes], files: dict) -> dict[str, bytes | None]:
  """Reads a case of the corpus: the valid folder's files with those that it changes."""
  changed = {
    name: None if packed is None else packed["text"].encode() if "text" in packed
    else zlib.decompress(base64.b64decode(packed["zlib"]))
    for name, packed in files.items()
  }  # fmt: skip
  return seed | changed


def lay(folder: Path, files: dict[str, bytes | None]) -> None:
  """Writes files below a folder; None leaves one out."""
  for name, content in sorted(files.items(), key=lambda item: item[1] is not None):
    if content is not None:
      path = folder / name
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_bytes(content)
