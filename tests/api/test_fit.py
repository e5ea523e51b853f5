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
