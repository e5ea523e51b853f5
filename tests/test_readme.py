"""The README's Python runs as it stands, and its commands name things that exist."""

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from support import made_trials

import jaxtune
import jaxtune.api
from jaxtune.api import families, sweep
from jaxtune.assets import TINY
from jaxtune.main import parser
from jaxtune.sweeps import declare, grid, matching

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text()


@pytest.mark.measurement
def test_the_python_runs(tmp_path):
  """With fewer steps and examples."""
  (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
  options = {"train.steps": 2, "train.batch_size": 4, "data.eval_limit": 8, "evaluate.limit": 2}
  code, count = re.subn(r"^options = .*$", f"options = {options}", code, flags=re.MULTILINE)
  assert count == 1
  (tmp_path / "configs").symlink_to(ROOT / "configs")
  environment = os.environ | {"PYTHONPATH": str(ROOT)}
  subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)
  report = (tmp_path / "runs/python/report.md").read_text()
  assert "base (untuned)" in report and "rank=4" in report
  assert (tmp_path / "runs/python/export/adapter_model.safetensors").exists()


def test_the_declared_sweep_is_one():
  code, matched = re.findall(r"```py\n(.*?)```", TEXT, re.DOTALL)
  config = made_trials.complete({"name": "lora"})
  holder = SimpleNamespace()
  exec(code, {"config": holder})
  names, settings, _ = sweep.expand(config | {"sweep": holder.sweep})
  assert len(set(names)) == len(names) > 9 and max(s["method.rank"] for s in settings) == 16
  exec(matched, {"config": holder, "declare": declare})
  assert grid.count(holder.sweep) == 9 and matching.is_open(holder.sweep)


@pytest.mark.parametrize("command", re.findall(r"^ *(jaxtune .*)$", TEXT, re.MULTILINE))
def test_commands_parse(command):
  import shlex

  options, rest = parser().parse_known_args(shlex.split(command, comments=True)[1:])
  assert all(item.startswith("--config.") for item in rest)
  for path in re.findall(r"(?:configs|jaxtune)/[\w/.]+", command):
    assert (ROOT / path).exists(), path


@pytest.mark.full
def test_every_module_can_be_imported_first():
  code = """
import importlib, sys
for name in sys.argv[1:]:
  for loaded in [module for module in sys.modules if module.split(".")[0] == "jaxtune"]:
    del sys.modules[loaded]
  importlib.import_module(f"jaxtune.{name}")
"""
  names = ["runs.finished", "training.loop", "config", "preflight.checks", "api.sweep"]
  subprocess.run([sys.executable, "-c", code, *names], check=True)


def test_the_package_offers_the_api():
  for name in jaxtune.__all__:
    assert getattr(jaxtune, name).__name__ == name


def test_links_lead_somewhere():
  for link in re.findall(r"\]\(([^)#:]+)\)", TEXT):
    assert (ROOT / link).exists(), link


def test_every_promise_names_tests_that_exist():
  _, _, families = TEXT.partition("## What is promised")
  families, _, _ = families.partition("\n## ")
  named = re.findall(r"`((?:tests|experiments)/[\w/.]+\.py)(?:::(\w+))?`", families)
  assert len(named) > 20
  for path, test in named:
    assert (f"def {test}(" if test else "") in (ROOT / path).read_text(), (path, test)


def test_the_table_of_families_is_the_code_s():
  """`python -m jaxtune.api.families` writes it."""
  assert TEXT.count(families.MARKS[0]) == 1 and families.insert(TEXT) == TEXT
  assert {"llama", "gemma3_text", "gpt_neox"} <= {row.model_type for row in families.rows()}


def test_the_bundled_model_is_small():
  assert sum(path.stat().st_size for path in TINY.iterdir()) < 10_000_000
