"""`jaxtune report`: sweeps from their folders, alone, joined and while they run."""

import json
import re
from unittest.mock import Mock

import pytest
from support import made_sweep

import jaxtune
from jaxtune import main
from jaxtune.errors import UserError
from jaxtune.runs import locks, results
from jaxtune.sweeps import exports, tuning


def document(page):
  text = page.read_text()
  return json.loads(re.search(r'id="data">(.*?)</script>', text)[1])


def trials(page):
  configurations = document(page)["configurations"]
  return {t["trial"]: t for one in configurations for t in one["trials"]}


def test_a_page_is_rebuilt_to_the_byte(tmp_path, capsys):
  made_sweep.write(tmp_path / "s", made_sweep.config(made_sweep.lora([1, 4])))
  page = jaxtune.report([tmp_path / "s"])
  files = ("report.html", "report.md", "results.csv", "table.tex")
  before = {name: (tmp_path / "s" / name).read_bytes() for name in files}
  assert main.main(["report", str(tmp_path / "s")]) == 0
  assert capsys.readouterr().out == f"report: {page}\n"
  assert before == {name: (tmp_path / "s" / name).read_bytes() for name in files}


def test_a_configuration_that_was_named_is_compared_with(tmp_path, capsys):
  made_sweep.write(tmp_path, made_sweep.config(made_sweep.lora([1, 4])))
  for name in ("lora rank=1", next(tmp_path.glob("trials/*rank=1-*")).name):
    assert main.main(["report", str(tmp_path), "--reference", name]) == 0
    shown = document(tmp_path / "report.html")
    assert shown["configurations"][shown["reference"]]["label"] == "lora rank=1"
  assert f"--reference {name}" in shown["reproduce"]["facts"]["command"]
  assert "difference from lora rank=1" in (tmp_path / "report.md").read_text()
  assert main.main(["report", str(tmp_path), "--reference", "lora rank=2"]) == 2
  assert "named 'lora rank=2'; did you mean 'lora rank=" in capsys.readouterr().err


def test_trials_of_a_running_sweep(tmp_path):
  given = made_sweep.config(made_sweep.lora([1, 4]))
  made_sweep.write(tmp_path, given, running=(0, 1, 2))
  folders = sorted((tmp_path / "trials").iterdir())
  (folders[1] / "failed.json").write_text('{"reason": "ValueError: broken"}')
  (folders[2] / "metrics.jsonl").unlink()
  (folders[2] / "config.json").unlink()
  folders[2].rmdir()
  with locks.held(tmp_path, "sweep"):
    found = trials(jaxtune.report([tmp_path]))
  said = [(found[f.name]["state"], found[f.name]["detail"]) for f in folders[:3]]
  assert said == [("running", "step 20 of 40"), ("failed", "ValueError: broken"), ("waiting", "")]
  assert trials(jaxtune.report([tmp_path]))[folders[0].name]["state"] == "stopped"
  assert len(found[folders[0].name]["curves"]["train_loss"]) == 10
  assert "ValueError: broken" in (tmp_path / "results.csv").read_text()
  (folders[1] / "failed.json").write_text('{"why": "edited"}')
  with pytest.raises(UserError, match=r"rank=\S+/failed.json: reason is missing"):
    jaxtune.report([tmp_path])


def test_a_sweep_of_which_no_trial_is_finished(tmp_path):
  made_sweep.write(tmp_path, made_sweep.config(made_sweep.lora([1])), running=(0, 1, 2))
  page = jaxtune.report([tmp_path])
  assert {one["state"] for one in trials(page).values()} == {"stopped"}
  assert not (tmp_path / "report.md").exists()


def test_sweeps_are_joined_by_all_in_which_they_differ(tmp_path):
  long = made_sweep.config(made_sweep.lora([4]), steps=80)
  made_sweep.write(tmp_path / "a", made_sweep.config(made_sweep.lora([1, 4])))
  made_sweep.write(tmp_path / "b", long)
  page = jaxtune.report([tmp_path / "a", tmp_path / "b"], tmp_path / "both")
  assert page == tmp_path / "both" / "report.html"
  shown = document(page)
  settings = [(c["settings"]["method.rank"], c["settings"]["train.steps"]) for c in
              shown["configurations"]]  # fmt: skip
  assert sorted(settings) == [(1, 40), (4, 40), (4, 80)]
  assert all(len(one["trials"]) == 3 for one in shown["configurations"])
  assert len(trials(page)) == 9 and shown["title"] == "a + b"
  assert set(shown["reproduce"]["config"]) == {"a.py", "b.py"}
  jaxtune.report([tmp_path / "a", tmp_path / "b"], tmp_path / "both")  # replaces its own report


