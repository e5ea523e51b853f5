"""Streams give the batches that data in memory would, and the same after a resume."""

from __future__ import annotations

import datasets
import huggingface_hub
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from jaxtune import data
from jaxtune.data import DataOptions, EncodeOptions, batch, sources, stream, templates, views
from jaxtune.data.encode import text
from jaxtune.data.show import show
from jaxtune.errors import UserError
from jaxtune.objectives import sft

ROWS = [{"prompt": f"question {n}\n", "completion": "x" * (n % 9 + 1)} for n in range(23)]
WIDTH = 24
ENCODED = ("too_long", "no_target")


@pytest.fixture
def path(write):
  return write("rows.jsonl", ROWS)


def load(tokenizer, path, block=5, **options):
  encoding = {"max_length": WIDTH} | {key: options[key] for key in ENCODED if key in options}
  encode = lambda examples: text.encode(tokenizer, examples, EncodeOptions(**encoding))
  given = DataOptions(train=path, max_length=WIDTH, stream=block, **options)
  return stream.load(tokenizer, given, encode)


def take(streamed, steps, size=4, seed=1):
  return [batch(streamed, seed, step, size) for step in steps]


def count_rows(streamed):
  """Returns a list to which the rows of every block are added as it is tokenised."""
  counts, encode = [], streamed._encode
  streamed._encode = lambda rows, where: counts.append(len(rows)) or encode(rows, where)
  return counts


def numbers(tokenizer, found):
  """Reads out of each row which it is."""
  texts = [tokenizer.decode(row) for taken in found for row in taken["tokens"]]
  return [int(text.split("\n")[0].split()[1]) for text in texts]


@pytest.mark.parametrize("block", [23, 100])
def test_with_one_block_it_is_the_data_in_memory(tokenizer, path, block):
  table = sources.read(path)
  form = templates.choose(["prompt", "completion"], where=path)
  split, _ = text.encode(
    tokenizer, templates.render(form, table.rows, table.where), EncodeOptions(max_length=WIDTH)
  )
  assert split.width == WIDTH
  for one, other in zip(
    take(load(tokenizer, path, block), range(20)), take(split, range(20)), strict=True
  ):
    assert {k: (v.shape, v.dtype) for k, v in one.items()} == {
      k: (v.shape, v.dtype) for k, v in other.items()
    }
    for name in one:
      np.testing.assert_array_equal(one[name], other[name])


@pytest.mark.parametrize("block", [1, 5, 22, 23])
def test_every_row_comes_once_an_epoch_shuffled_in_its_block(tokenizer, path, block):
  streamed = load(tokenizer, path, block)
  order = np.array(numbers(tokenizer, take(streamed, range(23), size=4)))
  assert streamed.examples == 23
  epochs = order.reshape(4, 23)
  for epoch in epochs:
    for start in range(0, 23, block):
      assert sorted(epoch[start : start + block]) == list(range(start, min(start + block, 23)))
  if block > 1:
    assert not np.array_equal(epochs[0], epochs[1])
    assert not np.array_equal(epochs[0], range(23))


def test_resumed_is_uninterrupted_and_tokenises_only_what_it_needs(tokenizer, path):
  whole = take(load(tokenizer, path), range(30))
  for step in (0, 3, 7, 18, 29):
    streamed = load(tokenizer, path)
    read = count_rows(streamed)
    (resumed,) = take(streamed, [step])
    for name, array in resumed.items():
      np.testing.assert_array_equal(array, whole[step][name])
    assert sum(read) <= 10  # two blocks
    assert len(streamed._blocks) <= 2
  jumping = load(tokenizer, path)
  for step in (29, 2, 17, 4, 3):
    np.testing.assert_array_equal(take(jumping, [step])[0]["tokens"], whole[step]["tokens"])


def test_seeds_share_the_blocks(tokenizer, path):
  streamed = load(tokenizer, path)
  read = count_rows(streamed)
  for step in range(5):
    first, second = (take(streamed, [step], seed=seed)[0] for seed in (1, 2))
    assert {k: v.shape for k, v in first.items()} == {k: v.shape for k, v in second.items()}
    assert not np.array_equal(first["tokens"], second["tokens"])
  assert len(read) == 4  # the blocks of 20 draws, each once


def test_what_is_skipped_keeps_its_place_without_weight(tokenizer, write):
  rows = [
    *ROWS[:3],
    {"prompt": "p" * 40, "completion": "long"},
    {"prompt": "q 9\n", "completion": ""},
  ]
  path = write("mixed.jsonl", rows)
  with pytest.raises(UserError, match="mixed.jsonl:4.*max_length"):
    take(load(tokenizer, path), [0])
  streamed = load(tokenizer, path, too_long="skip", no_target="skip")
  (found,) = take(streamed, [0], size=5)
  assert (found["weights"].sum(1) > 0).sum() == 3 and found["mask"].any(1).all()
  take(streamed, range(4), size=5)
  assert found["weights"].sum() == 2 + 3 + 4
  alone = take(load(tokenizer, path, 1, too_long="skip", no_target="skip"), range(5), size=1)
  assert [one["weights"].sum() for one in alone] == [2, 3, 4, 0, 0]
  with pytest.raises(UserError, match="none.jsonl:1 to .*all 2 rows are skipped .*, expected one"):
    load(tokenizer, write("none.jsonl", rows[3:]), too_long="skip", no_target="skip")


