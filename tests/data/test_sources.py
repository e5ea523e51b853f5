"""What a file says, and where it is broken."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import huggingface_hub
import pyarrow
import pyarrow.parquet
import pytest

from jaxtune.data import sources
from jaxtune.errors import UserError

ROWS = [
  {"a": "NA", "b": "2020-01-01"},
  {"a": 'a "quoted" wörd', "b": "0"},
  {"a": "x,y", "b": ""},
]


def test_every_format_gives_the_same_rows(write, tmp_path):
  parquet = str(tmp_path / "rows.parquet")
  pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), parquet)
  csv = 'a,b\nNA,2020-01-01\n"a ""quoted"" wörd",0\n"x,y",\n'
  tsv = "a\tb\n" + "".join(f"{r['a']}\t{r['b']}\n" for r in ROWS)
  paths = [
    write("rows.jsonl", ROWS), write("rows.jsonl.gz", ROWS), write("rows.json", json.dumps(ROWS)),
    write("lines.json", ROWS), write("rows.csv", csv), write("rows.csv.gz", csv),
    write("bom.csv", "\ufeff" + csv), write("rows.tsv", tsv.replace("\n", "\r\n")), parquet,
  ]  # fmt: skip
  for path in paths:
    assert sources.read(path).rows == ROWS, path
  bare = write("bare.tsv", tsv.split("\n", 1)[1])
  assert sources.read(bare, columns=("a", "b")).rows == ROWS


def test_where_is_the_line_one_sees_in_an_editor(write, tmp_path):
  jsonl = write("a.jsonl", '{"x": 1}\n\n{"x": 2}\n')
  csv = write("a.csv", 'x,y\n"two\nlines",1\nb,2\n')
  parquet = str(tmp_path / "a.parquet")
  pyarrow.parquet.write_table(pyarrow.table({"x": [1, 2]}), parquet)
  assert sources.read(jsonl).where == [f"{jsonl}:1", f"{jsonl}:3"]
  assert sources.read(csv).where == [f"{csv}:2", f"{csv}:4"]
  assert sources.read(parquet).where == [f"{parquet}:row 1", f"{parquet}:row 2"]


def test_values_keep_their_types_row_by_row(write):
  rows = [{"refs": ["a", "b"]}, {"refs": "c", "date": "2020-01-01"}, {"refs": None}]
  assert sources.read(write("mixed.jsonl", rows)).rows == rows


def test_several_files_follow_each_other(write):
  one, two = write("one.jsonl", ROWS[:1]), write("two.jsonl", ROWS[1:])
  table = sources.read((one, two))
  assert table.rows == ROWS
  assert set(table.hashes) == {one, two}
  assert table.where[1] == f"{two}:1"


BROKEN = [
  ("a.jsonl", '{"x": 1}\n{"x": 2\n', ":2: malformed JSON"),
  ("a.jsonl.gz", '{"x": 1}\n\n[1]\n', ":3: expected an object"),
  ("a.json", '[{"x": 1},\n {"x": }]', "malformed JSON at line 2, column 8"),
  ("a.jsonl", '{"x": 1}\n' + "[" * 100_000, ":2: JSON nested too deeply"),
  ("a.json", "[" * 100_000, "a.json: JSON nested too deeply"),
  ("a.jsonl", '{"x": ' + "9" * 5000 + "}", ":1: JSON that cannot be read"),
  ("a.json", '[{"x": ' + "9" * 5000 + "}]", "a.json: JSON that cannot be read"),
  ("a.json", '[{"x": "\\ud83d"}]', "a.json: half a surrogate"),
  ("a.json", '[{"x": 1}, 3]', ":row 2: expected an object"),
  ("a.jsonl", b'{"x": "ok"}\n{"x": "\xff"}\n', ":2: not UTF-8"),
  ("a.jsonl", '{"x": 1}\n{"x": "\\ud83d"}\n', ":2: half a surrogate"),
  ("a.csv", "x,y\n1,2\n1,2,3\n", ":3: 3 fields, expected 2"),
  ("a.csv", 'x,y\n1,"2"z\n', ":2: malformed row"),
  ("a.csv", 'x,y\n1,2\n3,"4\n', ":3: malformed row"),
  ("a.csv", "x,x \n1,2\n", ":1: the header"),
  ("a.csv", ",x\n0,2\n", ":1: the first column has no name in the header ['', 'x']: write"),
  ("a.json", '\n\n[{"x": 1},\n {"x": }]', "malformed JSON at line 4, column 8"),
  ("a.tsv", "x\ty\n1\n", ":2: 1 fields, expected 2"),
  ("a.parquet", b"PAR1 no", "not a readable Parquet file"),
  ("a.jsonl", "", "holds no rows"),
  ("a.csv", "x,y\n", "holds no rows"),
  ("a.json", "[]", "holds no rows"),
  ("a.txt", "words", "unknown file type"),
]


@pytest.mark.parametrize(("name", "content", "message"), BROKEN)
def test_broken_files_are_named_with_the_line(write, name, content, message):
  path = write(name, content)
  with pytest.raises(UserError) as error:
    sources.read(path)
  assert str(error.value).startswith(path)
  assert message in str(error.value)
  assert "\n" not in str(error.value)


def test_cut_off_gzip(write, tmp_path):
  path = write("a.jsonl.gz", [{"x": str(n)} for n in range(1000)])
  cut = tmp_path / "cut.jsonl.gz"
  cut.write_bytes(Path(path).read_bytes()[:-40])
  with pytest.raises(UserError, match="cut-off gzip data after line"):
    sources.read(str(cut))
  plain = tmp_path / "plain.jsonl.gz"
  plain.write_text('{"x": 1}')
  with pytest.raises(UserError, match="gzip"):
    sources.read(str(plain))


def test_missing_files_name_the_nearest(write, tmp_path, monkeypatch):
  write("train.jsonl", ROWS)
  with pytest.raises(UserError, match="did you mean 'train.jsonl'"):
    sources.read(str(tmp_path / "trian.jsonl"))
  with pytest.raises(UserError, match="folder .*nowhere does not exist"):
    sources.read(str(tmp_path / "nowhere" / "train.jsonl"))
  with pytest.raises(UserError, match=r"is a folder: name a file in it \(train.jsonl\)"):
    sources.read(str(tmp_path))
  monkeypatch.chdir(tmp_path)
  with pytest.raises(UserError, match="owner/name"):
    sources.read("squad")
  with pytest.raises(UserError, match="folder data does not exist"):
    sources.read("data/train.jsonl")


def test_links_that_lead_nowhere(tmp_path):
  loop, lost = tmp_path / "loop.jsonl", tmp_path / "lost.jsonl"
  loop.symlink_to(loop)
  lost.symlink_to("gone.jsonl")
  for source, says in (
    (str(loop), "loop.jsonl' cannot be read: Too many levels of symbolic links"),
    (str(lost), "lost.jsonl is a link to gone.jsonl, which does not exist"),
    ("a\0.jsonl", "'a.x00.jsonl' cannot be read: .*null"),
    ("a" * 300 + ".jsonl", "cannot be read: File name too long"),
    ("~nobody-at-all/a.jsonl", "cannot be read: .*home"),
    ("/dev/null", "is a pipe or a device"),
  ):
    with pytest.raises(UserError, match=says) as error:
      sources.read(source)
    assert "did you mean" not in str(error.value)


def test_header_and_columns_contradict(write):
  path = write("a.tsv", "x\ty\n1\t2\n")
  with pytest.raises(UserError, match="has a header line"):
    sources.read(path, columns=("x", "y"))


def test_pictures_are_not_opened(tmp_path, monkeypatch):
  """A Parquet file may declare that a column's paths are pictures, of this machine or another."""
  rows = [{"text": "a", "image": {"bytes": None, "path": str(tmp_path / "secret.png")}}]
  kinds = datasets.Features({"text": datasets.Value("string"), "image": datasets.Image()})
  made = datasets.Dataset.from_list(rows, features=kinds)
  path = str(tmp_path / "a.parquet")
  pyarrow.parquet.write_table(made.data.table, path)
  assert sources.read(path).rows == rows
  monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *args, **kwargs: None)
  monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: {"train": made})
  assert sources.read("owner/name").rows == rows


