"""Every measurement in experiments/ runs, at its smallest size and into a folder of its own.

The certificates, the matrix and the parity table are run by `make cases` and `make check`.
"""

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest
from support import tiny
from transformers import AutoTokenizer

from jaxtune.assets import TINY
from jaxtune.main import parser
from jaxtune.models import hf

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


def script(path):
  """Imports a file of experiments/."""
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def test_the_readme_s_table_of_accelerators_is_that_of_the_results():
  place, page = tiny.ROOT / "experiments" / "accelerators", (tiny.ROOT / "README.md").read_text()
  known = json.loads((place / "results.json").read_text())
  assert script(place / "run.py").insert(page, known["steps"]) == page


def test_configs_say_what_their_experiments_cost_and_score():
  texts = script(tiny.ROOT / "experiments" / "keep.py").describe_all()
  assert len(texts) > 5
  for config, text in texts.items():
    assert config.read_text() == text, config


def run(*arguments, folder=tiny.ROOT):
  environment = os.environ | {"PYTHONPATH": str(tiny.ROOT)}
  environment.pop("XLA_FLAGS")  # tests' cheap compilation trains a real model slowly
  command = [sys.executable, *map(str, arguments)]
  done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.full
@pytest.mark.measurement
def test_speed(tmp_path):
  run("experiments/speed/run.py", "--tiny", "--out", tmp_path)
  assert "| LoRA (peft) |" in (tmp_path / "README.md").read_text()


@pytest.mark.full
@pytest.mark.measurement
def test_what_is_measured_on_a_gpu(tmp_path):
  run("experiments/speed/on_gpu.py", "--tiny", "--out", tmp_path)
  text = (tmp_path / "GPU.md").read_text()
  assert "| update of Llama 8B, 2 x 16 |" in text and "Error" not in text


@pytest.mark.full
@pytest.mark.measurement
def test_quantisation(tmp_path):
  run("experiments/quantisation/run.py", "--tiny", "--out", tmp_path)
  assert "NF4" in (tmp_path / "README.md").read_text()


@pytest.mark.full
@pytest.mark.measurement
def test_feedback(tmp_path):
  run("experiments/feedback/run.py", "--tiny", tmp_path / "runs", "--out", tmp_path / "out")
  assert "| grpo, rank 64 |" in (tmp_path / "out" / "README.md").read_text()


# The smallest size of every sweep, whatever its config asks for.
SMALL = {
  "data.eval_limit": 12, "optim.warmup": 0, "train.steps": 1, "train.batch_size": 2,
  "train.eval_every": 1, "train.checkpoint_every": 1, "evaluate.limit": 6, "evaluate.batch_size": 6,
}  # fmt: skip


@pytest.fixture
def copy(tmp_path):
  """A copy of what the commands of pages read and write, with the data sets beside it."""
  checkout = tmp_path / "checkout"
  for folder in ("configs", "experiments"):
    shutil.copytree(tiny.ROOT / folder, checkout / folder)
  shutil.copy(tiny.ROOT / "README.md", checkout)
  (tmp_path / "shared").symlink_to(tiny.ROOT.parent / "shared")
  return checkout


def commands(page):
  """Lists the commands of a page's first block, with its loop unrolled."""
  block = page.read_text().split("```")[1].replace("\\\n", " ")
  if loop := re.search(r"for (\w+) in (.*); do\n(.*)\ndone", block):
    name, values, body = loop.groups()
    block = block.replace(loop[0], "\n".join(body.replace(f"${name}", v) for v in values.split()))
  return [line.strip() for line in block.splitlines() if line.strip()]


def a_bert(folder):
  """Makes a small random BERT that has the bundled tokenizer."""
  fields = tiny.ENCODERS["bert"] | dict(vocab_size=AutoTokenizer.from_pretrained(TINY).vocab_size)
  pretrained = tiny.random(fields | dict(pad_token_id=0), head="mlm")
  hf.save(pretrained, pretrained.params, folder)
  for name in ("tokenizer.json", "tokenizer_config.json"):
    shutil.copy(TINY / name, folder)


# Every one of fifteen tasks needs an example to train on and one to be judged by.
SMALLEST = {
  "reward_model": {"data.eval_limit": 100},  # most texts are too long
  "task_mixture": {"train.batch_size": 60, "evaluate.limit": 15},
}
PLACES = {"translation": "../shared/data/multi30k"}  # where DATA is not that of E2E


@pytest.mark.full
@pytest.mark.measurement
@pytest.mark.parametrize("name", [
  "dialogues", "entities", "method_comparison", "preferences", "prefix_length", "rank_ablation",
  "reward_model", "sentiment", "sentiment_rates", "star_ratings", "task_mixture", "titles",
  "translation",
])  # fmt: skip
def test_the_commands_of_a_page_run(name, shared, copy):
  """At the smallest size, one after another, in a copy of the repository."""
  page = copy / "experiments" / name / "README.md"
  lines = commands(page)
  page.write_text("")
  if "FOLDER" in " ".join(lines):
    a_bert(copy / "runs" / "bert")
  for line in lines:
    line = line.replace("DATA", PLACES.get(name, "../shared/data/e2e"))
    words = shlex.split(line.replace("FOLDER", "runs/bert"))
    if words[0] == "jaxtune":
      small = SMALL | SMALLEST.get(name, {})
      given = [f"--config.{key}={value}" for key, value in small.items()]
      run("-m", "jaxtune.main", *words[1:], *given, folder=copy)
    else:
      trials = sorted(copy.glob(f"runs/{name}/trials/*"))
      words = [str(trials[0]) if word.endswith("TRIAL") else word for word in words]
      run(*words[1:], folder=copy)
  if any("report.py" in line or "keep.py" in line for line in lines):
    assert "| " in page.read_text()


@pytest.mark.full
@pytest.mark.measurement
def test_the_quickstart_is_kept_with_its_answers(copy):
  given = [f"--config.{key}={value}" for key, value in SMALL.items()]
  sweep = ("sweep", "--config", "configs/quickstart.py", "--workdir", "runs/quickstart")
  run("-m", "jaxtune.main", *sweep, *given, folder=copy)
  run("experiments/quickstart/answers.py", "runs/quickstart", folder=copy)
  run("experiments/keep.py", "runs/quickstart", "experiments/quickstart", folder=copy)
  assert "rank" in (copy / "experiments" / "quickstart" / "README.md").read_text()


@pytest.mark.full
@pytest.mark.measurement
def test_the_page_of_reliability_is_written(tmp_path):
  run("experiments/reliability/report.py", tmp_path)
  text = (tmp_path / "README.md").read_text()
  assert "of them are left out here" in text and len(re.findall("^Made ", text, re.MULTILINE)) == 5
