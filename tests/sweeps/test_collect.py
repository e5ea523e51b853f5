"""What is read from the folder of a sweep, beside the results of its trials."""

import json

import pytest

from jaxtune.errors import UserError
from jaxtune.runs import results
from jaxtune.sweeps import collect, comparison

CONFIG = {"method": {"name": "lora"}, "train": {"steps": 1}, "seed": 0}
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
  with pytest.raises(UserError) as error:
    collect.read(tmp_path, ["rank=8"], [{}], [CONFIG], [[]])
    collect.curves(tmp_path)
  assert f"/{name}" in str(error.value) and says in str(error.value)


def test_trials_are_paired_by_their_seeds_also_where_no_axis_states_one(made, tmp_path):
  settings, names = [{"method.rank": 1, "seed": 0}, {"method.rank": 1, "seed": 1}, {}], list("abc")
  for name, loss in zip(names, (2.0, 2.1, 1.0), strict=True):
    results.write(tmp_path / "trials" / name, made.result({}, loss))
  configs = [CONFIG, CONFIG | {"seed": 1}, CONFIG]
  found, _ = collect.read(tmp_path, names, settings, configs, [[]] * 3)
  (pair,) = comparison.compare(found).pairs
  assert (pair.seeds, pair.unpaired) == ((0,), (1,)) and pair.test.difference == -1.0
