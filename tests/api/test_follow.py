"""What follows a sweep while it trains: the view of its progress, and loggers."""

import json
import os
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
from support import logged, made_trials

from jaxtune import hosts, main
from jaxtune.api import follow, status, status_text, trials
from jaxtune.api import sweep as sweeps
from jaxtune.errors import UserError
from jaxtune.runs import loggers
from jaxtune.runs.loggers import wandb
from jaxtune.runs.trial import with_config
from jaxtune.training import checkpoint

CHANGES = {"train.steps": 5, "train.eval_every": 2, "optim.warmup": 0}
RANKS = (1, 2)


@pytest.fixture
def config(llama, monkeypatch):
  """The config of a sweep of two trials, whose data are made."""
  made = made_trials.make(llama)
  monkeypatch.setattr(trials, "prepare", lambda config, pretrained: with_config(made, config))
  monkeypatch.setattr(trials.gradients, "check", lambda *_: None)
  plain = made_trials.complete({"name": "lora", "rank": 2}, CHANGES)
  return plain | {"sweep": ({"method.rank": list(RANKS)},)}


def contents(folder):
  """Reads the files of a trial, without the time that it took."""
  files = {path.name: path.read_bytes() for path in folder.iterdir()}
  result = json.loads(files.pop("result.json"))
  return files | {key: result[key] for key in result.keys() - {"seconds", "sha256"}}


@pytest.fixture
def environment(tmp_path, monkeypatch):
  for name in ("CONFIG", "CACHE", "DATA"):
    monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "home"))
  monkeypatch.setenv("WANDB_MODE", "offline")


@pytest.mark.skipif(bool(logged.ABSENT), reason=logged.MISSING)
def test_each_step_is_logged_once_and_no_result_differs(config, tmp_path, monkeypatch, environment):
  """Also where a sweep is interrupted after it logged steps that come again."""
  plain, followed = tmp_path / "plain", tmp_path / "followed"
  results = {result["trial"]: result for result in sweeps.sweep(config, plain)}
  during = lambda: follow.follow(followed, loggers=logged.NAMES)
  save, at = checkpoint.Checkpoints.save, 2 * 4

  def interrupted(self, updates, *rest):
    if updates == at:
      raise KeyboardInterrupt  # the checkpoint is that of step 2, four are logged
    save(self, updates, *rest)

  monkeypatch.setattr(checkpoint.Checkpoints, "save", interrupted)
  with pytest.raises(KeyboardInterrupt):
    sweeps.sweep(config, followed, during=during())
  monkeypatch.setattr(checkpoint.Checkpoints, "save", save)
  for name in logged.NAMES:
    assert max(logged.read(name, followed, "rank=1")[0]) == 3, "the fourth may not be complete"
  for _ in range(2):  # the second time, all is done
    sweeps.sweep(config, followed, during=during())
    for trial, rank in (("rank=1", 1), ("rank=2", 2)):
      first, second = (contents(folder / "trials" / trial) for folder in (plain, followed))
      assert first == second
      history = first["metrics.jsonl"].decode().splitlines()
      for name in logged.NAMES:
        rows, varied = logged.read(name, followed, trial)
        assert sorted(rows) == [1, 2, 3, 4, 5]
        for row in map(json.loads, history):
          for key in row.keys() - {"step"}:
            assert rows[row["step"]][key] == pytest.approx(row[key], rel=1e-6)
        for key, value in results[trial]["final"].items():
          assert rows[5][f"final/{key}"] == pytest.approx(value, rel=1e-6)
        rate = [1e-2 * (1 - step / 5) for step in range(5)]  # linear, and without warm-up
        np.testing.assert_allclose([rows[n]["learning_rate"] for n in range(1, 6)], rate, 1e-5)
        assert varied == {"method.rank": rank} or varied["method"]["rank"] == rank


def test_another_mesh_is_no_other_trial_of_wandb(tmp_path):
  config = made_trials.complete({"name": "lora"})
  key = lambda **more: wandb._key(
    loggers.Trial(tmp_path, "rank=1", config | {"train": config["train"] | more}, {})
  )
  assert key() == key(mesh={"data": 2}) != key(steps=9)


