"""The shapes that the functions of `jaxtune.models` state hold in every model."""

import subprocess
import sys
from pathlib import Path

import pytest
from support import tiny

TESTS = Path(__file__).resolve().parents[1]
NAMES = [*tiny.ARCHITECTURES, *tiny.DECODERS, *tiny.ENCODERS]


@pytest.mark.full
def test_models_have_the_shapes_they_state():
  command = [sys.executable, "-m", "support.checked_models", *NAMES]
  ran = subprocess.run(command, cwd=TESTS, capture_output=True, text=True)
  assert ran.returncode == 0, ran.stderr[-3000:]
