"""What training finds in its folder."""

import pytest

import jaxtune
from jaxtune.errors import UserError


@pytest.mark.parametrize("name", ["tuned.safetensors", "result.json"])
def test_a_run_that_cannot_be_resumed_is_not_trained_over(tmp_path, name):
  """It was imported, composed or extracted, or is a trial of a sweep."""
  files = {"config.json": '{"model": {"path": "x"}}', name: "{}"}
  for file, content in files.items():
    (tmp_path / file).write_text(content)
  with pytest.raises(UserError, match=f"holds a run already, whose {name} would be lost"):
    jaxtune.fit({"seed": "no number"}, tmp_path)
  assert {path.name: path.read_text() for path in tmp_path.iterdir()} == files
  (tmp_path / "checkpoints" / "2").mkdir(parents=True)
  with pytest.raises(UserError, match="seed is 'no number'"):
    jaxtune.fit({"seed": "no number"}, tmp_path)


@pytest.mark.parametrize("kind", ["trials", "tuning"])
def test_a_trial_of_a_sweep_is_left_to_the_sweep(tmp_path, kind):
  """Also one that has not begun, and that a process of the sweep may be training."""
  (tmp_path / "config.json").write_text('{"model": {"path": "x"}, "sweep": [{"seed": [0, 1]}]}')
  with pytest.raises(UserError, match="seed=0 is that of a trial of the sweep"):
    jaxtune.fit({"seed": "no number"}, tmp_path / kind / "seed=0")
  assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
  for other in ("{}", "// JSON with a comment", '{"sweep": 3, "entry": "main.js"}'):
    (tmp_path / "config.json").write_text(other)
    with pytest.raises(UserError, match="seed is 'no number'"):
      jaxtune.fit({"seed": "no number"}, tmp_path / kind / "seed=0")