def test_a_report_that_was_killed_is_written_again(tmp_path, monkeypatch):
  made_sweep.write(tmp_path / "s", made_sweep.config(made_sweep.lora([1])))
  write = lambda: jaxtune.report([tmp_path / "s"], tmp_path / "out")
  with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
    patched.setattr(exports, "to_parquet", Mock(side_effect=KeyboardInterrupt))
    write()
  assert (tmp_path / "out" / "results.csv").exists()
  assert write().exists() and (tmp_path / "out" / "report.md").exists()


def test_joined_sweeps_that_chose_other_rates_are_not_one(tmp_path):
  """The second one widens the first one's rates."""
  for name, rates in (("a", [0.01, 0.1]), ("b", [0.01, 0.1, 1.0])):
    axis = {"optim.learning_rate": [tuning.tune(rates)]}
    made_sweep.write(tmp_path / name, made_sweep.config(made_sweep.lora([1, 4]) | axis))
  shown = document(jaxtune.report([tmp_path / "a", tmp_path / "b"], tmp_path / "both"))
  rates = [one["settings"]["optim.learning_rate"] for one in shown["configurations"]]
  assert sorted(rates) == [0.1, 0.1, 1.0, 1.0]
  assert not any("One learning rate" in warning for warning in shown["warnings"])


def test_a_trial_that_left_in_one_sweep_and_finished_in_another(tmp_path):
  for name in "ab":
    made_sweep.write(tmp_path / name, made_sweep.config(made_sweep.lora([1, 4])))
  (path,) = (tmp_path / "a").glob("trials/*rank=4*seed=0/result.json")
  left = {k: v for k, v in json.loads(path.read_text()).items() if k != "sha256"}
  results.write(path.parent, left | {"exited_at": 20, "final": {"validation_loss": 2.0}})
  found = trials(jaxtune.report([tmp_path / "a", tmp_path / "b"], tmp_path / "both"))
  name = path.parent.name
  assert f"b/{name}" in found and f"a/{name}" not in found and len(found) == 6


def test_mistakes_are_named(tmp_path):
  made_sweep.write(tmp_path / "a", made_sweep.config(made_sweep.lora([1])))
  for folders, out, says in (
    (["none"], None, "none is not the folder of a sweep"),
    (["a", "none"], None, "the report of 2 sweeps needs its own folder: give --out DIR"),
    (["a", "none"], "a/trials", "none is not the folder of a sweep"),
  ):
    with pytest.raises(UserError, match=says):
      jaxtune.report([tmp_path / f for f in folders], out and tmp_path / out)
  made_sweep.write(tmp_path / "b", made_sweep.config(made_sweep.lora([4])))
  with pytest.raises(UserError, match="b holds a run or a sweep"):
    jaxtune.report([tmp_path / "a"], tmp_path / "b")
  (tmp_path / "paper").mkdir()
  (tmp_path / "paper" / "table.tex").write_text("mine")
  with pytest.raises(
    UserError, match="not the folder of a report, and its table.tex would be lost"
  ):
    jaxtune.report([tmp_path / "a"], tmp_path / "paper")
  (path,) = (tmp_path / "b").glob("trials/*rank=4*seed=0/result.json")
  path.write_text(path.read_text().replace('"seconds": 14', '"seconds": 1'))
  with pytest.raises(UserError, match="result.json is damaged"):
    jaxtune.report([tmp_path / "b"])


def test_a_file_that_was_edited_is_named_with_what_to_do(tmp_path):
  made_sweep.write(tmp_path, made_sweep.config(made_sweep.lora([1, 4])), running=(0,))
  trial, waiting = (next(tmp_path.glob(f"trials/*rank={rank}-*seed=0")) for rank in (4, 1))
  (waiting / "failed.json").write_text('{"reason": "broken"}')
  back = f"put it back, or delete {re.escape(str(trial))} to train the trial again"
  for path, old, new, says in (
    (trial / "result.json", '"seconds": 14', '"seconds": 13', f"damaged or was edited: .*; {back}"),
    (trial / "result.json", "{", "", f"malformed JSON at .*; {back}"),
    (trial / "metrics.jsonl", '"train_loss": ', '"train_loss": 1', f"damaged or changed .*{back}"),
    (trial / "config.json", "{", "[", f"config.json is damaged or changed .*{back}"),
    (waiting / "failed.json", "broken", 'broken"', "malformed JSON at .*; delete it"),
    (tmp_path / "config.json", '"steps": 40', '"steps": 50',
     "config.json was changed since .* was trained: train.steps was 40, is now 50; put it back"),
    (tmp_path / "config.json", "{", "", "config.json: malformed JSON at .*; put it back"),
    (tmp_path / "notes.json", "", "[1]", "notes.json is .* expected dict; delete it"),
  ):  # fmt: skip
    before = path.read_text() if path.exists() else None
    path.write_text((before or "").replace(old, new, 1))
    with pytest.raises(UserError, match=says):
      jaxtune.report([tmp_path])
    path.unlink() if before is None else path.write_text(before)
  assert jaxtune.report([tmp_path]).exists()
