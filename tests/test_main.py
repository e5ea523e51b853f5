"""The command line, in this process: a whole experiment, and every mistake in one line."""

import dataclasses
import json
import os
import resource
import shutil
import subprocess
import sys

import pytest
from support import tiny
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import jaxtune
from jaxtune.api import evaluate
from jaxtune.errors import UserError
from jaxtune.main import main
from jaxtune.models import hf
from jaxtune.runs import baseline
from jaxtune.training import checkpoint

CONFIG = """
from ml_collections import ConfigDict

def get_config(rank="2"):
  config = ConfigDict()
  config.model = ConfigDict({{"path": "{folder}/base"}})
  config.data = ConfigDict({{
    "train": "{folder}/train.jsonl",
    "validation": "{folder}/validation.jsonl",
    "test": "{folder}/test.jsonl",
  }})
  config.method = ConfigDict({{"name": "lora", "rank": int(rank)}})
  config.train = ConfigDict({{"steps": 2, "batch_size": 2, "mesh": {{"data": 1}}}})
  config.evaluate = ConfigDict({{"batch_size": 2, "max_new_tokens": 3}})
  config.sweep = ({{"method.rank": [1, 2]}},)
  return config
"""


def rows(first: int, count: int) -> str:
  made = [{"prompt": f"a{i} b{i} :", "completion": f" b{i}"} for i in range(first, first + count)]
  return "".join(json.dumps(row) + "\n" for row in made)


@pytest.fixture(scope="session")
def place(tmp_path_factory):
  """A folder with a base, its tokenizer, data and a config file."""
  folder = tmp_path_factory.mktemp("place")
  words = ["<pad>", "</s>", "<unk>", ":", *(f"{x}{i}" for x in "ab" for i in range(20))]
  backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
  backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=backend, eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
  )
  pretrained = tiny.make("llama")._replace(tokenizer=tokenizer)
  hf.save(pretrained, pretrained.params, folder / "base")
  for name, first, count in (("train", 0, 12), ("validation", 12, 4), ("test", 16, 4)):
    (folder / f"{name}.jsonl").write_text(rows(first, count))
  (folder / "config.py").write_text(CONFIG.format(folder=folder))
  return folder


@pytest.fixture(scope="session")
def trained(place):
  assert main(["train", "--config", f"{place}/config.py", "--workdir", f"{place}/run"]) == 0
  return place / "run"


def contents(folder):
  return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def fails(capsys, *arguments) -> str:
  """Runs a command that must end with code 2 and one line, which is returned."""
  capsys.readouterr()
  assert main(list(map(str, arguments))) == 2
  lines = capsys.readouterr().err.strip().splitlines()
  assert len(lines) == 1 and lines[0].startswith("jaxtune: "), lines
  return lines[0]


def test_an_experiment_from_end_to_end(place, trained, capsys, tmp_path):
  say = lambda *arguments: (main(list(map(str, arguments))), capsys.readouterr().out)
  assert {"config.json", "metrics.jsonl", "result.json", "tuned.safetensors"} <= {
    path.name for path in trained.iterdir()
  }
  code, out = say("evaluate", "--workdir", trained, "--config.evaluate.generate=True")
  assert code == 0 and "test_loss" in out and "test_bleu" in out
  saved = json.loads((trained / "result.json").read_text())
  for line in out.splitlines():
    name, untuned, tuned = line.split()
    if name in saved["final"]:
      assert float(tuned) == pytest.approx(saved["final"][name], abs=1e-3)
      assert float(untuned) == pytest.approx(saved["base"][name], abs=1e-3)

  prompts, short = ["--prompt", "a3 b3 :", "--prompt", "a5 :"], ["--max-new-tokens", 3]
  code, out = say("generate", "--workdir", trained, *short, *prompts)
  assert code == 0
  found = [json.loads(line) for line in out.splitlines()]
  assert [row["prompt"] for row in found] == ["a3 b3 :", "a5 :"] and "completion" in found[0]

  code, out = say("export", "--workdir", trained, "--out", tmp_path / "adapter")
  assert code == 0 and (tmp_path / "adapter" / "adapter_config.json").exists()
  code, out = say("plan", "--config", f"{place}/config.py:4")
  assert code == 0 and "q_proj" in out and "GFLOP" in out and "2 trials" in out

  code, out = say("sweep", "--config", f"{place}/config.py", "--workdir", tmp_path / "sweep")
  assert code == 0 and "rank" in out
  assert {"results.csv", "report.md", "report.html", "plots", "trials"} <= {
    path.name for path in (tmp_path / "sweep").iterdir()
  }
  code, out = say("generate", "--workdir", tmp_path / "sweep", "--prompt", "a3 :", *short)
  assert code == 0, "a sweep's best trial speaks for it"


