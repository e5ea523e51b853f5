"""Sweeps on a Ray cluster write the files of one process, whatever dies meanwhile."""

import json
import re
import threading
import time
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
from support import made_trials, sweeps

import jaxtune
from jaxtune import config as configs_
from jaxtune import libraries
from jaxtune.api import stages, under_way
from jaxtune.api.launch import cluster, parcels
from jaxtune.api.launch import ray as launched
from jaxtune.api.launch.worker import Job
from jaxtune.errors import UserError
from jaxtune.files import remove
from jaxtune.main import main
from jaxtune.training import checkpoint


@pytest.fixture
def ray():
  return pytest.importorskip("ray", reason=sweeps.NO_RAY)


def kill_a_worker(folder, killed):
  """Kills a worker that trains, once a checkpoint of a group is in the sweep's folder."""
  while not list(folder.glob("groups/*/*/state")):
    time.sleep(0.05)
  titles = (["ray::Worker.news"], ["ray::Worker.train"])  # or, in between, ray::IDLE
  while not killed:
    for process in psutil.Process().children(recursive=True):
      if process.cmdline()[:1] in titles and not killed:
        killed.append(process.pid)
        process.kill()


@pytest.mark.full
def test_a_lost_worker_changes_no_byte(ray, tmp_path, capsys, monkeypatch):
  grids = {"method.rank": [1, 2]}, {"optim.schedule": ["constant"]}  # two programs
  config, whole = sweeps.config(tmp_path, *grids, steps=12), tmp_path / "whole"
  jaxtune.sweep(config, whole)
  for workers, how in (
    (2, "shares the folder"),
    (1, "does not share the folder, and sends its files"),
  ):
    if workers == 1:  # workers look for what the lock of the folder says
      monkeypatch.setattr("jaxtune.api.launch.ray.locks.holder", lambda _: "another machine")
    folder, killed = tmp_path / f"{workers}_workers", []
    threading.Thread(target=kill_a_worker, args=(folder, killed), daemon=True).start()
    jaxtune.sweep(config, folder, launcher=jaxtune.on_ray(workers=workers))
    said = capsys.readouterr()
    assert killed and said.err.count("is lost: its group goes on elsewhere") == 1
    assert len(re.findall(rf"^worker \S+ {how}$", said.out, re.MULTILINE)) >= 2
    assert sweeps.differences(folder, whole) == ""
    assert not ray.is_initialized()


