"""Small folders of models with word tokenizers, and files of data, for whole runs."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from jaxtune.models import hf
from support import tiny

WORDS = [f"{letter}{i}" for letter in "abcde" for i in range(10)]
SPECIALS = ["<pad>", "</s>", "<unk>", "<s>", ":", "?"]
AROUND = {"bert": ("<s> $A </s>", "<s> $A </s> $B:1 </s>:1"), "t5": ("$A </s>", "$A </s> $B </s>")}


def tokenizer(family: str) -> PreTrainedTokenizerFast:
  """Makes a tokenizer of words, with the special tokens that a family puts around texts."""
  vocabulary = {word: i for i, word in enumerate(SPECIALS + WORDS)}
  backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
  backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  if family in AROUND:
    single, pair = AROUND[family]
    backend.post_processor = processors.TemplateProcessing(
      single=single, pair=pair, special_tokens=[("<s>", 3), ("</s>", 1)]
    )
  names = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
  names |= {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}
  return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


def base(folder: Path, family: str) -> str:
  """Writes a tiny random model, an encoder's without any task's head, and returns its path."""
  head = {"head": "mlm"} if family in tiny.ENCODERS else {}
  pretrained = tiny.make(family, **head)._replace(tokenizer=tokenizer(family))
  return str(hf.save(pretrained, pretrained.params, folder / family))


def write(folder: Path, name: str, rows: list[dict]) -> str:
  """Writes rows as JSON lines, or a TSV of them with a header, and returns the path."""
  path = folder / name
  if name.endswith(".tsv"):
    lines = ["\t".join(rows[0])] + ["\t".join(map(str, row.values())) for row in rows]
  else:
    lines = [json.dumps(row) for row in rows]
  path.write_text("".join(line + "\n" for line in lines))
  return str(path)


def config(model: str, data: dict, objective: str = "sft", steps: int = 2, **sections) -> dict:
  """Makes a config of few steps on one device."""
  plain = {
    "model": {"path": model},
    "data": data,
    "objective": {"name": objective},
    "method": {"name": "lora", "rank": 2},
    "optim": {"learning_rate": 1e-2, "warmup": 0},
    "train": {"steps": steps, "batch_size": 4, "eval_every": steps, "mesh": {"data": 1}},
    "evaluate": {"batch_size": 4, "resamples": 20},
  }
  for name, section in sections.items():
    both = isinstance(section, dict) and name != "method"
    plain[name] = plain.get(name, {}) | section if both else section
  return plain
