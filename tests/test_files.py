"""A folder is replaced as a whole, and only where nothing of the user's would be lost."""

import numpy as np
import pytest

from jaxtune import files
from jaxtune.errors import UserError


def write(folder, **texts):
  with files.replacing(folder) as new:
    for name, text in texts.items():
      path = new / name.replace("__", "/")
      path.parent.mkdir(exist_ok=True)
      path.write_text(text)


def content(folder):
  written = (path for path in folder.rglob("*") if path.is_file() and path.name != files.LIST)
  return {path.relative_to(folder).as_posix(): path.read_text() for path in written}


@pytest.mark.parametrize("exchanges", [True, False])
def test_what_was_written_whole_is_replaced_whole(tmp_path, monkeypatch, exchanges):
  if not exchanges:  # a system that cannot swap two names
    monkeypatch.setattr(files, "_exchange", lambda one, other: False)
  folder = tmp_path / "x"
  folder.mkdir()
  write(folder, a="1", inner__b="2")
  write(folder, a="3")
  assert content(folder) == {"a": "3"}
  with pytest.raises(OSError), files.replacing(folder) as new:
    (new / "a").write_text("4")
    raise OSError
  assert content(folder) == {"a": "3"} and [p.name for p in tmp_path.iterdir()] == ["x"]


def snapshot(folder):
  """Returns {path: a file's text, where a link leads to, or None of a folder}."""
  said = lambda p: p.readlink() if p.is_symlink() else None if p.is_dir() else p.read_text()
  return {path: said(path) for path in folder.rglob("*")}


OTHERS = {
  "notes": lambda folder: (folder / "notes.txt").write_text("mine"),
  "hidden notes": lambda folder: (folder / ".notes").write_text("mine"),
  "an edited file": lambda folder: (folder / "a").write_text("mine"),
  "a file within": lambda folder: (folder / "inner" / "mine").write_text("mine"),
  "an empty folder": lambda folder: (folder / "mine").mkdir(),
  "a link": lambda folder: [(folder / "a").unlink(), (folder / "a").symlink_to("/dev/null")],
  "a copied card": lambda folder: (folder / files.LIST).unlink(),
}


@pytest.mark.parametrize("case", OTHERS)
@pytest.mark.parametrize("meanwhile", [False, True])
def test_nothing_else_is_lost(tmp_path, case, meanwhile):
  folder = tmp_path / "x"
  write(folder, a="1", inner__b="2")
  mine = {}

  def put():
    OTHERS[case](folder)
    mine.update(snapshot(folder))

  if not meanwhile:
    put()
  with pytest.raises(UserError, match="would be lost"), files.replacing(folder) as new:
    assert meanwhile
    put()
    (new / "a").write_text("4")
  assert snapshot(folder) == mine
  assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_file_is_no_folder(tmp_path):
  (tmp_path / "x").write_text("mine")
  with pytest.raises(UserError, match="is a file"):
    write(tmp_path / "x", a="1")


def test_a_kill_between_two_renames_loses_nothing(tmp_path):
  write(tmp_path / "x", a="1")
  (tmp_path / "x").rename(tmp_path / ".x.jaxtune-old")
  with pytest.raises(OSError), files.replacing(tmp_path / "x"):
    raise OSError
  assert content(tmp_path / "x") == {"a": "1"}


def test_two_that_write_one_folder_do_not_mix(tmp_path):
  with files.replacing(tmp_path / "x") as new:
    (new / "a").write_text("1")
    with pytest.raises(UserError, match="another process is writing .*x: wait"):
      write(tmp_path / "x", b="2")
  assert content(tmp_path / "x") == {"a": "1"}


def test_whoever_may_read_new_files_may_read_tensors(tmp_path):
  (tmp_path / "plain").touch()
  files.write_tensors(tmp_path / "tensors", {"x": np.zeros(3)})
  assert (tmp_path / "tensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_link_to_a_folder_stays_one(tmp_path):
  (tmp_path / "real").mkdir()
  (tmp_path / "x").symlink_to(tmp_path / "real")
  write(tmp_path / "x", a="1")
  assert (tmp_path / "x").is_symlink() and content(tmp_path / "real") == {"a": "1"}


def test_what_is_written_later_is_on_the_list(tmp_path):
  write(tmp_path / "x", a="1")
  (tmp_path / "x" / "later").write_text("2")
  files.add(tmp_path / "x" / "later")
  write(tmp_path / "x", a="3")
  assert content(tmp_path / "x") == {"a": "3"}
