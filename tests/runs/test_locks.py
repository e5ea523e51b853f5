"""A folder has one owner at a time, none that is dead, and is known to be writable at once."""

import os
import signal
import subprocess
import sys
import time

import pytest

from jaxtune.errors import UserError
from jaxtune.runs import locks

HOLD = """
import sys, time
from jaxtune.runs import locks
with locks.held(sys.argv[1]):
  print("held", flush=True)
  time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
  """Another process, which holds a folder that was not there."""
  process = subprocess.Popen(
    [sys.executable, "-c", HOLD, tmp_path / "a" / "run"], stdout=subprocess.PIPE, text=True
  )
  assert process.stdout.readline() == "held\n"
  yield process
  process.kill()
  process.wait()


def test_the_second_is_refused_at_once_and_a_dead_one_holds_nothing(holder, tmp_path):
  folder = tmp_path / "a" / "run"
  began = time.monotonic()
  says = f"run is in use by process {holder.pid} on "
  with pytest.raises(UserError, match=says), locks.held(folder):
    pass
  assert time.monotonic() - began < 5 and (folder / ".lock").exists()
  holder.send_signal(signal.SIGKILL)
  holder.wait()
  assert (folder / ".lock").exists(), "what it left behind holds nothing"
  with locks.held(folder):
    assert str(os.getpid()) in (folder / ".lock").read_text()
    with pytest.raises(UserError, match=f"process {os.getpid()}"), locks.held(folder):
      pass
  assert list(folder.iterdir()) == []


def test_what_was_made_for_nothing_is_removed(tmp_path):
  with pytest.raises(UserError, match="another mistake"), locks.held(tmp_path / "a" / "b"):
    raise UserError("another mistake")
  assert list(tmp_path.iterdir()) == []
  with locks.held(tmp_path / "a" / "b"):
    (tmp_path / "a" / "b" / "kept").write_text("")
  assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["kept"]


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, capsys):
  def none(*_):
    raise OSError(95, "Operation not supported")

  monkeypatch.setattr(locks.fcntl, "flock", none)
  with locks.held(tmp_path / "run"):
    (tmp_path / "run" / "kept").write_text("")
  assert "has no locks" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["file", "file/run", "loop", "nul\0", "x" * 300])
def test_a_folder_that_cannot_be(tmp_path, place):
  (tmp_path / "file").write_text("kept")
  (tmp_path / "loop").symlink_to(tmp_path / "loop")
  for check in (locks.check_writable, lambda folder: locks.held(folder).__enter__()):
    with pytest.raises(UserError, match="cannot be written"):
      check(tmp_path / place)
  assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "loop"]


def test_a_folder_without_permission(tmp_path, monkeypatch):
  monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
  with pytest.raises(UserError, match="permission denied"):
    locks.check_writable(tmp_path / "run")


@pytest.mark.parametrize(
  ("name", "content"),
  [
    ("config.json", '{"model_type": "llama"}'),
    ("config.json", "[1]"),
    ("metrics.jsonl", '{"mine": 1}'),
    ("results.csv", "mine"),
  ],
)
def test_files_of_something_else_are_not_written_over(tmp_path, name, content):
  path = tmp_path / "folder" / name
  path.parent.mkdir()
  path.write_text(content)
  says = f"is not the folder of a run, and its {name} would be lost"
  with pytest.raises(UserError, match=says), locks.held(path.parent):
    pass
  assert path.read_text() == content and [*path.parent.iterdir()] == [path]
  (path.parent / "config.json").write_text('{"model": {"path": "x"}, "seed": 1}')
  own = "sweep" if name == "results.csv" else "run"
  with locks.held(path.parent, own):
    pass
  other = {"run": "sweep", "sweep": "run"}[own]
  (path.parent / "result.json" if own == "run" else path.parent / "trials").mkdir()
  says = f"holds a {own}: give another folder for a {other}"
  with pytest.raises(UserError, match=says), locks.held(path.parent, other):
    pass


def test_a_sweep_over_models_is_known_again(tmp_path):
  (tmp_path / "config.json").write_text('{"data": {}, "sweep": [{"model.path": ["a", "b"]}]}')
  (tmp_path / "trials").mkdir()
  with locks.held(tmp_path, "sweep"):
    pass


def test_a_run_that_was_killed_before_it_wrote_its_config_is_begun_again(tmp_path):
  (tmp_path / "checkpoints").mkdir()
  with locks.held(tmp_path):
    pass
  (tmp_path / "checkpoints" / "2").mkdir()
  with pytest.raises(UserError, match="its checkpoints would be lost"), locks.held(tmp_path):
    pass


def test_a_full_disk_is_said_by_the_lock(tmp_path, monkeypatch):
  def full(*_):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(os, "write", full)
  says = r"cannot write .*\.lock: No space left on device; make room"
  with pytest.raises(UserError, match=says), locks.held(tmp_path / "run"):
    pass
  assert list(tmp_path.iterdir()) == []
