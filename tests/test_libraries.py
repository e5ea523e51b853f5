"""What is known of the code that made a result."""

import subprocess
from pathlib import Path

import pytest

from jaxtune import libraries

ROOT = Path(__file__).resolve().parents[1]


def git(folder, *words):
  identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
  run = ["git", "-C", str(folder), *identity, *words]
  return subprocess.run(run, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path, monkeypatch):
  """A checkout of one commit, in which jaxtune seems to lie."""
  (tmp_path / "jaxtune").mkdir()
  (tmp_path / "jaxtune" / "libraries.py").write_text("")
  git(tmp_path, "init", "-q")
  git(tmp_path, "add", ".")
  git(tmp_path, "commit", "-q", "-m", "first")
  monkeypatch.setattr(libraries, "__file__", str(tmp_path / "jaxtune" / "libraries.py"))
  return tmp_path


def test_the_commit_is_that_of_the_checkout(checkout):
  head = git(checkout, "rev-parse", "HEAD")
  git(checkout, "tag", "-a", "v1", "-m", "a tag is no commit")
  assert libraries.commit() == head
  (checkout / "jaxtune" / "libraries.py").write_text("changed")
  assert libraries.commit() == f"{head}-dirty"


def test_an_installed_package_has_no_commit_of_the_project_around_it(checkout, monkeypatch):
  inside = checkout / "venv" / "jaxtune" / "libraries.py"
  monkeypatch.setattr(libraries, "__file__", str(inside))
  assert libraries.commit() is None


@pytest.mark.parametrize("error", [FileNotFoundError(), subprocess.TimeoutExpired("git", 10)])
def test_nothing_fails_without_git(checkout, monkeypatch, error):
  def fails(*_, **__):
    raise error

  monkeypatch.setattr(subprocess, "run", fails)
  assert libraries.commit() is None


def test_a_broken_repository_has_no_commit(checkout):
  (checkout / ".git" / "HEAD").write_text("")
  assert libraries.commit() is None
