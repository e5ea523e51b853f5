"""Finds documents that share a run of words with the test files of the experiments."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from sources import rows

from jaxtune.assets import INSTRUCTIONS

LENGTH = 13  # words, as in GPT-3's decontamination (Brown et al. 2020, appendix C)
TEST_FILES = (
  "e2e/test.jsonl.gz",
  "e2e/test_grouped.jsonl",
  "reviews/test.jsonl.gz",
  "superni/test.jsonl.gz",
  "dialogsum/test.jsonl",
  "sst2/test.tsv",
  "multi30k/test_2016_flickr.jsonl.gz",
  "wnut17/test.jsonl",
)


def runs(text: str) -> Iterator[str]:
  """Yields every run of LENGTH words, lower case, without punctuation."""
  words = re.findall(r"\w+", text.lower())
  for start in range(len(words) - LENGTH + 1):
    yield " ".join(words[start : start + LENGTH])


def texts(value: object) -> Iterator[str]:
  """Yields every string of a row; a list of single words is one text."""
  if isinstance(value, str):
    yield value
  elif isinstance(value, dict):
    for key, part in value.items():
      yield from [" ".join(part)] if key == "tokens" else texts(part)
  elif isinstance(value, list):
    for part in value:
      yield from texts(part)


def test_runs(data: Path) -> dict[str, set[str]]:
  """Reads the runs of every test file, the bundled ones too.

  Raises FileNotFoundError if one is not there.
  """
  files = {name: data / name for name in TEST_FILES}
  files |= {
    f"instructions/{split}": INSTRUCTIONS / f"{split}.jsonl" for split in ("validation", "test")
  }
  found = {}
  for name, path in files.items():
    if path.suffix == ".tsv":
      values = path.read_text(encoding="utf-8").splitlines()
    else:
      # The instruction of a task is no test content: only what is answered, and the answers.
      values = [{k: v for k, v in row.items() if k != "instruction"} for row in rows(path)]
    found[name] = {run for value in values for text in texts(value) for run in runs(text)}
  return found
