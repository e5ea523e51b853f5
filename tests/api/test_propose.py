"""A sweep that is made of a data file alone: what is guessed and said, and the whole command."""

import json

import pytest
from support import folders, tiny

import jaxtune
from jaxtune.api import columns
from jaxtune.data import sources
from jaxtune.errors import UserError
from jaxtune.main import main
from jaxtune.models import hf

LABELLED = {"text": "text", "label": "label"}
SMALL = [
  "--ranks",
  "1,2",
  "--lengths",
  "3",
  "--rates",
  "1e-3,1e-2",
  "--seeds",
  "0,1",
  "--steps",
  "2",
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """A folder with a tiny base and CSV files."""
  folder = tmp_path_factory.mktemp("place")
  folders.base(folder, "llama")
  rows = [f"a{i % 10} b{i // 10} :,b{i % 7}\n" for i in range(40)]
  (folder / "mine.csv").write_text("question,reply\n" + "".join(rows))
  (folder / "three.csv").write_text("a,b,c\n" + "1,2,3\n" * 20)
  (folder / "pairs.csv").write_text("chosen,rejected\n" + "a,b\n" * 20)
  (folder / "few.csv").write_text("question,reply\n" + "".join(rows[:9]))
  return folder


def table(*rows):
  return sources.Table(list(rows), [], {})


@pytest.mark.parametrize(
  ("rows", "task", "options", "said"),
  [
    ([{"prompt": "a", "completion": "b", "id": 3}], "sft", {}, "'completion'"),
    ([{"instruction": "a", "input": "x", "output": "b"}], "sft", {}, "'instruction' and 'input'"),
    ([{"messages": []}], "sft", {}, "column 'messages'"),
    ([{"text": "a"}], "sft", {}, "without prompts"),
    ([{"my q": "a", "r": "b"}], "sft", {"template": '{{ row["my q"] }}\n', "answer": "r"}, "my q"),
    ([{"text": f"t{i}", "label": i % 2} for i in range(8)], "classify",
     {"rename": LABELLED, "too_long": "truncate"}, "2 classes"),
    ([{"text": f"t{i}", "label": (0.0, 1.0, None)[i % 3]} for i in range(9)], "classify",
     {"rename": LABELLED, "too_long": "truncate"}, "2 classes"),
    ([{"text": "t", "label": 100.0 * i} for i in range(9)], "regression",
     {"rename": LABELLED, "too_long": "truncate"}, "'label'"),
    ([{"text": "t", "label": x} for x in ("1", "2.5", "3")], "regression",
     {"rename": LABELLED, "too_long": "truncate"}, "'label'"),
    ([{"text": "t", "label": f"a whole sentence {i}"} for i in range(8)], "sft",
     {"template": "{{ text }}\n", "answer": "label"}, "'label'"),
    ([{"tokens": ["a"], "ner_tags": ["O"]}], "tokens", {}, "tokens, ner_tags"),
  ],
)  # fmt: skip
def test_what_columns_suggest(rows, task, options, said):
  found = columns.guess(table(*rows), "mine.csv")
  assert (found.task, found.options) == (task, options) and said in str(found.assumed)


@pytest.mark.full
def test_a_page_for_a_csv_file_in_one_command(place, tmp_path, capsys, monkeypatch):
  monkeypatch.chdir(tmp_path)
  command = ["sweep", "--data", f"{place}/mine.csv", "--methods", "lora,prefix", *SMALL]
  command += ["--model", f"{place}/llama", "--config.train.mesh={'data': 1}"]
  command += ["--config.evaluate.generate=False"]
  assert main([*command, "--dry"]) == 0
  assert "6 trials in 2 compiled programs, which differ in method.name" in capsys.readouterr().out
  assert not list(tmp_path.iterdir()), "a dry run writes nothing"
  assert main(command) == 0
  said, workdir = capsys.readouterr().out, tmp_path / "runs" / "mine"
  said = " ".join(said.split())
  for part in (
    "prompt column 'question' (--prompt)", "answer column 'reply' (--answer)",
    "train 32, validation 4, test 4, drawn by a hash", "lora rank 1, lora rank 2, prefix length 3",
    "rates tried lora 0.001, 0.01; prefix 0.001, 0.01", "12 trials",
    "(--methods, --lengths, --ranks), each with the seeds 0, 1 (--seeds)", "(--rates)",
    "updates (--steps)", "(--config.data.validation, --config.data.test)",
  ):  # fmt: skip
    assert part in said, part
  assert "assumed prompt" in (workdir / "report.md").read_text()
  assert "lora" in (workdir / "report.html").read_text()
  done = {path: path.stat().st_mtime_ns for path in workdir.rglob("result.json")}
  assert len(done) == 12 and len(json.loads((workdir / "tuning.json").read_text())) == 3
  again = ["sweep", "--config", f"{workdir}/config.json", "--workdir", str(workdir)]
  assert main(again) == 0, "what it made is a config like any other, and nothing is repeated"
  assert done == {path: path.stat().st_mtime_ns for path in workdir.rglob("result.json")}
  assert main(["report", str(workdir)]) == 0
  assert "assumed prompt" in (workdir / "report.md").read_text(), "also in a report that is rebuilt"


@pytest.mark.parametrize(
  ("options", "says"),
  [
    ({"data": "nine.csv"}, "did you mean 'mine.csv'"),
    ({"data": "few.csv"}, "has 9 rows, expected 10 or more"),
    ({"data": "three.csv"}, "the columns a, b, c, .* --prompt COLUMN and --answer COLUMN"),
    ({"data": "pairs.csv"}, "has pairs of answers, .* objective.name='dpo' .or 'reward'., or name"),
    ({"prompt": "question"}, "--prompt and --answer go together: .* question, reply"),
    ({"prompt": "questin", "answer": "reply"}, "did you mean 'question'"),
    ({"task": "clasify"}, "did you mean 'classify'"),
    ({"methods": ["lorra"]}, "did you mean 'lora'"),
    (
      {"overrides": {"optim.learning_rate": 1.0}},
      "changes no trial, as the sweep has the axis 'op",
    ),
    ({"overrides": {"sweep": ()}}, "--config.sweep is made of --methods"),
    ({"methods": ["stack"]}, "--methods has 'stack', which needs a config"),
    ({"seeds": range(500)}, "trials, more than 1,000"),
    ({"methods": ["prefix"], "ranks": [4]}, "--ranks hits none of the methods prefix"),
    ({"methods": ["compacter"], "ranks": [4]}, "--ranks hits none of .* compacter, whose size is"),
    ({"lengths": [64]}, "--lengths has 64, expected less than the model's 64 positions"),
    ({"steps": 0}, "--steps is 0"),
    ({"ranks": [1000]}, "expected at most 32"),
  ],
)
def test_mistakes_are_named(place, options, says):
  given = {"data": "mine.csv", "model": place / "llama"} | options
  with pytest.raises(UserError, match=says):
    jaxtune.propose(place / given.pop("data"), **given)


@pytest.mark.parametrize(
  ("options", "says"),
  [
    ([], "give --config FILE, or --data FILE"),
    (["--data", "a", "--config", "b"], "give --config FILE, or --data FILE"),
    (["--config", "a.py", "--ranks", "1"], "--ranks goes with --data"),
    (["--config", "a.py", "--device", "v5e"], "--device goes with --dry"),
    (["--data", "a.csv", "--ranks", "1;2"], "'1;2' is no list, expected such as 1,4,16"),
  ],
)
def test_options_that_contradict(options, says, capsys):
  assert main(["sweep", *options]) == 2
  assert says in capsys.readouterr().err


def test_a_base_that_has_a_head_of_its_own(tmp_path):
  """Of three classes, as the data has; nothing said how many."""
  made = tiny.make("bert", head="classify", labels=3)._replace(tokenizer=folders.tokenizer("bert"))
  base = hf.save(made, made.params, tmp_path / "bert")
  rows = [{"text": f"a{i % 10} b{i // 10}", "label": f"c{i % 3}"} for i in range(40)]
  data = folders.write(tmp_path, "rows.jsonl", rows)
  found = jaxtune.propose(data, ["lora"], model=base)
  assert found.config["objective"] == {"name": "classify"} and "3 classes" in str(found)
  with pytest.raises(UserError, match="the data has 2 labels, expected 3, .*: name in data.labels"):
    two = folders.write(tmp_path, "two.jsonl", [row for row in rows if row["label"] != "c2"])
    jaxtune.propose(two, ["lora"], model=base)
