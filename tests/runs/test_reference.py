"""What a reference says is kept in a folder that may be anything."""

import numpy as np

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