@pytest.mark.full
def test_overrides_reach_the_run(place, tmp_path):
  overrides = [
    "--config.method.targets=('o_proj',)", "--config.optim.clip=None", "--config.model.remat=True",
    "--config.optim.schedule=cosine", "--config.train.steps=1",
  ]  # fmt: skip
  config = f"{place}/config.py:1"
  assert main(["train", "--config", config, "--workdir", str(tmp_path), *overrides]) == 0
  full = json.loads((tmp_path / "config.json").read_text())
  assert full["method"]["rank"] == 1 and full["method"]["targets"] == ["o_proj"]
  assert full["optim"]["clip"] is None and full["optim"]["schedule"] == "cosine"
  assert full["model"]["remat"] is True and full["train"]["steps"] == 1


@pytest.mark.parametrize(
  ("override", "says"),
  [
    ("optim.lerning_rate=1", "did you mean 'learning_rate'"),
    ("optimizer.name=lion", "unknown config section 'optimizer'; did you mean 'optim'"),
    ("method.name=lorra", "unknown method 'lorra'; did you mean 'lora'"),
    ("method.rank=two", "method.rank is 'two' (str), expected int"),
    ("method.rank=0", "method.rank is 0 (int), expected at least 1"),
    ("method.rank=33", "expected at most 32"),
    ("method.targets=['q_prj']", "target 'q_prj' hits no Linear or Embed site; did you mean"),
    ("method={'name': 'prefix', 'length': 60}", "exceed the model's 64 positions"),
    ("method={'name': 'adapter', 'width': 33}", "expected at most the model's width 32"),
    ("data.train={place}/tran.jsonl", "did you mean 'train.jsonl'"),
    ("data.train={place}/empty.jsonl", "empty.jsonl holds no rows"),
    ("data.train={place}/malformed.jsonl", "malformed.jsonl:2: malformed JSON"),
    (
      "data.train={place}/column.jsonl",
      "column.jsonl: no known format in the columns question, reply",
    ),
    ("data.train={place}/gap.jsonl", "gap.jsonl:3"),
    ("data.validation=0.0001", "validation split is empty"),
    ("data.test={place}/train.jsonl", "12 examples of train are in test too"),
    ("data.max_length=2", "max_length=2"),
    ("model.path={place}/nothing", "nothing', which is not a folder"),
    ("model.path={place}", "is not a model folder"),
    ("model.path={place}/truncated", "is damaged or truncated"),
    ("model.path=nobody/nothing", "check the spelling and the network"),
    ("model.dtype=float16", "model.dtype is 'float16' (str), expected 'float32' or 'bfloat16'"),
    ("train.batch_size=0", "train.batch_size is 0"),
    ("train.mesh={'data': 4}", "do not divide over 4 devices"),
    ("train.mesh={'data': 8}", "the number of devices is 4, expected 8"),
    ("train.patience=0", "train.patience is 0"),
    ("seed.x=1", "config key seed is {'x': 1} (dict), expected int"),
  ],
)
def test_bad_input(place, tmp_path, capsys, monkeypatch, override, says):
  judges = lambda *_: pytest.fail("the base is judged before everything is checked")
  monkeypatch.setattr(baseline, "evaluate_bases", judges)
  (place / "empty.jsonl").write_text("")
  (place / "malformed.jsonl").write_text(rows(0, 1) + '{"prompt": "a1 :", \n')
  (place / "column.jsonl").write_text('{"question": "a1", "reply": "b1"}\n')
  (place / "gap.jsonl").write_text(rows(0, 2) + '{"prompt": "a1 :"}\n')
  if not (place / "truncated").exists():
    shutil.copytree(place / "base", place / "truncated")
    weights = place / "truncated" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
  workdir = tmp_path / "run"
  for command in ("train", "sweep"):
    if command == "sweep" and override.startswith(("method.rank=", "method=")):
      continue  # the axis replaces it
    line = fails(
      capsys, command, "--config", place / "config.py", "--workdir", workdir,
      "--config." + override.replace("{place}", str(place)),
    )  # fmt: skip
    assert says in line
    assert not workdir.exists(), "nothing is written before everything is checked"