def test_only_some_rows_are_streamed(tokenizer, write):
  path = write("two.jsonl", [row | {"lang": ("de", "en")[n % 2]} for n, row in enumerate(ROWS)])
  found = take(load(tokenizer, path, only={"lang": "en"}), [0], size=11)
  assert sorted(numbers(tokenizer, found)) == list(range(1, 23, 2))
  for only in ({"lang": "fr"}, {"tongue": "en"}):
    with pytest.raises(UserError, match="expected values that rows of train have in these"):
      load(tokenizer, path, only=only)


def test_what_another_split_has_is_not_trained_on(tokenizer, path, write):
  held = write("held.jsonl", [ROWS[3] | {"prompt": "Question  3\n"}, *ROWS[5:10]])
  options = DataOptions(train=path, test=held, stream=5, max_length=WIDTH, overlap="drop")
  (found,) = take(data.load(tokenizer, sft, options).train, [0], size=23)
  trained = [text for text, w in zip(found["tokens"], found["weights"], strict=True) if w.any()]
  assert sorted(numbers(tokenizer, [{"tokens": trained}])) == [0, 1, 2, 4, *range(10, 23)]
  assert found["mask"].any(1).all()
  with pytest.raises(UserError, match="all 5 rows are skipped .* or in another split too"):
    data.load(tokenizer, sft, options._replace(test=path))


def test_sources_stream_what_they_read(write, tmp_path):
  parquet = str(tmp_path / "rows.parquet")
  pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), parquet)
  tsv = "prompt\tcompletion\n" + "".join(f"{n}\t{n + 1}\n" for n in range(9))
  paths = [write("a.jsonl", ROWS), write("b.tsv.gz", tsv), parquet, write("c.jsonl.gz", ROWS)]
  for one in [*paths, paths]:
    table = sources.read(one)
    assert list(sources.stream(one)) == list(zip(table.where, table.rows, strict=True))
  endless = sources.stream(write("broken.jsonl", '{"a": 1}\n{"a": 2}\nno\n'))
  assert [next(endless)[1]["a"], next(endless)[1]["a"]] == [1, 2]  # the damage is further on
  with pytest.raises(UserError, match="broken.jsonl:3: malformed JSON"):
    next(endless)
  with pytest.raises(UserError, match="holds no rows"):
    next(sources.stream(write("empty.jsonl", "")))


def test_hub_names_stream_where_the_hub_is_reached_and_read_the_cache_elsewhere(monkeypatch):
  asked = []

  def fake(name, configuration, **options):
    asked.append(options)
    rows = datasets.Dataset.from_list(ROWS)
    return {"train": rows.to_iterable_dataset() if options else rows}

  monkeypatch.setattr(datasets, "load_dataset", fake)
  monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *args, **kwargs: None)
  place, row = next(sources.stream("owner/name"))
  assert (place, row) == ("owner/name[train]:row 1", ROWS[0])

  def unreachable(*args, **kwargs):
    raise ConnectionError

  monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", unreachable)
  assert len(list(sources.stream("owner/name"))) == 23
  assert asked == [{"streaming": True}, {}]


def test_wrong_options_fail_before_anything_is_tokenised(tokenizer, path, tmp_path):
  with pytest.raises(UserError, match="did you mean 'skip'"):
    load(tokenizer, path, too_long="skpi")
  with pytest.raises(UserError, match="no data files|no file"):
    load(tokenizer, str(tmp_path / "none.jsonl"))
  with pytest.raises(UserError, match="column"):
    load(tokenizer, path, template="{{ promt }}", answer="completion")


def test_a_streamed_config_is_loaded_and_shown_without_its_training_data(tokenizer, path, write):
  """Its file may also be CSV without a header line."""
  bare = write("bare.csv", "".join(f"question {n},{n}\n" for n in range(23)))
  streamed = {"train": bare, "columns": ("prompt", "completion"), "stream": 5, "max_length": WIDTH}
  loaded = data.load(tokenizer, sft, DataOptions(**streamed))
  assert len(batch(loaded.train, 0, 0, 4)["tokens"]) == 4
  assert "==" not in show(loaded, views.TEXT, tokenizer)
  streamed |= {"train": path, "columns": None, "validation": path, "overlap": "allow"}
  text = show(data.load(tokenizer, sft, DataOptions(**streamed)), views.TEXT, tokenizer)
  assert "== validation ==\n23 examples" in text and "== train ==" not in text
