"""Killed at any moment and started again, a run ends as if it had never been stopped."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support import made_trials, resumable_run

from jaxtune.api import sweep as sweeps
from jaxtune.api import trials
from jaxtune.errors import UserError
from jaxtune.models.rope import Rope
from jaxtune.runs import group, results
from jaxtune.runs.trial import changed, with_config
from jaxtune.training import checkpoint

TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def start():
  """Starts the run in a process of its own, and returns its exit code."""
  context = multiprocessing.get_context("forkserver")
  context.set_forkserver_preload(["support.resumable_run"])  # imported once for all processes

  def go(folder, *kill) -> int:
    process = context.Process(target=resumable_run.main, args=(folder, *kill))
    with pytest.MonkeyPatch.context() as patch:
      patch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), str(TESTS.parent)]))
      process.start()
    process.join()
    return process.exitcode

  return go


@pytest.mark.full
def test_resumed_equals_uninterrupted(start, tmp_path):
  kills = [(1, "during"), (2, "during", "SIGTERM"), (3, "in"), (4, "after")]
  whole, killed = tmp_path / "whole", tmp_path / "killed"
  assert start(whole) == 0
  for kill in kills:
    assert start(killed, *kill) == (143 if kill[-1] == "SIGTERM" else -signal.SIGKILL)
    assert not (killed / "0" / "result.json").exists()
  assert start(killed) == 0
  for e in range(len(resumable_run.METHODS)):
    for name in ("tuned.safetensors", "metrics.jsonl"):
      assert (killed / str(e) / name).read_bytes() == (whole / str(e) / name).read_bytes(), name
    results = [json.loads((f / str(e) / "result.json").read_text()) for f in (whole, killed)]
    assert results[0]["final"] == results[1]["final"]
    assert results[0]["best_step"] == results[1]["best_step"]


@pytest.mark.parametrize(
  ("error", "kind", "says"),
  [
    (ValueError("no such key"), UserError, "x is damaged (no such key): remove it"),
    (PermissionError(13, "Permission denied"), UserError, "cannot read x: permission denied"),
    (ValueError("open [os_error_code='13']"), UserError, "cannot read x: permission denied"),
    (RuntimeError("RESOURCE_EXHAUSTED: no room"), RuntimeError, "RESOURCE_EXHAUSTED"),
    (MemoryError(), MemoryError, ""),
  ],
)
def test_only_damage_is_to_be_removed(error, kind, says):
  with pytest.raises(kind) as raised, checkpoint.undamaged(Path("x")):
    raise error
  assert str(raised.value).startswith(says)


def contents(folder):
  return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """A run of two steps, in this process."""
  folder, setup = tmp_path_factory.mktemp("finished"), resumable_run.setup()
  config = made_trials.complete({"name": "lora", "rank": 2}, {"train.steps": 2})
  made_trials.run([config], [folder], setup, folder / "checkpoints")
  return folder, setup, config


@pytest.mark.parametrize(
  ("changes", "says"),
  [
    ({"optim.learning_rate": 5.0}, "another config: optim.learning_rate was 0.01, is now 5.0"),
    ({"method.rank": 3}, "another config: method.rank was 2, is now 3"),
    ({"method.targets": ["q_proj"]}, "method.targets was ['q_proj', 'v_proj'], is now ['q_proj']"),
    ({"method": {"name": "full"}}, "method.name was 'lora', is now 'full'"),
    ({"train.steps": 4, "seed": 1}, "seed was 0, is now 1; train.steps was 2, is now 4"),
  ],
)
def test_a_checkpoint_of_another_config_is_refused(finished, changes, says):
  folder, setup, config = finished
  other = made_trials.complete({"name": "lora", "rank": 2}, {"train.steps": 2} | changes)
  before = contents(folder)
  with pytest.raises(UserError) as error:
    made_trials.run([other], [folder], setup, folder / "checkpoints")
  assert says in str(error.value) and "--workdir" in str(error.value)
  assert contents(folder) == before


def test_a_checkpoint_without_the_keys_of_a_later_version_is_resumed(finished):
  folder, setup, config = finished
  (path,) = folder.glob("checkpoints/*/record/metadata")
  before, record = path.read_text(), json.loads(path.read_text())
  del record["config"][0]["evaluate"]["merge"]
  path.write_text(json.dumps(record))
  made_trials.run([config], [folder], setup, folder / "checkpoints")
  path.write_text(before)


def test_a_checkpoint_of_another_base_is_refused(finished):
  folder, setup, config = finished
  before = contents(folder)
  with pytest.raises(UserError, match="a checkpoint of another base"):
    other = setup._replace(fingerprint="0" * 64)
    made_trials.run([config], [folder], other, folder / "checkpoints")
  assert contents(folder) == before


def test_a_checkpoint_and_a_result_of_another_config_json_are_refused(finished):
  """Not where the model is computed in another way, nor of versions that did not write it."""
  folder, setup, config = finished
  trial = with_config(setup, config)
  assert trials.finished(folder, changed([trial], attention="plain", unroll=2)[0])
  (other,) = changed([trial], rope=Rope(theta=5e5))
  with pytest.raises(UserError, match=r"a checkpoint of another config\.json of its base"):
    made_trials.run([config], [folder], other, folder / "checkpoints")
  with pytest.raises(UserError, match=r"the result of another config\.json of its base"):
    trials.finished(folder, other)
  written = json.loads((folder / "result.json").read_text())
  results.write(folder, {key: written[key] for key in written if key != "base_config"})
  assert trials.finished(folder, other)
  results.write(folder, written)


def test_a_checkpoint_of_other_data_is_refused(finished):
  folder, setup, config = finished
  before = contents(folder)
  report = {"splits": {"test": {"sha256": "c" * 64}}}
  with pytest.raises(UserError, match="another data set: splits.test was None, is now 'cccc"):
    other = setup._replace(dataset=setup.dataset._replace(report=report))
    made_trials.run([config], [folder], other, folder / "checkpoints")
  assert contents(folder) == before


@pytest.mark.full
def test_seconds_go_on_after_a_restart(finished, tmp_path):
  """The clock of the restarted process begins where the checkpoint's stood."""
  folder, setup, config = finished
  shutil.copytree(folder, tmp_path / "run")
  path = tmp_path / "run" / "checkpoints" / "2" / "record" / "metadata"
  path.write_text(json.dumps(json.loads(path.read_text()) | {"seconds": 5000.0}))
  (again,) = made_trials.run([config], [tmp_path / "run"], setup, tmp_path / "run" / "checkpoints")
  assert 5000 < again["seconds"] < 6000


