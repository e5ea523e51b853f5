"""Runs that are stopped after a checkpoint, and go on."""

import numpy as np
import pytest
from safetensors.numpy import load_file

import jaxtune
from jaxtune.training import checkpoint


def interrupted(monkeypatch, config, folder, step):
  """Stops a run after the checkpoint of a step, and lets it go on."""
  save = checkpoint.Checkpoints.save

  def stop(self, at, *rest):
    save(self, at, *rest)
    if at == step:
      raise KeyboardInterrupt

  with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
    patched.setattr(checkpoint.Checkpoints, "save", stop)
    jaxtune.fit(config, folder)
  return jaxtune.fit(config, folder)


def resumes(monkeypatch, config, folder, step):
  """A run that was stopped ends in the very weights of one that was not."""
  whole = jaxtune.fit(config, folder / "whole")
  parts = interrupted(monkeypatch, config, folder / "parts", step)
  assert parts["final"] == whole["final"]
  ends = [load_file(folder / name / "tuned.safetensors") for name in ("whole", "parts")]
  for name, array in ends[0].items():
    np.testing.assert_array_equal(ends[1][name], array)
  return whole
