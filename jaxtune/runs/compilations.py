"""Keeps compiled programs from one process to the next."""

from __future__ import annotations

from pathlib import Path

import jax

from jaxtune.files import expanded


def keep(folder: str | None) -> None:
  """Lets jax keep the programs that it compiles in a folder, unless it has one already.

  Args:
    folder: `train.compilation_cache`; None leaves jax as it is.
  """
  if folder is not None and jax.config.values["jax_compilation_cache_dir"] is None:
    jax.config.update("jax_compilation_cache_dir", str(expanded(folder)))


def plans(folder: str | None) -> Path | None:
  """Returns the folder for what the compilers of other devices have said, or None."""
  return None if folder is None else expanded(folder) / "plan"
