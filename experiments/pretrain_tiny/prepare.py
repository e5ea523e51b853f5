"""Prepares the tiny model's pretraining: corpus, tokenizer, statistics.

python experiments/pretrain_tiny/prepare.py --corpus ../shared/data/corpus --out runs/pretrain_tiny
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

from overlap import runs, test_runs
from sources import EXCLUDED, Document, excluded, find, held_out, read, rows
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

END, PAD = "<|endoftext|>", "<|pad|>"
VOCABULARY = 4096


def without_duplicates(documents: list[Document]) -> list[Document]:
  """Keeps the first of equal texts."""
  return list({document.text.strip(): document for document in reversed(documents)}.values())[::-1]


def without_test_text(documents: list[Document], data: Path) -> tuple[list[Document], Counter]:
  """Drops documents that share a run of words with a test file, and counts them by file."""
  forbidden = test_runs(data)
  everything = set().union(*forbidden.values())
  kept, dropped = [], Counter()
  for document in documents:
    shared = everything.intersection(runs(document.text))
    if not shared:
      kept.append(document)
    for name, found in forbidden.items():
      if shared & found:
        dropped[f"{document.source} <- {name}"] += 1
  return kept, dropped


def train_tokenizer(texts: list[str]) -> Tokenizer:
  """Trains a byte-level BPE that reads every digit alone."""
  tokenizer = Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Digits(individual_digits=True),
      pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
  )
  tokenizer.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=VOCABULARY,
    special_tokens=[END, PAD],
    show_progress=False,
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
  )
  tokenizer.train_from_iterator(texts, trainer)
  return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
  """Writes a Hugging Face tokenizer folder that transformers 4 and 5 read alike."""
  folder.mkdir(parents=True, exist_ok=True)
  tokenizer.save(str(folder / "tokenizer.json"))
  settings = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "eos_token": END,
    "pad_token": PAD,
    "padding_side": "right",
    "model_max_length": 512,
    "clean_up_tokenization_spaces": False,
  }
  (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def write(documents: list[Document], path: Path) -> None:
  with path.open("w", encoding="utf-8") as file:
    for document in documents:
      file.write(json.dumps({"text": document.text}, ensure_ascii=False) + "\n")


def table(splits: dict[str, list[Document]], tokenizer: Tokenizer) -> list[dict]:
  """Counts documents, characters and tokens (stop token not counted) of every source."""
  lines = []
  for split, documents in splits.items():
    lengths = [len(e) for e in tokenizer.encode_batch_fast([d.text for d in documents])]
    sources = [d.source for d in documents]
    for source in [*dict.fromkeys(sources), "all"]:
      of = [i for i, s in enumerate(sources) if source in (s, "all")]
      characters, tokens = sum(len(documents[i].text) for i in of), sum(lengths[i] for i in of)
      lines.append(
        {
          "split": split,
          "source": source,
          "documents": len(of),
          "characters": characters,
          "tokens": tokens,
          "characters_per_token": round(characters / tokens, 3),
          "longest": max(lengths[i] for i in of),
        }
      )
  return lines


def show(lines: list[dict]) -> None:
  print(" | ".join(lines[0]))
  for line in lines:
    print(" | ".join(f"{v:,}" if isinstance(v, int) else str(v) for v in line.values()))


def prepare(
  corpus: Path, data: Path, out: Path, folder: Path, *, characters: int, share: float
) -> None:
  """Builds everything once and prints what it did."""
  left_out = Counter(
    row["task"]
    for stem in ("t0", "cot")
    for row in rows(find(corpus, stem))
    if excluded(row["task"])
  )
  families = Counter()
  for task, count in left_out.items():
    families[next(prefix for prefix in EXCLUDED if task.startswith(prefix))] += count
  print("rows left out by task:", dict(families))
  everything = list(read(corpus, characters))
  documents = without_duplicates(everything)
  equal = len(everything) - len(documents)
  print("equal texts dropped:", equal)
  documents, dropped = without_test_text(documents, data)
  print("dropped for 13-word runs of test files:", dict(dropped) or "none")
  apart = held_out(documents, share)
  splits = {
    "train": [d for d in documents if (d.source, d.group) not in apart],
    "validation": [d for d in documents if (d.source, d.group) in apart],
  }
  out.mkdir(parents=True, exist_ok=True)
  for split, kept in splits.items():
    write(kept, out / f"{split}.jsonl")
  tokenizer = train_tokenizer([d.text for d in splits["train"]])
  save_tokenizer(tokenizer, folder)
  lines = table(splits, tokenizer)
  statistics = {
    "left_out": dict(families),
    "equal_texts": equal,
    "test_text": dict(dropped),
    "table": lines,
  }
  (out / "statistics.json").write_text(json.dumps(statistics, indent=2) + "\n")
  show(lines)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--corpus", type=Path, required=True, help="the open text's folder")
  parser.add_argument("--data", type=Path, help="the test files' folder; default: beside it")
  parser.add_argument("--out", type=Path, required=True, help="where train and validation.jsonl go")
  parser.add_argument("--tokenizer", type=Path, default=Path("jaxtune/assets/tiny"))
  parser.add_argument("--background-characters", type=int, default=4_500_000)
  parser.add_argument(
    "--validation", type=float, default=0.01, help="share of every source that is held out"
  )
  args = parser.parse_args()
  prepare(
    args.corpus,
    args.data or args.corpus.parent,
    args.out,
    args.tokenizer,
    characters=args.background_characters,
    share=args.validation,
  )


if __name__ == "__main__":
  main()
