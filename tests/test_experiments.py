"""Every measurement in experiments/ runs, at its smallest size and into a folder of its own.

The certificates, the matrix and the parity table are run by `make cases` and `make check`.
"""

import importlib.util
import os
import re
import shlex
import subprocess
import sys

import pytest
from support import tiny

from jaxtune.main import parser

PAGES = [*tiny.ROOT.glob("experiments/*/README.md"), *tiny.ROOT.glob("configs/*.py")]
COMMANDS = sorted({
  line.strip()
  for page in PAGES
  for line in page.read_text().replace("\\\n", " ").splitlines()
  if re.match(r" *(jaxtune|python experiments/\S+) ", line)
})  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_of_pages_and_configs_parse(command):
  program, *words = shlex.split(command)
  if program == "jaxtune":
    _, rest = parser().parse_known_args(words)
    assert all(word.startswith("--config.") for word in rest)
  for path in re.findall(r"(?<![\w/])(?:configs|experiments)/[\w/]+\.py", command):
    assert (tiny.ROOT / path).exists(), path


def test_configs_say_what_their_experiments_cost_and_score():
  place = tiny.ROOT / "experiments" / "keep.py"
  spec = importlib.util.spec_from_file_location("keep", place)
  keep = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(keep)
  texts = keep.describe_all()
  assert len(texts) > 5
  for config, text in texts.items():
    assert config.read_text() == text, config


def run(*arguments):
  environment = os.environ | {"PYTHONPATH": str(tiny.ROOT)}
  environment.pop("XLA_FLAGS")  # tests' cheap compilation trains a real model slowly
  command = [sys.executable, *map(str, arguments)]
  done = subprocess.run(command, cwd=tiny.ROOT, env=environment, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.full
@pytest.mark.measurement
def test_speed(tmp_path):
  run("experiments/speed/run.py", "--tiny", "--out", tmp_path)
  assert "| LoRA update" in (tmp_path / "README.md").read_text()


@pytest.mark.full
@pytest.mark.measurement
def test_quantisation(tmp_path):
  run("experiments/quantisation/run.py", "--tiny", "--out", tmp_path)
  assert "NF4" in (tmp_path / "README.md").read_text()


@pytest.mark.full
@pytest.mark.measurement
def test_a_sweep_is_kept_with_its_answers(tmp_path):
  keys = {
    "train.steps": 2,
    "train.batch_size": 2,
    "evaluate.limit": 8,
    "evaluate.max_new_tokens": 4,
  }
  small = [f"--config.{key}={value}" for key, value in keys.items()]
  sweep = ("sweep", "--config", "configs/quickstart.py", "--workdir", tmp_path / "quickstart")
  run("-m", "jaxtune.main", *sweep, *small)
  run("experiments/quickstart/answers.py", tmp_path / "quickstart")
  run("experiments/keep.py", tmp_path / "quickstart", tmp_path / "kept")
  assert "rank" in (tmp_path / "kept" / "README.md").read_text()


@pytest.mark.full
@pytest.mark.measurement
def test_a_tokenizer_is_trained_on_pairs(tmp_path):
  pairs = "".join(f'{{"en": "a boy {i} runs", "de": "ein Junge {i} rennt"}}\n' for i in range(50))
  (tmp_path / "train.jsonl").write_text(pairs)
  script = "experiments/translation/tokenizer.py"
  run(script, "--train", tmp_path / "train.jsonl", "--out", tmp_path / "made", "--size", 300)
  assert (tmp_path / "made" / "tokenizer.json").exists()


@pytest.mark.full
@pytest.mark.measurement
def test_short_reviews_are_kept(shared, tmp_path):
  run("experiments/star_ratings/prepare.py", shared / "data" / "reviews", tmp_path)
  assert (tmp_path / "train.jsonl").stat().st_size > 0


@pytest.mark.full
@pytest.mark.measurement
def test_the_page_of_reliability_is_written(tmp_path):
  run("experiments/reliability/report.py", tmp_path)
  assert "## Mutants" in (tmp_path / "README.md").read_text()
