"""What of a data set is compared when a run goes on: a rewritten file is named."""

import json

import pytest
from support import folders

from jaxtune import data
from jaxtune.objectives import sft
from jaxtune.training import checkpoint


def load(folder, **changed):
  """Writes rows that hang on what was changed, and loads them."""
  rows = lambda first, note: [
    {"prompt": f"a{i} :", "completion": note} for i in range(first, first + 4)
  ]
  options = {
    name: folders.write(folder, f"{name}.jsonl", rows(first, changed.get(name, "b1")))
    for name, first in (("train", 0), ("validation", 4), ("test", 6))
  }
  texts = [{"text": f"a1 {changed.get('general', 'b1')}"} for _ in range(3)]
  options["general"] = folders.write(folder, "general.jsonl", texts)
  return data.load(folders.tokenizer("llama"), sft, data.DataOptions(**options, overlap="allow"))


@pytest.mark.parametrize("name", ["train", "validation", "test", "general"])
def test_what_was_rewritten_is_named(tmp_path, name):
  before = json.loads(json.dumps(data.identity(load(tmp_path).report)))
  assert before == data.identity(load(tmp_path).report)
  found = checkpoint.differences(before, data.identity(load(tmp_path, **{name: "b2"}).report))
  assert f"{name}.jsonl was '" in found and found.count(" was ") == 2
  assert ("general.text" if name == "general" else f"splits.{name}") in found


def test_tasks_are_told_apart(tmp_path):
  def identity(word):
    rows = [{"prompt": f"a{i} :", "completion": word} for i in range(4)]
    tasks = {
      "one": {
        "train": folders.write(tmp_path, "one.jsonl", [{"prompt": "a9 :", "completion": "b1"}])
      },
      "two": {"train": folders.write(tmp_path, "two.jsonl", rows)},
    }
    return data.identity(
      data.load(folders.tokenizer("llama"), sft, data.DataOptions(tasks=tasks)).report
    )

  found = checkpoint.differences(identity("b1"), identity("b2"))
  assert "tasks.two.splits.train" in found and "tasks.one" not in found


def test_a_streamed_file_is_told_by_its_size_and_its_ends(tmp_path):
  def identity(*words):
    rows = [{"prompt": f"a{i} :", "completion": word} for i, word in enumerate(words)]
    path = folders.write(tmp_path, "train.jsonl", rows)
    report = data.load(
      folders.tokenizer("llama"), sft, data.DataOptions(train=path, stream=2, max_length=8)
    ).report
    return data.identity(report)["files"]

  found = [identity("b1", "b1"), identity("b2", "b1"), identity("b1", "b2"), identity("b1")]
  assert len({str(one) for one in found}) == 4 and identity("b1", "b1") == found[0]