def test_objects_of_arrow_are_those_that_were_written(tmp_path, monkeypatch):
  """Json is parsed, and turns and tools have no nulls but those that Json holds."""
  call = lambda **given: [{"role": "assistant", "tool_calls": [{"arguments": given}]}]
  rows = [
    {"messages": call(city="Paris"), "completion": "yes", "meta": {"a": None, "b": 1}},
    {"messages": call(n=3), "completion": {"x": None}, "meta": {"a": "x", "b": None}},
    {"messages": [{"role": "user", "content": "a"}], "completion": None, "meta": None},
  ]
  kinds = datasets.Dataset.from_list([row | {"completion": ""} for row in rows]).features
  kinds["completion"] = datasets.Json()
  made = datasets.Dataset.from_list(rows, features=kinds)
  path = str(tmp_path / "a.parquet")
  made.to_parquet(path)
  assert sources.read(path).rows == rows
  monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *args, **kwargs: None)
  monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: {"train": made})
  assert sources.read("owner/name").rows == rows


def test_long_fields_are_read_from_two_files_at_once(write):
  first, second = write("a.csv", "x\n1\n"), write("b.csv", f"x\n1\n{'y' * 200_000}\n")
  streams = sources.stream(first), sources.stream(second)
  assert [next(one)[1] for one in streams] == [{"x": "1"}] * 2
  assert [len(list(one)) for one in streams] == [0, 1]


def test_a_hub_name_gives_the_split_of_that_name(monkeypatch):
  parts = {name: datasets.Dataset.from_list([{"text": name}]) for name in ("train", "test")}
  monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *args, **kwargs: None)
  monkeypatch.setattr(datasets, "load_dataset", lambda name, configuration: parts)
  table = sources.read("owner/name:small", "test")
  assert table.rows == [{"text": "test"}] and table.where == ["owner/name:small[test]:row 1"]
  with pytest.raises(UserError, match="no split 'validation'.*test, train"):
    sources.read("owner/name", "validation")


def test_a_hub_name_without_network_fails_at_once(monkeypatch):
  def unreachable(*args, **kwargs):
    raise ConnectionError("no route to host")

  monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", unreachable)
  with pytest.raises(UserError, match="hub cannot be reached.*give a file's path"):
    sources.read("nobody-at-all/no-such-data")
