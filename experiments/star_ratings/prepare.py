"""Keeps the short reviews, so that every wording of the task fits every one of them.

python experiments/star_ratings/prepare.py ../shared/data/reviews runs/reviews
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from transformers import AutoTokenizer

from jaxtune.assets import TINY
from jaxtune.data import sources

LONGEST = 56  # tokens of title and text


def prepare(source: Path, target: Path) -> None:
  """Writes train.jsonl and test.jsonl, each with the reviews of at most LONGEST tokens."""
  tokenizer = AutoTokenizer.from_pretrained(str(TINY))
  length = lambda row: len(tokenizer.encode(f"{row['title']}\n{row['text']}"))
  target.mkdir(parents=True, exist_ok=True)
  for name in ("train", "test"):
    rows = sources.read(str(source / f"{name}.jsonl.gz")).rows
    kept = [row for row in rows if length(row) <= LONGEST]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept)
    (target / f"{name}.jsonl").write_text(lines)
    print(f"{name}: {len(kept)} of {len(rows)} reviews")


if __name__ == "__main__":
  prepare(*map(Path, sys.argv[1:]))