FULL = """
import logging, resource, sys
from pathlib import Path
import jax.numpy as jnp
from jaxtune import errors
from jaxtune.training import checkpoint
logging.getLogger("absl").setLevel(logging.CRITICAL)  # as the command line does
state = {f"x{i}": jnp.arange(2000.0) ** (i / 7) for i in range(100)}
with checkpoint.Checkpoints(Path(sys.argv[1]), {}) as saved:
  resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
  try:
    saved.save(1, state)
  except errors.UserError as error:
    print(error)
"""


@pytest.mark.full
def test_a_full_disk_says_nothing_more_than_its_line(tmp_path):
  """Also the writes that were under way beside the one that failed."""
  command = [sys.executable, "-c", FULL, tmp_path / "checkpoints"]
  environment = os.environ | {"PYTHONPATH": str(TESTS.parent), "JAX_PLATFORMS": "cpu"}
  done = subprocess.run(command, env=environment, capture_output=True, text=True)
  assert "cannot write" in done.stdout and "File too large" in done.stdout
  assert done.returncode == 0 and "Error" not in done.stderr


def test_differences_name_keys():
  old = [{"a": {"b": 1}, "c": [1, 2]}, {"a": {"b": 3}}]
  new = [{"a": {"b": 2}, "c": [1]}, {"a": {"b": 3}, "d": None}]
  found = checkpoint.differences(old, new)
  assert found == "[0].a.b was 1, is now 2; [0].c was [1, 2], is now [1]"
  assert checkpoint.differences(old[:1], new[:1]).startswith("a.b was 1, is now 2")


@pytest.mark.full
def test_a_killed_sweep_skips_what_is_done(tmp_path, monkeypatch):
  setup, real, groups = resumable_run.setup(), group.train, []
  config = made_trials.complete({"name": "lora", "rank": 2}, {"train.steps": 2}) | {
    "sweep": ({"method.rank": [1, 2], "optim.schedule": ["constant", "linear"]},)
  }

  def fragile(members, *rest):
    groups.append([t.config["optim"]["schedule"] for t in members])
    if len(groups) == 2:
      raise KeyboardInterrupt
    return real(members, *rest)

  monkeypatch.setattr(trials, "prepare", lambda config, pretrained: with_config(setup, config))
  monkeypatch.setattr(trials.training, "train", fragile)
  with pytest.raises(KeyboardInterrupt):
    sweeps.sweep(config, tmp_path)
  assert groups == [["constant"] * 2, ["linear"] * 2]
  done = [path for path in tmp_path.glob("trials/*/result.json")]
  before = [(path, path.stat().st_mtime_ns) for path in done]
  assert len(done) == 2 and not list((tmp_path / "groups").glob("*"))
  results = sweeps.sweep(config, tmp_path)
  assert groups[2:] == [["linear"] * 2] and len(results) == 4
  assert [(path, path.stat().st_mtime_ns) for path in done] == before
  assert {"results.csv", "report.md", "report.html", "plots"} <= {
    p.name for p in tmp_path.iterdir()
  }

  saved = contents(tmp_path)
  with pytest.raises(UserError, match="another config: optim.learning_rate was 0.01, is now 0.5"):
    sweeps.sweep(config | {"optim": config["optim"] | {"learning_rate": 0.5}}, tmp_path)
  changed = setup._replace(dataset=setup.dataset._replace(report={"files": {"a.jsonl": "b" * 64}}))
  monkeypatch.setattr(trials, "prepare", lambda config, pretrained: with_config(changed, config))
  with pytest.raises(UserError, match=r"another data set: files.a.jsonl was None, is now 'b{16}'"):
    sweeps.sweep(config, tmp_path)
  assert contents(tmp_path) == saved and len(groups) == 3


@pytest.mark.full
def test_a_longer_axis_trains_what_is_new(tmp_path, monkeypatch):
  """Also where the results are older than an option: it had its default."""
  setup, real, groups = resumable_run.setup(), group.train, []
  config = made_trials.complete({"name": "lora", "rank": 2}, {"train.steps": 1})

  def counted(members, *rest):
    groups.append([t.config["method"]["rank"] for t in members])
    return real(members, *rest)

  monkeypatch.setattr(trials, "prepare", lambda config, pretrained: with_config(setup, config))
  monkeypatch.setattr(trials.training, "train", counted)
  sweeps.sweep(config | {"sweep": ({"method.rank": [1]},)}, tmp_path)
  (path,) = tmp_path.glob("trials/*/config.json")
  older = json.loads(path.read_text())
  del older["evaluate"]["resamples"]
  path.write_text(json.dumps(older))
  result = json.loads((path.parent / "result.json").read_text())
  results.write(path.parent, {key: result[key] for key in result if key != "diverged_at"})
  assert len(sweeps.sweep(config | {"sweep": ({"method.rank": [1, 2]},)}, tmp_path)) == 2
  assert groups == [[1], [2]]
