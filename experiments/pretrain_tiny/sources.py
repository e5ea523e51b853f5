"""Reads the openly licensed sources as plain text, without the tasks that we are judged on."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from background import documents

# Task prefix -> why it is left out. What is judged on: E2E, SST-2, product reviews, DialogSum,
# Multi30k, WNUT17, GSM8K and 15 tasks of Super-NaturalInstructions (superni below).
EXCLUDED = {
  "amazon": "review sentiment, as in the product reviews and SST-2",
  "app_reviews": "review sentiment and star ratings, as in the product reviews",
  "imdb": "review sentiment, as in SST-2",
  "rotten_tomatoes": "SST-2's sentences are Rotten Tomatoes'",
  "yelp": "star ratings, as in the product reviews",
  "glue_sst2": "SST-2 itself",
  "sst2": "SST-2 itself",
  "e2e": "E2E itself",
  "gem_e2e": "E2E itself",
  "dialogsum": "DialogSum itself",
  "dream": "DialogSum took dialogues from DREAM",
  "samsum": "a task of superni, and close to DialogSum",
  "xsum": "a task of superni",
  "commonsense_qa": "a task of superni",
  "cos_e": "explanations of CommonsenseQA, a task of superni",
  "ecqa": "explanations of CommonsenseQA, a task of superni",
  "quoref": "a task of superni",
  "sciq": "a task of superni",
  "sentiment140": "a task of superni",
  "emotion": "a task of superni",
  "personachat": "a task of superni",
  "reddit_tifu": "a task of superni",
  "multi_woz": "a task of superni",
  "glucose": "a task of superni",
  "wnut": "WNUT17 itself",
  "multi30k": "Multi30k itself",
  "common_gen": "made from captions, Flickr30k's among them, as Multi30k is",
  "gsm8k": "GSM8K itself",
}


class Document(NamedTuple):
  source: str
  text: str
  group: str  # documents of one group are held out together


def rows(path: Path) -> Iterator[dict]:
  """Reads JSON lines; a file may be compressed whatever its name says."""
  with path.open("rb") as file:
    compressed = file.read(2) == b"\x1f\x8b"
  with (gzip.open if compressed else open)(path, "rt", encoding="utf-8") as lines:
    for line in lines:
      if line.strip():
        yield json.loads(line)


def find(folder: Path, stem: str) -> Path:
  """Finds stem.jsonl or stem.jsonl.gz."""
  for name in (f"{stem}.jsonl.gz", f"{stem}.jsonl"):
    if (folder / name).exists():
      return folder / name
  raise FileNotFoundError(f"no {stem}.jsonl or {stem}.jsonl.gz in {folder}")


def excluded(task: str) -> bool:
  return task.lower().startswith(tuple(EXCLUDED))


def longest_sentence(text: str) -> str:
  """Names the passage that several tasks ask about: they share its longest sentence."""
  return max(re.split(r"[\n.?!]", text), key=len)


def kept_rows(path: Path) -> Iterator[dict]:
  return (row for row in rows(path) if not excluded(row["task"]))


def read(corpus: Path, background_characters: int) -> Iterator[Document]:
  """Yields every source's documents, judged tasks left out."""
  for stem in ("principles-economics-bundle", "introduction-anthropology"):
    for row in rows(find(corpus, stem)):
      yield Document(f"openstax/{stem}", f"{row['title']}\n\n{row['text']}", row["text"])
  for row in kept_rows(find(corpus, "t0")):
    yield Document("t0", f"{row['input']}\n{row['output']}", longest_sentence(row["input"]))
  for row in kept_rows(find(corpus, "cot")):
    text = f"{row['question']}\n{row['rationale']}\n{row['answer']}"
    yield Document("cot", text, row["question"])
  for text in documents(background_characters):
    yield Document("background", text, text)


def fraction(text: str) -> float:
  """Places a text in [0, 1) by its hash."""
  return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def held_out(documents_: list[Document], share: float) -> set[tuple[str, str]]:
  """Picks about this share of each source's groups: those that hash lowest, at least two."""
  groups: dict[str, set[str]] = {}
  for document in documents_:
    groups.setdefault(document.source, set()).add(document.group)
  return {
    (source, group)
    for source, all_groups in groups.items()
    for group in sorted(all_groups, key=fraction)[: max(2, round(share * len(all_groups)))]
  }
