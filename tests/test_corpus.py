"""What fuzzing found once is read again: each damaged folder is read, or refused in one line."""

import contextlib
import json
import signal
from pathlib import Path

import pytest
from support import readers

from jaxtune.errors import UserError

CASES = sorted((Path(__file__).parent / "corpus").glob("*.json"))
SECONDS = 60


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
  """Makes the valid folder of a reader once."""
  made = {}

  def seed(name: str) -> dict[str, bytes]:
    if name not in made:
      folder = tmp_path_factory.mktemp("seed")
      readers.READERS[name].write(folder)
      files = [path for path in folder.rglob("*") if path.is_file()]
      made[name] = {str(path.relative_to(folder)): path.read_bytes() for path in files}
    return made[name]

  return seed


@contextlib.contextmanager
def in_time():
  def late(*_):
    raise TimeoutError(f"not read within {SECONDS} seconds")

  before = signal.signal(signal.SIGALRM, late)
  signal.alarm(SECONDS)
  try:
    yield
  finally:
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_what_fuzzing_found(path, seeds, tmp_path):
  case = json.loads(path.read_text())
  seed = {} if case["whole"] else seeds(case["reader"])
  readers.lay(tmp_path, readers.unpacked(seed, case["files"]))
  with in_time(), contextlib.suppress(UserError):
    readers.READERS[case["reader"]].read(tmp_path)