def test_arguments_that_are_none(place, tmp_path, capsys):
  config = ["--config", place / "config.py"]
  assert "config.py" in fails(capsys, "plan", "--config", place / "confg.py")
  assert "unknown argument" in fails(capsys, "plan", *config, "--configg.seed=1")
  assert "unknown argument" in fails(capsys, "generate", "--workdir", ".", "--prompt", "a", "--x")
  assert "required: COMMAND (`jaxtune --help`" in fails(capsys)
  assert "unknown command 'trian'; did you mean 'train'" in fails(capsys, "trian")
  told = fails(capsys, "generate", "--workdir", ".", "--prompt", "a", "--max-new-token", "5")
  assert "'--max-new-token'; did you mean '--max-new-tokens'" in told
  assert "required: --config, --workdir (`jaxtune train --help`" in fails(capsys, "train")
  assert "top-k: invalid int value" in fails(
    capsys, "generate", "--workdir", ".", "--top-k", "9" * 10**5
  )
  assert "'\\udc80' is not UTF-8 text" in fails(capsys, "plan", *config, "\udc80")


def test_what_ends_a_command(monkeypatch, capsys):
  def raising(error):
    def text(*_):
      raise error

    return text

  monkeypatch.setattr(os, "dup2", lambda *_: None)
  monkeypatch.setattr(sys.stdout, "fileno", lambda: 1)
  for error, code, says in (
    (KeyboardInterrupt(), 130, "jaxtune: interrupted\n"),
    (UserError("two\nlines"), 2, "jaxtune: two lines\n"),
    (MemoryError(), 2, "jaxtune: out of memory: try a smaller batch_size\n"),
    (
      PermissionError(13, "Permission denied", "/home/a/b"),
      2,
      "jaxtune: /home/a/b: Permission denied\n",
    ),
    (BrokenPipeError(), 0, ""),  # as of `jaxtune methods | head -1`
    (
      RuntimeError("RESOURCE_EXHAUSTED: no room\nin HBM"),
      2,
      "jaxtune: out of memory (RESOURCE_EXHAUSTED: no room): try a smaller batch_size\n",
    ),
  ):
    monkeypatch.setattr("jaxtune.api.methods.text", raising(error))
    assert (main(["methods"]), capsys.readouterr().err) == (code, says)
  monkeypatch.setattr(jaxtune, "load_config", raising(KeyboardInterrupt()), raising=False)
  assert main(["train", "--config", "x", "--workdir", "y"]) == 130
  assert "the same command goes on from the last checkpoint" in capsys.readouterr().err
  for bug in (ZeroDivisionError(), OSError(5, "Input/output error")):  # of no file
    monkeypatch.setattr("jaxtune.api.methods.text", raising(bug))
    with pytest.raises(type(bug)):  # a bug of jaxtune keeps its traceback
      main(["methods"])


