"""How far the trials of a sweep are, by its folder."""

import json
import os

import pytest
from support import made_trials

import jaxtune
from jaxtune import files, main
from jaxtune.api import status_text
from jaxtune.api import sweep as sweeps
from jaxtune.errors import UserError
from jaxtune.runs import locks, results
from jaxtune.sweeps import collect


def test_every_state_of_a_trial(tmp_path, capsys):
  config = made_trials.complete({"name": "lora"}, {"train.steps": 40})
  config |= {"sweep": ({"method.rank": [1, 2, 4, 8, 16]},)}
  (tmp_path / "config.json").write_text(json.dumps(config, default=str))
  folders = [tmp_path / "trials" / f"rank={rank}" for rank in (1, 2, 4, 8)]
  rows = [{"step": 5, "train_loss": 3.0}, {"step": 10, "validation_loss": 2.0}]
  rows += [{"step": 20, "validation_loss": 2.5}]
  for folder in folders:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    os.utime(folder / "config.json", (0, (folder / "metrics.jsonl").stat().st_mtime - 100))
  results.write(folders[0], {"final": {"test_loss": 1.0}, "stopped_at": 40})
  left = {"final": {"validation_loss": 2.5}, "stopped_at": 20, "exited_at": 20}
  results.write(folders[1], left)
  (folders[2] / "failed.json").write_text(json.dumps({"reason": "broken"}))
  states = lambda: [one.state for one in jaxtune.status(tmp_path)]
  assert states() == ["done", "left early", "failed", "stopped", "waiting"]
  with locks._locked(tmp_path):
    assert states() == ["done", "left early", "failed", "running", "waiting"]
    running = jaxtune.status(tmp_path)[3]
  other = tmp_path / "trials" / "rank=16"  # which waits for a place in its program
  other.mkdir()
  for name in ("config.json", "metrics.jsonl"):
    (other / name).write_text("")
  own = [("running", 5), ("running", 0), ("running", 0)]  # of another program none has logged
  states_ = collect.with_waiting(dict(zip("abc", own, strict=True)), {"a": 0, "b": 0, "c": 1})
  assert [state for state, _ in states_.values()] == ["running", "waiting", "running"]
  with locks._locked(tmp_path):
    assert states()[-2:] == ["running", "waiting"]
    _, unfinished = collect.read(tmp_path, *sweeps.expand(config), [()] * 5)
    assert [one["state"] for one in unfinished[-2:]] == ["running", "waiting"]
  files.remove(other)
  assert running.loss == 2.5 and running.best == 2.0 and running.step == 20
  assert running.seconds_left == pytest.approx(100, abs=5), "as long as the first half took"
  long_ago = (folders[3] / "metrics.jsonl").stat().st_mtime - 1000
  for name, before in (("config.json", 100), ("metrics.jsonl", 0)):
    os.utime(folders[3] / name, (0, long_ago - before))
  with locks._locked(tmp_path):
    slow = jaxtune.status(tmp_path)[3].seconds_left
  assert slow == pytest.approx(10 * 1100 / 30, abs=5), "as if step 30 were logged now"
  first, _, *lines = status_text.text(jaxtune.status(tmp_path)).splitlines()
  assert first == (
    "1 stopped, 1 failed, 1 done, 1 left early, 1 waiting, 70 % trained, best 2.0000 by rank=1"
  )
  assert [line.split()[:2] for line in lines[::4]] == [
    ["rank=8", "stopped"],
    ["rank=16", "waiting"],
  ]
  assert main.main(["status", str(tmp_path), "--watch"]) == 0, "nothing works there: it ends"
  assert capsys.readouterr().out == f"{status_text.text(jaxtune.status(tmp_path))}\n"
  with pytest.raises(UserError, match="is not the folder of a sweep or a run"):
    jaxtune.status(tmp_path / "nothing")
