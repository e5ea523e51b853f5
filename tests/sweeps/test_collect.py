"""What is read from the folder of a sweep, beside the results of its trials."""

import json

import pytest

from jaxtune.errors import UserError
from jaxtune.sweeps import collect

CURVE = {"rates": [0.1], "losses": [None], "chosen": 0.1, "at_edge": True}


@pytest.mark.parametrize(
  ("name", "content", "says"),
  [
    ("tuning.json", {"rank=4": {"at_edge": True}}, "rates"),
    ("tuning.json", {"rank=4": CURVE | {"chosen": "high"}}, "chosen is 'high'"),
    ("trials/rank=8/failed.json", {"why": "?"}, "reason"),
    ("trials/rank=8/failed.json", ["?"], "failed.json"),
  ],
)
def test_a_file_that_was_edited_is_named(tmp_path, name, content, says):
  (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
  (tmp_path / name).write_text(json.dumps(content))
  config = {"method": {"name": "lora"}, "train": {"steps": 1}}
  with pytest.raises(UserError) as error:
    collect.read(tmp_path, ["rank=8"], [{}], [config], [[]])
    collect.curves(tmp_path)
  assert f"/{name}" in str(error.value) and says in str(error.value)