@pytest.mark.full
def test_no_command_loads_what_it_does_not_need(place):
  """PyTorch, scikit-learn and matplotlib take seconds each."""
  heavy = {"torch", "sklearn", "matplotlib", "orbax", "nltk", "scipy.stats", "datasets", "pandas"}
  code = "import sys; from jaxtune.main import main; main(sys.argv[1:]); "
  code += f"print({heavy} & sys.modules.keys())"
  for command in (["data", "show", "--config", f"{place}/config.py"], ["methods"]):
    ran = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True)
    assert ran.stdout.splitlines()[-1] == "set()", ran


@pytest.mark.full
def test_a_workdir_of_another_config_or_base_is_refused(place, trained, tmp_path, capsys):
  before = contents(trained)
  command = ["train", "--config", place / "config.py", "--workdir", trained]
  line = fails(capsys, *command, "--config.optim.learning_rate=0.5")
  assert "optim.learning_rate was 0.001, is now 0.5" in line and "--workdir" in line
  base = place / "base" / "model.safetensors"
  kept = base.read_bytes()
  try:
    base.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    assert "checkpoint of another base" in fails(capsys, *command)
    assert "other base weights" in fails(capsys, "evaluate", "--workdir", trained)
  finally:
    base.write_bytes(kept)
  assert contents(trained) == before


def test_a_finished_run_and_what_is_asked_of_it(place, trained, tmp_path, capsys):
  go = lambda *rest: fails(capsys, "generate", "--workdir", trained, *rest)
  assert "exceed the model's 64 positions" in go("--prompt", "a1 " * 20, "--max-new-tokens", 50)
  assert "prompt is empty" in go("--prompt", "")
  assert "top_k is 0" in go("--prompt", "a1", "--top-k", 0)
  assert "temperature is -1.0" in go("--prompt", "a1", "--temperature", -1)
  assert "--prompt TEXT or --row JSON" in go()
  assert "--row is [3] (list), expected dict" in go("--row", "[3]")
  assert "--row: JSON nested too deeply" in go("--row", '{"a":' * 100_000)
  assert "--row: JSON that cannot be read" in go("--row", f'{{"a": {"1" * 5000}}}')
  assert "--row: half a surrogate pair" in go("--row", '{"prompt": "\\ud800"}')
  assert "--row: malformed JSON at column 2" in go("--row", "{")
  assert "column 'prompt' is missing; the row has no columns" in go("--row", "{}")
  assert "temperature is nan" in go("--prompt", "a1", "--temperature", "nan")
  assert "max_new_tokens is -1" in go("--prompt", "a1", "--max-new-tokens", "-1")
  assert "seed is -1" in go("--prompt", "a1", "--seed", "-1")
  evaluate = lambda *rest: fails(capsys, "evaluate", "--workdir", trained, *rest)
  assert "only data and evaluate" in evaluate("--config.method.rank=4")
  assert "missing.jsonl" in evaluate(f"--config.data.test={place}/missing.jsonl")
  assert "did you mean 'bleu'" in evaluate(
    "--config.evaluate.generate=True", "--config.evaluate.metrics=['blue']"
  )
  export = lambda *rest: fails(
    capsys, "export", "--workdir", trained, "--out", tmp_path / "e", *rest
  )
  assert "unknown export format 'pef'" in export("--format", "pef")
  assert "dtype" in export("--format", "merged", "--dtype", "float16")
  assert not (tmp_path / "e").exists()