def test_a_group_travels_whole(tmp_path):
  """With its newest checkpoint, and without what is gone."""
  home, away = tmp_path / "home", tmp_path / "away"
  trial, group = home / "trials" / "a", home / "groups" / "0a"
  for step in (8, 10):
    (group / str(step) / "state").mkdir(parents=True)
    (group / str(step) / "state" / "arrays").write_bytes(bytes([step]))
  trial.mkdir(parents=True)
  (trial / "metrics.jsonl").write_text("1\n")
  (trial / ".lock").write_text("")
  parcel, stamps = parcels.pack(home, [trial, group], {})
  parcels.unpack(parcel, away)
  names = lambda folder: {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
  assert names(away) == {"groups/0a/10/state/arrays", "trials/a/metrics.jsonl"}
  assert parcels.pack(home, [trial, group], stamps)[0] == parcels.Parcel({}, {}, [])

  (trial / "result.json").write_text("{}")
  (group / "12").mkdir()
  parcel, stamps = parcels.pack(home, [trial, group], stamps)
  assert (list(parcel.checkpoints), list(parcel.files)) == (
    ["groups/0a/12"],
    ["trials/a/result.json"],
  )
  parcels.unpack(parcel, away)
  assert names(away) == {"trials/a/metrics.jsonl", "trials/a/result.json"}
  assert [path.name for path in (away / "groups" / "0a").iterdir()] == ["12"]

  remove(group)
  parcels.unpack(parcels.pack(home, [trial, group], stamps)[0], away)
  assert not list((away / "groups").iterdir())


def test_a_group_travels_with_the_checkpoint_of_a_trial_alone(tmp_path):
  configs = [made_trials.complete({"name": "lora"}, {"seed": seed}) for seed in range(3)]
  path = under_way.checkpoints(configs[1:2], tmp_path)
  with checkpoint.Checkpoints(path, {"config": [configs_.unplaced(configs[1])]}) as saved:
    saved.save(2, {"x": np.ones(1)})
  given, remote = [], lambda *arguments: given.append(arguments) or len(given)
  call = SimpleNamespace(remote=remote)
  hand = launched.Hand(SimpleNamespace(train=call, news=call), shared=False)
  crew = launched.Crew(Job(None, tmp_path, "", ""), {}, None, [hand], {})
  stage = stages.Stage("trials", ["0", "1", "2"], configs, [0, 1, 2])
  launched._give(crew, stage, 0, [0, 1, 2])
  assert [*given[0][2].checkpoints] == [f"groups/{path.name}/2"]


def test_what_a_group_takes():
  need = lambda text, mesh, *machines: dict(
    cluster.need(cluster.resources(text) if text else {}, [{"train": {"mesh": mesh}}], machines)
  )
  cpu, gpu, tpu = {"CPU": 8.0}, {"CPU": 8.0, "GPU": 4.0}, {"CPU": 8.0, "TPU": 4.0}
  assert need("", None, cpu) == {"CPU": 1}
  assert need("", None, cpu, gpu) == {"CPU": 1, "GPU": 1}
  assert need("", {"data": 2, "fsdp": 2}, gpu) == {"CPU": 1, "GPU": 4}
  assert need("cpu=4", {"data": 2}, gpu) == {"CPU": 4, "GPU": 2}
  assert need("", None, tpu) == {"CPU": 1, "TPU": 4} and need("", {"data": 1}, tpu)["TPU"] == 1
  assert need("gpu=0,memory=2G", None, gpu) == {"CPU": 1, "memory": 2**31}
  assert cluster.places({"CPU": 3, "GPU": 1}, [cpu, gpu, gpu]) == 4


@pytest.mark.parametrize(
  ("options", "says"),
  [
    (["--launcher", "ray", "--address", "127.0.0.1:1"], "no Ray cluster at 127.0.0.1:1 .*refused"),
    (["--launcher", "ray", "--address", "ray://a:1"], "expected HOST:PORT of the cluster's head"),
    (
      ["--launcher", "ray", "--resources", "gpus=1"],
      "unknown resource .*'gpus'; did you mean 'gpu'",
    ),
    (["--launcher", "ray", "--resources", "gpu=one"], "has 'gpu=one', expected such as cpu=4"),
    (["--launcher", "ray", "--resources", "time=2:00"], "time is for --launcher slurm"),
    (["--launcher", "ray", "--workers", "0"], "--workers is 0, expected 1 or more"),
    (["--launcher", "slurm", "--address", "a:1"], "--address goes with --launcher ray"),
    (["--workers", "2"], "--workers goes with --launcher"),
  ],
)
def test_what_no_cluster_can_do_is_one_line(ray, tmp_path, capsys, options, says):
  (tmp_path / "config.json").write_text(
    json.dumps(sweeps.config(tmp_path, {"method.rank": [1, 2]}), default=str)
  )
  files = ["--config", str(tmp_path / "config.json"), "--workdir", str(tmp_path / "sweep")]
  assert main(["sweep", *files, *options]) == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert re.search(says, line), line
  assert not (tmp_path / "sweep").exists()


def test_without_ray_the_extra_is_named(tmp_path, monkeypatch):
  monkeypatch.setattr(cluster, "ray", libraries.Lazy("no_such_ray"))
  with pytest.raises(UserError, match=r"--launcher ray needs Ray: pip install 'jaxtune\[ray\]'"):
    config = sweeps.config(tmp_path, {"seed": [0, 1]})
    jaxtune.sweep(config, tmp_path / "sweep", launcher=jaxtune.on_ray())
  assert not (tmp_path / "sweep").exists()
