"""The whole path, from files to a report."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from jaxtune import data, objectives
from jaxtune.errors import UserError

ROWS = [{"prompt": f"q{n}\n", "completion": f"answer {n}"} for n in range(100)]
SHARED = Path(__file__).parents[3] / "shared" / "data"


def load(tokenizer, objective="sft", **options):
  return data.load(tokenizer, objectives.module(objective), data.DataOptions(**options))


def test_shuffling_the_file_moves_no_example_between_splits(tokenizer, write):
  one = load(tokenizer, train=write("a.jsonl", ROWS), validation=0.2, test=10)
  shuffled = write("b.jsonl", random.Random(0).sample(ROWS, len(ROWS)))
  two = load(tokenizer, train=shuffled, validation=0.2, test=10)
  for left, right in zip(one[:3], two[:3], strict=True):
    assert {row["prompt"] for row in left.rows} == {row["prompt"] for row in right.rows}
  assert len(one.test.rows) == 10
  assert sum(len(split.rows) for split in one[:3]) == 100


WORDINGS = [
  {"template": "{{ a }}\n", "answer": "c"},
  {"template": "{{ b }} {{ a }}\n", "answer": "c"},
  {"template": ["{{ b }}\n", "{{ a }}: "], "answer": "{{ c }}."},
  {"text": "a"},
  {"objective": "classify", "rename": {"text": "a", "label": "d"}},
  {"objective": "classify", "rename": {"text": "{{ b }}", "label": "c"}, "malformed": "skip"},
  {"objective": "regression", "rename": {"text": "b", "label": "d"}},
]


@pytest.mark.parametrize("options", WORDINGS)
def test_the_wording_moves_no_row_between_splits(tokenizer, write, options):
  """As an axis of a sweep, templates and objectives are compared on the same rows."""
  rows = [{"a": f"q{n}", "b": f"r{n}", "c": f"s{n % 3}", "d": n % 2} for n in range(90)]
  given = {"train": write("a.jsonl", rows), "validation": 0.2, "test": 10, "limit": 30}
  first = load(tokenizer, **given, eval_limit=8, **WORDINGS[0])
  found = load(tokenizer, **given, eval_limit=8, **options)
  for left, right in zip(first[:3], found[:3], strict=True):
    assert {row["b"] for row in left.rows} == {row["b"] for row in right.rows}


def test_general_text_is_limited_by_its_windows(tokenizer, write):
  book = write("book.jsonl", [{"text": "abcdefgh" * 400}])  # one document
  given = dict(train=write("a.jsonl", ROWS), validation=0.2, general=book, max_length=32)
  whole, some = (load(tokenizer, **given, eval_limit=n) for n in (None, 7))
  assert whole.general.examples == 100 and some.general.examples == 7
  assert some.report["general"]["kept"] == 7
  assert some.report["general"]["tokens"] == some.general.arrays["mask"].sum() == 7 * 32


def test_files_of_their_own_and_columns_of_their_own(tokenizer, write):
  made = load(
    tokenizer,
    train=write("t.csv", "sentence,label\ngood film,1\nbad film,0\n"),
    validation=write("v.tsv", "label\tsentence\n1\tfine\n"),
    test=write("e.jsonl", [{"sentence": "meh", "refs": ["0", "no"]}]),
    template="{{ sentence }}\n",
    answer=("label", "refs"),
  )
  assert [split.references for split in made[:3]] == [[["1"], ["0"]], [["1"]], [["0", "no"]]]
  assert made.train.where[1].endswith("t.csv:3")


def test_report_and_table(tokenizer, write):
  rows = [*ROWS, {"prompt": "x" * 100, "completion": "y"}, {"prompt": "z", "completion": ""}]
  made = load(
    tokenizer,
    train=write("a.jsonl", rows),
    test=write("b.jsonl", ROWS[:3]),
    max_length=40,
    too_long="skip",
    no_target="skip",
    overlap="drop",
  )
  counts = made.report["splits"]["train"]
  assert (counts["read"], counts["kept"]) == (102, 97)
  assert counts["skipped"] == {"too_long": 1, "no_target": 1, "overlap": 3}
  assert counts["trained_tokens"] == made.train.arrays["weights"].sum()
  assert made.report["overlap"]["train/test"]["dropped"] == 3
  assert len(made.report["files"]) == 2
  assert made.report["format"]["train"]["templates"][0]["prompt"] == "{{ prompt }}"
  assert len(made.report["tokenizer"]) == 64
  table = data.describe(made).splitlines()
  assert table[0].split() == ["split", "read", "kept", "tokens", "trained", "longest", "skipped"]
  assert "1 too_long, 1 no_target, 3 overlap" in table[1] and table[2].endswith("none")


def test_the_same_files_give_the_same_hashes(tokenizer, write):
  path = write("a.jsonl", ROWS)
  first, second = (load(tokenizer, train=path, validation=0.2).report for _ in range(2))
  assert first == second


def test_limits(tokenizer, write):
  made = load(tokenizer, train=write("a.jsonl", ROWS), validation=0.5, limit=20, eval_limit=7)
  assert (len(made.train.rows), len(made.validation.rows), made.test) == (20, 7, None)


BAD = [
  ({"no_target": "warn"}, "no_target is 'warn' .*'error' or 'skip'"),
  ({"columns": ("a", "b")}, "data.columns names the columns of CSV or TSV"),
  ({"validation": 0.00001}, "validation split is empty"),
  ({"max_length": 8, "too_long": "skip"}, "train split is empty.*too_long.*: raise data.max"),
  ({"max_length": 8}, r"a.jsonl:1: 12 tokens, more than max_length=8"),
  ({"train": 0.5}, "data.train is 0.5 .*, expected text or list"),
  ({"train": ()}, "names no file"),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_refused(tokenizer, write, options, message):
  with pytest.raises(UserError, match=message):
    load(tokenizer, **{"train": write("a.jsonl", ROWS)} | options)


def test_overlap_names_both_lines(tokenizer, write):
  one, two = write("a.jsonl", ROWS), write("b.jsonl", [{"prompt": "Q7", "completion": "ANSWER  7"}])
  with pytest.raises(UserError) as error:
    load(tokenizer, train=one, validation=two)
  assert f"{one}:8 = {two}:1" in str(error.value)


@pytest.mark.full
@pytest.mark.skipif(not (SHARED / "e2e").is_dir(), reason="needs ../shared/data")
def test_e2e(tokenizer):
  made = load(
    tokenizer,
    train=str(SHARED / "e2e/train.jsonl.gz"),
    validation=str(SHARED / "e2e/valid_grouped.jsonl"),
    template="{{ mr }}\n",
    answer=("ref", "refs"),
    limit=500,
    eval_limit=50,
  )
  assert len(made.train.rows) == 500
  assert max(map(len, made.validation.references)) > 1
  assert np.isin(made.train.arrays["weights"], (0, 1)).all()
  assert made.report["file_rows"] == {"train": 42061, "validation": 547}


@pytest.mark.skipif(not (SHARED / "sst2").is_dir(), reason="needs ../shared/data")
def test_sst2_shares_sentences_between_its_splits(tokenizer):
  options = {
    "train": str(SHARED / "sst2/train.tsv"), "test": str(SHARED / "sst2/test.tsv"),
    "columns": ("sentence", "label"), "template": "{{ sentence }}\n", "answer": "label",
  }  # fmt: skip
  with pytest.raises(UserError, match=r"train.tsv:941 = .*test.tsv:153"):
    load(tokenizer, **options)
  made = load(tokenizer, overlap="drop", limit=2000, **options)
  assert set(map(tuple, made.train.references)) == {("0",), ("1",)}
