"""Where compiled programs are kept."""

import jax

from jaxtune.runs import compilations

KEY = "jax_compilation_cache_dir"


def test_a_folder_that_jax_has_is_left_alone(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  before = jax.config.values[KEY]
  try:
    compilations.keep(None)
    assert jax.config.values[KEY] == before
    jax.config.update(KEY, None)
    for folder in ("~/first", "~/second"):
      compilations.keep(folder)
      assert jax.config.values[KEY] == str(tmp_path / "first")
  finally:
    jax.config.update(KEY, before)
