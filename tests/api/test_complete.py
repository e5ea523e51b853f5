"""What `jaxtune.complete` shows a finished run's model."""

import pytest
from support import folders, tiny

from jaxtune import peft
from jaxtune.api import complete
from jaxtune.errors import UserError
from jaxtune.runs.finished import Run


def test_prompts_are_encoded_as_in_training():
  pretrained = tiny.make("t5")._replace(tokenizer=folders.tokenizer("t5"))
  data = {"template": "{{ article }} ?", "rename": {"article": "text"}, "choices": None}
  run = Run(None, {"data": data}, pretrained, peft.untuned({}))
  shown = lambda prompts: [
    pretrained.tokenizer.decode(ids) for ids in complete.encode(run, prompts)
  ]
  assert shown([{"text": "a1 b2"}]) == ["a1 b2 ? </s>"]  # an encoder reads the end of its text
  assert shown(["c3", "d4 e5"]) == ["c3 </s>", "d4 e5 </s>"]


def test_a_single_text_is_no_list():
  run = Run(None, {}, tiny.make("llama"), peft.untuned({}))
  with pytest.raises(UserError, match="prompts are 'Hello', expected a list of them"):
    complete.complete(run, "Hello")
