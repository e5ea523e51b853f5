"""Answers of runs for people to judge, and votes for training."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import pytest
from support import feedback_server, folders

import jaxtune
from jaxtune import peft
from jaxtune.api import answers
from jaxtune.assets import TINY
from jaxtune.data import DataOptions, sources
from jaxtune.data.encode import pairs
from jaxtune.errors import UserError
from jaxtune.evaluation.votes import order, server, store, voting
from jaxtune.main import main

PROMPTS = [{"prompt": f"a{n} b{n} :"} for n in range(6)]
GIVEN = [
  {"prompt": f"Is {n} even? ", "answer_a": "yes, it is", "answer_b": f"no, {n}"} for n in range(8)
]


class Stop(Exception):
  """Ends a server before its first request."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """A folder with two runs over one base."""
  folder = tmp_path_factory.mktemp("runs")
  base = folders.base(folder, "llama")
  rows = [{"prompt": f"a{n} b{n} :", "completion": f" c{n}"} for n in range(8)]
  data = {"train": folders.write(folder, "train.jsonl", rows)}
  for name, seed in (("one", 0), ("two", 1)):
    config = folders.config(base, data, seed=seed, optim={"learning_rate": 0.3})
    jaxtune.fit(config, folder / name)
  return folder


@pytest.fixture
def prompts(tmp_path):
  return folders.write(tmp_path, "prompts.jsonl", PROMPTS)


@pytest.fixture
def given(tmp_path):
  return folders.write(tmp_path, "given.jsonl", GIVEN)


def serve(workdirs, prompts, out, **options):
  """Starts the command and ends it before it answers; returns what is to be judged."""
  found = []

  def ready(address, project):
    found.append(project)
    raise Stop(address)

  with pytest.raises(Stop):
    jaxtune.feedback(workdirs, prompts, out, port=0, ready=ready, **options)
  return found[0]


def judge(out, *votes):
  """Keeps votes of (rater, pair, choice of a source, reason)."""
  with store.opened(out / store.NAME) as opened:
    for rater, pair, choice, reason in votes:
      voting.join(opened, rater)
      left = order.left(opened.project.seed, rater, pair)
      side = {"a": "left", "b": "right"} if left == "a" else {"a": "right", "b": "left"}
      voting.vote(opened, rater, pair, side.get(choice, choice), reason)


def test_answers_are_those_of_the_runs_and_made_once(place, tmp_path, monkeypatch):
  long, blank = " ".join(["a1"] * 60), "  "
  rows = [*PROMPTS, {"prompt": long}, {"prompt": blank}]
  prompts, dirs = folders.write(tmp_path, "more.jsonl", rows), [place / "one", place / "two"]
  options = dict(max_new_tokens=8, temperature=1.0, seed=5)
  project = serve(dirs, prompts, tmp_path / "votes", **options)
  assert project.names == (str(dirs[0]), str(dirs[1]))
  texts = [row["prompt"] for row in PROMPTS]
  first, second = (
    jaxtune.complete(jaxtune.load_run(one), texts, **options | {"seed": seed})
    for one, seed in zip(dirs, (5, 6), strict=True)
  )
  same = sum(a.strip() == b.strip() for a, b in zip(first, second, strict=True))
  assert [pair.answers for pair in project.pairs] == [
    two for two in zip(first, second, strict=True) if two[0].strip() != two[1].strip()
  ]
  assert project.pairs[0].place == f"{prompts}:1"
  expected = {"empty prompts": 1, "too long for the model": 1, "identical answers": same}
  assert project.skipped == {reason: count for reason, count in expected.items() if count}

  monkeypatch.setattr(answers, "complete", lambda *_, **__: pytest.fail("generated again"))
  assert serve(dirs, prompts, tmp_path / "votes", **options) == project
  assert serve([], None, tmp_path / "votes") == project
  for other, said in (
    ({"max_new_tokens": 9}, "max_new_tokens is 8, here 9"),
    ({"seed": 6}, "seed"),
  ):
    with pytest.raises(UserError, match=said):
      jaxtune.feedback(dirs, prompts, tmp_path / "votes", port=0, **options | other)
  with pytest.raises(UserError, match="other answers: its first run is"):
    jaxtune.feedback(dirs[::-1], prompts, tmp_path / "votes", **options)


def test_one_run_is_compared_with_its_base(place, prompts, tmp_path):
  project = serve([place / "one"], prompts, tmp_path / "votes", max_new_tokens=6)
  run = jaxtune.load_run(place / "one")
  base = run._replace(adapted=peft.untuned(run.pretrained.params))
  untuned = jaxtune.complete(base, PROMPTS, max_new_tokens=6)
  assert project.names == (str(place / "one"), "the untuned base")
  assert {pair.answers[1] for pair in project.pairs} <= set(untuned)
  tuned = jaxtune.complete(run, PROMPTS, max_new_tokens=6)
  assert {pair.answers[0] for pair in project.pairs} <= set(tuned) and tuned != untuned


@pytest.mark.parametrize("task", [None, "asked"])
def test_both_runs_are_asked_the_texts_of_the_first(
  place, prompts, tmp_path, monkeypatch, capsys, task
):
  """A run that is trained on votes, which hold the texts, has no template to write them by."""
  trained, plain = (jaxtune.load_run(place / name) for name in ("one", "two"))
  own = {"template": "c1 {{prompt}}"}
  own = {"tasks": {task: own}} if task else own
  templated = trained.config | {"data": trained.config["data"] | own}
  trained = trained._replace(folder=tmp_path / "one")  # without a result, which has its template
  loaded = [trained._replace(config=templated), plain]
  monkeypatch.setattr(answers, "_load", lambda _: (loaded, ("one", "two")))
  options = {"max_new_tokens": 6, "task": task}
  project = serve([place / "one", place / "two"], prompts, tmp_path / "votes", **options)
  texts = [f"c1 {row['prompt']}" for row in PROMPTS]
  made = [jaxtune.complete(run, texts, max_new_tokens=6) for run in loaded]
  by_prompt = dict(zip(texts, zip(*made, strict=True), strict=True))
  assert project.pairs and all(by_prompt[one.prompt] == one.answers for one in project.pairs)
  assert re.search(
    r"such as 'c1 a0 b0 :', which .*two would write 'a0 b0 :'", capsys.readouterr().err
  )
  spoken = [{"messages": [{"role": "user", "content": "a1"}]}]
  by_chat = trained.config["data"] | {"template": "{{messages[0].content}}"}
  loaded[:] = plain, trained._replace(config=templated | {"data": by_chat})
  with pytest.raises(
    UserError, match="two reads conversations by its chat template, and .*/one by"
  ):
    answers._worded(loaded, spoken, None)


def test_two_samples_of_one_run_differ_by_their_seeds(place, tmp_path):
  lines = tmp_path / "lines.txt"
  lines.write_text("".join(f"{row['prompt']}\n\n" for row in PROMPTS))
  with pytest.raises(UserError, match="--temperature above 0"):
    jaxtune.feedback([place / "one"] * 2, lines, tmp_path / "votes")
  # Also where it is named once as the best trial of its sweep.
  (tmp_path / "sweep" / "trials").mkdir(parents=True)
  (tmp_path / "sweep" / "trials" / "x").symlink_to(place / "one")
  with pytest.raises(UserError, match="--temperature above 0"):
    jaxtune.feedback([place / "one", tmp_path / "sweep"], lines, tmp_path / "votes")
  project = serve([place / "one"] * 2, lines, tmp_path / "votes", temperature=1.0, max_new_tokens=6)
  assert project.names[1] == f"{place / 'one'}, sample 2"
  assert project.pairs[0].prompt == PROMPTS[0]["prompt"]


def test_mistakes_are_said_before_anything_is_generated(place, prompts, tmp_path, monkeypatch):
  monkeypatch.setattr(answers, "complete", lambda *_, **__: pytest.fail("generated"))
  empty = tmp_path / "empty.txt"
  empty.write_text("\n \n")
  other = folders.write(tmp_path, "other.jsonl", [{"question": "a1"}])
  one, votes = place / "one", tmp_path / "votes"
  for workdirs, file, said in (
    ([one], empty, "empty.txt holds no lines"),
    ([one], tmp_path / "none.txt", "no file"),
    ([one], other, "other.jsonl: row 0: column 'prompt' is missing"),
    ([], prompts, r"prompts.jsonl:1: .*'answer_a'"),
    ([one] * 3, prompts, "3 times"),
    ([one], None, "--prompts FILE"),
    ([], None, "--prompts FILE"),
  ):
    with pytest.raises(UserError, match=said):
      jaxtune.feedback(workdirs, file, votes, max_new_tokens=6)
  with pytest.raises(UserError, match="top_k is 1000000, expected at most the vocabulary's"):
    jaxtune.feedback([one, place / "two"], prompts, votes, max_new_tokens=6, top_k=10**6)
  with monkeypatch.context() as patch:
    patch.setattr(answers, "make", lambda *_: pytest.fail("loaded"))
    with pytest.raises(UserError, match="temperature is -1"):
      jaxtune.feedback([one], prompts, votes, temperature=-1.0)
  with pytest.raises(UserError, match="max_new_tokens is 64, expected fewer than the 64 pos"):
    jaxtune.feedback([one], prompts, votes)
  same = folders.write(tmp_path, "same.jsonl", [GIVEN[0] | {"answer_b": " yes, it is\n"}])
  with pytest.raises(UserError, match="no pair of answers is left .* of 1 prompts 1 identical"):
    jaxtune.feedback([], same, votes)
  run = jaxtune.load_run(one)
  classifier = run._replace(config=run.config | {"objective": {"name": "classify"}})
  monkeypatch.setattr(answers, "load_run", lambda *_: classifier)
  with pytest.raises(UserError, match="trained for classify: it writes no text"):
    jaxtune.feedback([one], prompts, votes)
  assert not votes.exists()


def test_a_second_server_is_refused_and_a_dead_one_holds_nothing(given, tmp_path):
  first = feedback_server.Server(tmp_path, given)
  with pytest.raises(UserError, match="votes is in use by process"):
    jaxtune.feedback([], given, tmp_path / "votes", port=0)
  assert jaxtune.vote_results(tmp_path / "votes")["pairs"] == 8, "reading needs no lock"
  first.kill()
  serve([], given, tmp_path / "votes")


def test_a_missing_package_is_named(given, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "waitress" else name)
  assert main(["feedback", "--prompts", given, "--out", str(tmp_path / "votes")]) == 2
  said = capsys.readouterr().err
  assert said.count("\n") == 1 and "pip install 'jaxtune[feedback]'" in said


def test_exports_hold_choices_and_count_the_rest(tmp_path, given, capsys):
  rows = [*GIVEN, {"prompt": "Quiet?", "answer_a": "yes", "answer_b": ""}]
  given, out = folders.write(tmp_path, "nine.jsonl", rows), tmp_path / "votes"
  serve([], given, out)
  file = tmp_path / "deep" / "votes.jsonl"
  with pytest.raises(UserError, match="no vote to export"):
    jaxtune.export_votes(file, out)
  judge(out, ("x", 1, "a", "kürzer"), ("x", 2, "tie", ""), ("x", 3, "skip", ""), ("x", 9, "a", ""))
  judge(out, ("y", 1, "b", ""))
  assert main(["feedback", "--out", str(out), "--results", "--export", str(file)]) == 0
  printed = capsys.readouterr().out
  assert "left out: 1 ties, 1 skips, 1 beside an empty answer" in printed
  assert "Cohen's kappa" in printed and "62.5 % [" in printed, "2 wins, a tie and a loss"
  read = [json.loads(line) for line in file.read_text().splitlines()]
  first = {"prompt": "Is 0 even? ", "chosen": "yes, it is", "rejected": "no, 0", "pair": 1}
  assert read[0] == first | {"rater": "x", "reason": "kürzer"}
  assert read[1] == first | {
    "chosen": "no, 0", "rejected": "yes, it is", "rater": "y", "reason": "",
  }  # fmt: skip
  assert jaxtune.export_votes(file, out, everything=True)["written"] == 5
  read = [json.loads(line) for line in file.read_text().splitlines()]
  assert [row["choice"] for row in read] == ["a", "tie", "skip", "a", "b"]
  assert serve([], file, tmp_path / "again").pairs[0].prompt == "Is 0 even? "


CONFIG = """
from ml_collections import ConfigDict