def test_options_are_checked_before_a_model_is_loaded(place, tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(hf, "load", lambda *_, **__: pytest.fail("a model is loaded"))
  new = ["--out", tmp_path / "new"]
  export = lambda *rest: fails(capsys, "export", "--workdir", tmp_path, *new, *rest)
  assert "unknown export format 'pfet'; did you mean 'peft'" in export("--format", "pfet")
  assert "unknown dtype 'bf16'; did you mean 'bfloat16'" in export("--dtype", "bf16")
  compose = lambda *rest: fails(capsys, "compose", "--run", tmp_path, *new, *rest)
  assert "how is 'tie' (str), expected" in (line := compose("--how", "tie"))
  assert "did you mean 'ties'" in line
  assert "'ties' needs a rank" in compose("--how", "ties")
  assert "'cat' takes no rank" in compose("--how", "cat", "--rank", 2)
  (tmp_path / "run" / "rank=2").mkdir(parents=True)
  (tmp_path / "run" / "rank=2" / "tuned.safetensors").touch()
  (tmp_path / "run" / "result.json").touch()
  run, taken = ["--workdir", tmp_path / "run"], ["--out", tmp_path / "run"]
  both = ["--run", tmp_path / "run"] * 2
  for says, *command in (
    ("top_p is 7.0", "generate", *run, "--prompt", "a", "--top-p", 7),
    ("which is [9]", "generate", *run, "--prompt", "a", "--which", 9),
    ("ranks[0] is 0", "ranks", *run, "--rank", 0),
    ("rank=2 holds a run already", "ranks", *run, "--rank", 2, *taken),
    ("run holds a run already", "compose", *both, "--how", "cat", *taken),
    ("which no export wrote", "export", *run, *taken, "--certify"),
    *(("only data and evaluate", *command, *run, "--config.method.rank=2")
      for command in (["evaluate"], ["knockout"], ["ranks", "--rank", 1])),
  ):  # fmt: skip
    assert says in fails(capsys, *command)
  config = ["--config", place / "config.py", *new]
  assert "typo is no adapter" in fails(capsys, "import", *config, "--adapter", tmp_path / "typo")
  line = fails(capsys, "extract", *config, "--checkpoint", tmp_path / "typo", "--rank", 2)
  assert "typo', expected the folder of a fine-tuned model" in line


def test_a_folder_that_is_no_run(trained, tmp_path, capsys):
  for command in (["evaluate"], ["generate", "--prompt", "a"], ["export", "--out", tmp_path / "e"]):
    assert "no finished run" in fails(capsys, *command, "--workdir", tmp_path / "nothing")
  shutil.copytree(trained, tmp_path / "cut")
  file = tmp_path / "cut" / "tuned.safetensors"
  file.write_bytes(file.read_bytes()[:-10])
  assert "is damaged" in fails(capsys, "evaluate", "--workdir", tmp_path / "cut")


def test_prompts_that_no_model_reads(trained):
  run = jaxtune.load_run(trained)
  few = dataclasses.replace(run.pretrained.model.config, vocabulary=3)
  model = run.pretrained.model.clone(config=few)
  short = run._replace(pretrained=run.pretrained._replace(model=model))
  for one, prompts, says in (
    (run, [], "a prompt is empty, or there is none"),
    (run, ["\ud800"], "the prompt '.ud800' holds half a surrogate pair"),
    (run, [{"instruction": "\ud800"}], "half a surrogate pair"),
    (run, [{"messages": [{"role": "user", "content": "\ud800"}]}], "half a surrogate pair"),
    (short, ["a1 b1"], "prompt 1: the token .* and the model has embeddings for 3 tokens"),
  ):
    with pytest.raises(UserError, match=says):
      jaxtune.complete(one, prompts)


@pytest.mark.full
def test_a_row_is_read_by_the_template_of_its_task(trained):
  """Of a mixture of files, whose top-level template belongs to no task."""
  plain = jaxtune.load_run(trained)
  tasks = {name: {"template": f"{name}9 {{{{ x }}}} :", "answer": "y"} for name in "ab"}
  config = plain.config | {"data": plain.config["data"] | {"tasks": tasks}}
  run, rows = plain._replace(config=config), [{"x": "c1"}]
  said = lambda run, prompt, **task: jaxtune.complete(run, prompt, max_new_tokens=4, **task)
  for name in "ab":
    assert said(run, rows, task=name) == said(plain, [f"{name}9 c1 :"])
  assert said(run, rows, task="a") != said(run, rows, task="b")
  for given, task, says in (
    (run, None, "say by task which: a, b"),
    (run, "c", "task is 'c', which .* does not have; valid choices: a, b"),
    (plain, "a", "was not trained on data.tasks of files"),
  ):
    with pytest.raises(UserError, match=says):
      said(given, rows, task=task)


def test_what_ends_an_answer_is_what_training_taught(trained, tmp_path):
  """Neither other data nor an adapter beside it make a run forget its stop tokens."""
  run = jaxtune.load_run(trained)
  talker = run._replace(stop_tokens=(1, 3))
  trial = evaluate._trial(talker, {})
  assert run.stop_tokens == (1,) and trial.dataset.stop_tokens == (1, 3)
  jaxtune.compose_runs([run, talker], tmp_path / "both", "average")
  assert jaxtune.load_run(tmp_path / "both").stop_tokens == (1, 3)


def test_what_ended_the_training_early_needs_no_data_to_judge_a_run(trained):
  run = jaxtune.load_run(trained)
  stops = {"train": {"patience": 1}, "search": {"early_exit": "median"}}
  early = run.config | {name: run.config[name] | more for name, more in stops.items()}
  trial = evaluate._trial(run._replace(config=early), {"data.validation": None})
  assert trial.dataset.validation is None and trial.dataset.test is not None


def test_data_are_shown_where_a_learning_rate_is_to_be_chosen(place, capsys):
  rate = "--config.optim.learning_rate={'tune': [1e-3, 1e-2]}"
  assert main(["data", "show", "--config", f"{place}/config.py", rate]) == 0
  assert "== train ==" in capsys.readouterr().out


@pytest.fixture
def full_disk():
  """Limits the size of files, from a call on: to the writer, a disk that is full."""
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
  resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.full
@pytest.mark.parametrize("moment", ["checkpoint", "metrics", "result"])
def test_a_full_disk_ends_in_one_line(place, tmp_path, capsys, monkeypatch, full_disk, moment):
  save, saves = checkpoint.Checkpoints.save, []
  size = {"checkpoint": 4000, "metrics": 200, "result": 600}[moment]

  def watched(self, step, *rest):
    saves.append(step)
    if moment == "checkpoint" and step == 2 and saves.count(2) == 1:
      full_disk(size)
    save(self, step, *rest)
    if (moment, step) in (("metrics", 1), ("result", 2)) and saves.count(step) == 1:
      full_disk(size)

  monkeypatch.setattr(checkpoint.Checkpoints, "save", watched)
  command = [
    "train", "--config", place / "config.py", "--workdir", tmp_path,
    "--config.train.checkpoint_every=1", "--config.train.log_every=1",
  ]  # fmt: skip
  line = fails(capsys, *command)
  assert "cannot write" in line and "File too large" in line and str(tmp_path) in line
  full_disk(resource.RLIM_INFINITY)
  steps = {"checkpoint": ["1"], "metrics": ["1"], "result": ["1", "2"]}[moment]
  assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()) == steps
  assert not (tmp_path / "result.json").exists()
  assert main(list(map(str, command))) == 0, "and goes on from there"
  assert saves.count(1) == 1


@pytest.mark.full
def test_a_training_that_diverged_is_no_success(place, tmp_path, capsys):
  command = ["train", "--config", place / "config.py", "--workdir", tmp_path]
  changes = ["--config.optim.learning_rate=1e30", "--config.train.steps=3"]
  assert main([*map(str, command), *changes]) == 1
  assert json.loads((tmp_path / "result.json").read_text())["diverged_at"] == 1
  assert "jaxtune: training diverged: not finite at step" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_read(tmp_path, capsys):
  (tmp_path / "file").write_text("")
  config, out = ["--config", tmp_path / "none.py"], ["--out", tmp_path / "file" / "run"]
  for command in (
    ["train", *config, "--workdir", tmp_path / "file"],
    ["sweep", *config, "--workdir", tmp_path / "file"],
    ["export", "--workdir", tmp_path / "none", *out],
    ["import", *config, "--adapter", tmp_path, *out],
    ["compose", "--run", tmp_path / "none", "--how", "stack", *out],
    ["extract", *config, "--checkpoint", tmp_path, "--rank", 1, *out],
    ["ranks", "--workdir", tmp_path / "none", "--rank", 1, *out],
  ):
    assert "file is not a folder" in fails(capsys, *command)