def test_a_logger_that_fails_ends_nothing(config, tmp_path, monkeypatch, capsys):
  def full(_):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(loggers, "find", lambda name: SimpleNamespace(begin=full))
  during = follow.follow(tmp_path, loggers=["tensorboard"])
  assert len(sweeps.sweep(config, tmp_path, during=during)) == 2
  said = "warning: --tensorboard ends (OSError: [Errno 28] No space left on device)"
  assert capsys.readouterr().err.count(said) == 1


@pytest.mark.parametrize("name", logged.NAMES)
def test_a_package_that_is_missing_is_said_before_anything_starts(
  tmp_path, monkeypatch, capsys, name
):
  monkeypatch.setitem(sys.modules, name, None)
  for command in ("train", "sweep"):
    folder = str(tmp_path / command)
    options = ["--config", "configs/quickstart.py", "--workdir", folder, f"--{name}"]
    assert main.main([command, *options]) == 2
    assert f"pip install 'jaxtune[{name}]'" in (said := capsys.readouterr().err)
    assert len(said.splitlines()) == 1 and not list(tmp_path.iterdir())


def test_the_screen_is_never_flooded():
  names = [f"lora-rank={2**i},learning_rate={10.0**-j},seed={s}"
           for i in range(4) for j in range(3) for s in range(4)]  # fmt: skip
  found = [
    status.Status(name, "running", 10 * n + 10, 1000, 2.0, 9.0 - n / 10, 3600.0 * n, 0.1)
    for n, name in enumerate(names)
  ]
  waits = {"state": "waiting", "step": 0, "best": None, "speed": None}
  found[40:] = [one._replace(**waits) for one in found[40:]]
  found[3] = found[3]._replace(state="failed", speed=None)
  for width in (40, 60, 80, 120):
    for height in (3, 8, 24):
      lines = status_text.text(found, width, height, bars=True).splitlines()
      assert len(lines) <= height and max(map(len, lines)) <= width, (width, height)
  lines = status_text.text(found, 60, 24, bars=True).splitlines()
  assert lines[0] == "39 running, 1 failed, 8 waiting, 19 % trained, 2.8 h left,"
  assert lines[1] == "best 5.1000 by lora-rank=8,learning_rate=1.0,seed=3"
  assert lines[2].split() == ["trial", "update", "loss", "best", "left"]
  first, *_, last = lines[3:]
  assert first.split() == ["lora-r=8,lr=1.0,s=3", "400/1,000", "2.0000", "5.1000", "39.0", "h"]
  assert last == "20 more: 19 running, 1 failed"
  assert len(status_text.text(found).splitlines()) == 50


@pytest.fixture
def begun(config, tmp_path):
  (tmp_path / "config.json").write_text(json.dumps(config, default=str))
  folder = tmp_path / "trials" / "rank=1"
  folder.mkdir(parents=True)
  (folder / "config.json").write_text("{}")
  (folder / "metrics.jsonl").write_text('{"step": 2, "train_loss": 3.5}\n')
  return tmp_path


def test_a_terminal_shows_one_view_and_a_file_gets_plain_lines(begun, monkeypatch, capsys):
  with follow.shown(begun, seconds=0.01):
    assert hosts.bars() is None
    time.sleep(0.2)
  out = capsys.readouterr().out
  assert set(out.splitlines()) == {"1 stopped, 1 waiting, 20 % trained"}

  main_end, end = os.openpty()
  terminal = open(end, "w", buffering=1)  # noqa: SIM115
  monkeypatch.setenv("TERM", "xterm")
  monkeypatch.setenv("COLUMNS", "60")
  monkeypatch.setattr(sys, "stdout", terminal)
  monkeypatch.setattr(sys, "stderr", terminal)
  with follow.shown(begun, seconds=0.01):
    assert hosts.bars() is True, "no other bar may write where the view is"
    print("said meanwhile")
    time.sleep(0.2)
  assert sys.stdout is terminal
  shown = os.read(main_end, 2**16).decode()
  assert "said meanwhile" in shown and "rank=1" in shown and "3.5000" in shown
  assert "\x1b[" in shown and "\x1b[" not in out


def test_what_was_begun_before_is_not_followed(begun):
  """A folder's old config.json says nothing of what is about to start there."""
  seen = []
  logger = SimpleNamespace(begin=lambda trial: seen.append(trial.name))
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(loggers, "find", lambda name: logger)
    with pytest.raises(UserError), follow.follow(begun, loggers=["wandb"]):
      raise UserError("refused")
  assert seen == []