def get_config():
  return ConfigDict({{
    "model": {{"path": "{model}"}},
    "data": {{"validation": 0.25, "max_length": 64, "template": "Once more {{{{prompt}}}}"}},
    "method": {{"name": "lora", "rank": 2}},
    "optim": {{"learning_rate": 1e-2, "warmup": 0}},
    "train": {{"steps": 12, "batch_size": 4, "mesh": {{"data": 1}}}},
    "evaluate": {{"batch_size": 2, "resamples": 20}},
  }})
"""


def test_votes_train_a_reward_model_in_one_command(given, tmp_path, capsys):
  out, file, run = tmp_path / "votes", tmp_path / "votes.jsonl", tmp_path / "run"
  serve([], given, out)
  judge(out, *(("x", n, "a", "it says yes") for n in range(1, 9)))
  assert main(["feedback", "--out", str(out), "--export", str(file)]) == 0
  (tmp_path / "reward.py").write_text(CONFIG.format(model=TINY))
  command = ["train", "--config", str(tmp_path / "reward.py"), "--workdir", str(run)]
  assert "train on them with --config.data.template=None" in capsys.readouterr().out
  command += [f"--config.data.train={file}", "--config.objective.name=reward"]
  command += ["--config.data.template=None"]
  assert main(command) == 0, capsys.readouterr().err
  result = json.loads((run / "result.json").read_text())
  config = json.loads((run / "config.json").read_text())
  assert config["data"]["template"] is None
  assert sum(result["data"]["splits"][name]["read"] for name in ("train", "validation")) == 8
  assert result["final"]["validation_accuracy"] == 100, "it says yes on prompts it has not seen"
  assert result["final"]["validation_margin"] > result["base"]["validation_margin"] + 1


def test_conversations_are_answered_and_exported_as_turns(place, tmp_path, monkeypatch):
  template = "{% for m in messages %}{{ m.content }} {% endfor %}:"
  run = jaxtune.load_run(place / "one")
  spoken = run._replace(
    config=run.config | {"data": run.config["data"] | {"chat_template": template}}
  )
  monkeypatch.setattr(answers, "load_run", lambda *_: spoken)
  calls = [{"type": "function", "function": {"name": "look", "arguments": {"at": "c1"}}}]
  turns = [
    {"role": "user", "content": "a1 b1"},
    {"role": "assistant", "content": "", "tool_calls": calls},
    {"role": "tool", "content": "c1"},
  ]
  tools = [{"type": "function", "function": {"name": "look", "parameters": {}}}]
  rows = folders.write(tmp_path, "chat.jsonl", [{"messages": turns, "tools": tools}])
  (pair,) = serve([place / "one"], rows, tmp_path, max_new_tokens=6).pairs
  assert pair.prompt == f"user: a1 b1\n\nassistant: {calls}\n\ntool: c1"
  assert pair.answers[0] == jaxtune.complete(run, ["a1 b1  c1 :"], max_new_tokens=6)[0]
  judge(tmp_path, ("x", 1, "b", ""))
  jaxtune.export_votes(tmp_path / "votes.jsonl", tmp_path)
  row = json.loads((tmp_path / "votes.jsonl").read_text())
  answered = lambda text: [{"role": "assistant", "content": text}]
  expected = turns, answered(pair.answers[1]), answered(pair.answers[0]), tools
  assert (row["prompt"], row["chosen"], row["rejected"], row["tools"]) == expected
  file = str(tmp_path / "votes.jsonl")
  read = pairs.read(sources.read(file), "train", DataOptions(train=file))
  ((example,),) = read.groups
  assert example.choices == pair.answers[::-1] and example.conversation
  assert example.row["chosen"]["tools"] == tools
  assert store._row(json.dumps(turns)) == {"messages": turns}, "as older versions wrote it"


def test_the_command_says_where_the_page_is(given, tmp_path, capsys, monkeypatch):
  ended = SimpleNamespace(effective_port="8765", run=lambda: None)
  monkeypatch.setattr(server, "listen", lambda *_: ended)
  command = ["feedback", "--prompts", given, "--out", str(tmp_path / "votes")]
  assert main(command) == 0
  printed, warned = capsys.readouterr()
  assert "8 pairs to judge" in printed and warned == ""
  assert re.search(r"judge at http://127.0.0.1:8765/\?token=[\w-]{32}\n", printed)
  assert main([*command, "--host", "0.0.0.0"]) == 0
  assert "warning: whoever reaches 0.0.0.0" in capsys.readouterr().err
  assert main([*command, "--all"]) == 2 and main([*command, "--port", "70000"]) == 2
