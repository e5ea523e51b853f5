"""What `jaxtune.complete` shows a finished run's model."""

import json
from pathlib import Path

import pytest
from support import folders, tiny

from jaxtune import peft
from jaxtune.api import complete
from jaxtune.data import templates
from jaxtune.errors import UserError
from jaxtune.runs import results
from jaxtune.runs.finished import Run


def test_prompts_are_encoded_as_in_training(tmp_path):
  pretrained = tiny.make("t5")._replace(tokenizer=folders.tokenizer("t5"))
  data = {"template": "{{ article }} ?", "rename": {"article": "text"}, "choices": None}
  run = Run(tmp_path, {"data": data}, pretrained, peft.untuned({}))
  shown = lambda prompts: [
    pretrained.tokenizer.decode(ids) for ids in complete.encode(run, prompts)
  ]
  assert shown([{"text": "a1 b2"}]) == ["a1 b2 ? </s>"]  # an encoder reads the end of its text
  assert shown(["c3", "d4 e5"]) == ["c3 </s>", "d4 e5 </s>"]


@pytest.mark.parametrize(
  ("template", "columns", "row", "text"),
  [
    ("lost.yaml:ask", {"q", "a"}, {"q": "b2"}, "ask b2"),
    (None, {"instruction", "prompt", "completion"}, {"instruction": "a1", "prompt": "b2"}, "b2"),
    (None, {"instruction", "output"}, {"prompt": "b2"}, "b2"),
    (None, {"text"}, {"prompt": "b2"}, "b2"),
  ],
)
def test_rows_are_read_as_the_result_says(tmp_path, monkeypatch, template, columns, row, text):
  """Also where the file of the template is gone, and where rows have columns of two formats."""
  monkeypatch.chdir(tmp_path)
  file = {"task": "t", "templates": [{"name": "ask", "prompt": "ask {{ q }}", "answer": "a"}]}
  Path("lost.yaml").write_text(json.dumps(file))
  form = templates.choose(sorted(columns), where="train", template=template)
  Path("lost.yaml").unlink()
  results.write(tmp_path, {"final": {}, "data": {"format": {"train": form.record()}}})
  options = {"template": template, "rename": None, "choices": None}
  run = Run(tmp_path, {"data": options}, None, None)
  assert complete.worded(run, [row]) == [text]


def test_a_single_text_is_no_list():
  run = Run(None, {}, tiny.make("llama"), peft.untuned({}))
  with pytest.raises(UserError, match="prompts are 'Hello', expected a list of them"):
    complete.complete(run, "Hello")
