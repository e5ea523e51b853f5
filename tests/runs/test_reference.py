"""What a reference says is kept in a folder that may be anything."""

from types import SimpleNamespace

import numpy as np
import pytest
from support import made_trials, tiny

from jaxtune import libraries
from jaxtune.models import hf
from jaxtune.runs import reference


def test_a_cache_that_is_damaged_or_not_to_be_written_ends_no_run(tmp_path):
  path, array = tmp_path / "a.npy", np.ones((3, 2), np.float32)
  reference._keep(path, array)
  np.testing.assert_array_equal(reference._kept(path), array)
  whole = path.read_bytes()
  for content in (b"", b"x", whole[:60], whole[:-1]):
    path.write_bytes(content)
    assert reference._kept(path) is None
  reference._keep(path / "b.npy", array)
  assert reference._kept(path / "b.npy") is None


def outlined(**changes):
  """Returns a trial, as far as a name is made of it, whose config.json has changes."""
  config = hf.outline(architecture=tiny.ARCHITECTURES["llama"] | changes).model.config
  pretrained = SimpleNamespace(model=SimpleNamespace(config=config))
  return SimpleNamespace(fingerprint="f", config={"model": {"path": "t5"}}, pretrained=pretrained)


def test_what_is_kept_is_of_the_config_json_and_the_code_that_computed_it(tmp_path, monkeypatch):
  split = made_trials.split(4, 0)
  path = lambda **changes: reference._cache(str(tmp_path), outlined(**changes), {}, split)
  assert path() == path() != path(rms_norm_eps=0.1)
  was = path()
  monkeypatch.setattr(libraries, "versions", lambda *names: dict.fromkeys(names, "another"))
  assert path() != was


@pytest.mark.parametrize("name", ["inputs", "inputs_mask", "tokens", "mask", "weights"])
def test_what_is_kept_is_of_all_that_the_model_has_read(tmp_path, name):
  """The prompts of an encoder-decoder are in `inputs`, so that edited ones have other answers."""
  trial = outlined()
  whole = made_trials.split(4, 0)
  whole = whole._replace(arrays=whole.arrays | {"inputs": np.ones((4, 3), np.int32)})
  whole.arrays["inputs_mask"] = whole.arrays["inputs"] > 0
  edited = whole._replace(arrays=whole.arrays | {name: 1 - whole.arrays[name].astype(np.int32)})
  path = lambda split: reference._cache(str(tmp_path), trial, {}, split)
  assert path(whole) == path(whole) != path(edited)
