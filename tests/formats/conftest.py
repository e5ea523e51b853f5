import pytest

from jaxtune import certify


@pytest.fixture(scope="package")
def reload():
  """A PyTorch that certifies exports, started once."""
  pytest.importorskip("peft")
  with certify.reloader() as run:
    yield run
