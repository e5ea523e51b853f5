"""The bundled instruction data is what its generator writes, and its splits share nothing."""

from __future__ import annotations

import itertools
import json
from collections import Counter

import pytest

from jaxtune.assets import INSTRUCTIONS, TINY, instructions, world


def read(split):
  lines = (INSTRUCTIONS / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
  return [json.loads(line) for line in lines]


def test_committed_files_are_what_the_generator_writes(tmp_path):
  instructions.write(tmp_path)
  for split in instructions.SIZES:
    name = f"{split}.jsonl"
    assert (tmp_path / name).read_bytes() == (INSTRUCTIONS / name).read_bytes()


@pytest.mark.parametrize("split", instructions.SIZES)
def test_counts_tasks_and_columns(split):
  rows = read(split)
  counts = Counter(row["task"] for row in rows)
  assert set(counts) == set(instructions.MAKERS)
  assert set(counts.values()) == {instructions.SIZES[split] // len(counts)}
  for row in rows:
    assert list(row) == ["instruction", "input", "output", "task"]
    answers = [row["output"]] if split == "train" else row["output"]
    assert answers and all(isinstance(a, str) and a for a in answers)
    assert len(set(answers)) == len(answers)


def test_splits_share_no_input():
  inputs = {split: {row["input"] for row in read(split)} for split in instructions.SIZES}
  for one, two in itertools.combinations(inputs.values(), 2):
    assert not one & two


def test_held_out_restaurants_are_named_in_no_training_row():
  names = {
    row["input"].split("; ")[0].removeprefix("name: ")
    for split in ("validation", "test")
    for row in read(split)
    if row["task"] == "describe"
  }
  assert len(names) > 50 and all(world.split_of(name) != "train" for name in names)
  training = "\n".join(row["input"] for row in read("train"))
  assert not [name for name in names if name in training]


def test_a_description_says_every_fact():
  for row in read("test"):
    if row["task"] == "describe":
      facts = dict(part.split(": ") for part in row["input"].split("; "))
      for text, (key, value) in itertools.product(row["output"], facts.items()):
        assert instructions.COST.get(value, value) in text, (key, text)


def test_rows_are_short():
  from transformers import AutoTokenizer

  tokenizer = AutoTokenizer.from_pretrained(TINY)
  lengths = []
  for row in itertools.chain.from_iterable(read(split) for split in instructions.SIZES):
    outputs = [row["output"]] if isinstance(row["output"], str) else row["output"]
    longest = max(outputs, key=len)
    lengths.append(len(tokenizer.encode(f"{row['instruction']}\n{row['input']}\n{longest}")))
  assert max(lengths) < 128
  assert sum(length <= 96 for length in lengths) > 0.95 * len(lengths)
