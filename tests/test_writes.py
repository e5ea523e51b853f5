"""There is one function that writes a file in place of another, and what it promises."""

import ast
import gc
import os
import re
import socket
from pathlib import Path

import pytest
from support import readers

import jaxtune
from jaxtune import files
from jaxtune.errors import UserError

# These write into a new folder, which is moved to its place when it is complete.
FOLDERS = {
  "files.py", "models/hf.py", "api/export.py", "formats/card.py", "formats/peft/write.py",
  "formats/adapterhub/write.py", "formats/merged.py", "api/launch/parcels.py",
}  # fmt: skip
# Temporary files for another process, and the bundled data, which the repository keeps.
SCRATCH = {"certify/reloading.py", "certify/reload.py", "assets/instructions.py"}
# A temporary file that replaces another one, locks, lines that are added to a log, and stdout.
OPENED = {"files.py", "runs/locks.py", "runs/folder.py", "runs/loggers/tensorboard.py", "hosts.py"}
WRITERS = {"write_text", "write_bytes", "savez", "save_file", "rename"}


def test_files_are_written_by_one_function():
  package = Path(jaxtune.__file__).parent
  found, opened = set(), set()
  for path in package.rglob("*.py"):
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.Call):
        name = ast.unparse(node.func)
        if name == "os.replace" or name.rpartition(".")[2] in WRITERS:
          found.add(str(path.relative_to(package)))
        modes = [str(arg.value) for arg in node.args if isinstance(arg, ast.Constant)]
        opens = name.rpartition(".")[2] in ("open", "fdopen")
        if opens and any(re.fullmatch("[wax][b+]*", mode) for mode in modes):
          opened.add(str(path.relative_to(package)))
  assert found == FOLDERS | SCRATCH and opened == OPENED


@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, fails):
  path = tmp_path / "result.json"
  files.write_atomically(path, "old")

  def full(*_):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(os, fails, full)
  with pytest.raises(UserError, match="cannot write .*result.json: No space left"):
    files.write_atomically(path, "new")
  assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_two_that_write_one_file_do_not_disturb_each_other(tmp_path, monkeypatch):
  """The second writes all of it while the first is about to put its own in place."""
  path, real = tmp_path / "x.npy", os.fsync

  def second(file):
    monkeypatch.setattr(os, "fsync", real)
    files.write_atomically(path, "the second's")

  monkeypatch.setattr(os, "fsync", second)
  files.write_atomically(path, "the first's")
  assert path.read_text() == "the first's" and list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_left_is_removed_and_a_running_ones_stays(tmp_path):
  name = f".result.json.{socket.gethostname()}"
  left, running, other = (
    tmp_path / one
    for one in (f"{name}.99999999.a0.new", f"{name}.1.a0.new", ".result.json.x.9.a.new")
  )
  for path in (left, running, other):
    path.write_text("")
    os.utime(path, (0, 0))
  files.write_atomically(tmp_path / "result.json", "new")
  assert {*tmp_path.iterdir()} == {tmp_path / "result.json", running, other}


@pytest.mark.full
@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_a_damaged_checkpoint_is_named_in_one_line(tmp_path, capfd):
  readers.READERS["checkpoint"].write(tmp_path)
  for path in (tmp_path / "checkpoints" / "2" / "state" / "d").iterdir():
    path.write_bytes(path.read_bytes()[:-9])
  with pytest.raises(UserError, match="checkpoints/2 is damaged .*remove it to go on"):
    readers.READERS["checkpoint"].read(tmp_path)
  gc.collect()
  assert "Traceback" not in capfd.readouterr().err
