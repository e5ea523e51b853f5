"""Several processes train one run as one process does; killed, it goes on on any other layout."""

import json
import multiprocessing
import os
import signal
import socket
import time
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils
from safetensors.numpy import load_file
from support import folders, made_trials, one_of_several

import jaxtune
from jaxtune.main import main
from jaxtune.training import checkpoint, loop
from jaxtune.training.options import TrainOptions

TESTS = Path(__file__).parents[1]
STEPS = 6
FIRST_OF_SLURM = 61440  # jax's port of job 0


@pytest.fixture(scope="module")
def config(tmp_path_factory):
  """The file of a config with a dropout, and with the checkpoints of steps 2, 4 and 6."""
  folder = tmp_path_factory.mktemp("config")
  rng = np.random.default_rng(0)
  texts = [" ".join(rng.choice(folders.WORDS, rng.integers(2, 6))) for _ in range(60)]
  rows = [{"instruction": "", "input": text, "output": text} for text in texts]
  parts = {"train": rows[:40], "validation": rows[40:50], "test": rows[50:]}
  files = {name: folders.write(folder, f"{name}.jsonl", part) for name, part in parts.items()}
  train = {"batch_size": 8, "log_every": 1, "eval_every": 3, "checkpoint_every": 2}
  made = folders.config(folders.base(folder, "llama"), files, steps=STEPS, train=train)
  made["method"] |= {"dropout": 0.1}
  path = folder / "config.py"
  path.write_text(f"def get_config():\n  return {made!r}\n")
  return path


def waited_for(condition, seconds=20):
  end = time.monotonic() + seconds
  while not condition() and time.monotonic() < end:
    time.sleep(0.05)


@pytest.fixture(scope="module")
def start(config):
  """Trains in several processes; returns their exit codes and what they said on stderr."""
  context = multiprocessing.get_context("forkserver")
  context.set_forkserver_preload(["support.one_of_several"])  # imported once for all processes

  def go(folder, count, *changes, devices=1, command="train", strikes=None, slurm=False, **more):
    with socket.socket() as free:
      free.bind(("127.0.0.1", FIRST_OF_SLURM + os.getpid() % 4096 if slurm else 0))
      port = free.getsockname()[1]
    plain = [command, "--config", str(config), "--workdir", str(folder), *changes]
    stated = ["--coordinator", f"127.0.0.1:{port}", "--processes", str(count), "--process"]
    own = lambda i: ["--coordinator", "auto"] if slurm else [*stated, str(i)]
    job = {"SLURM_JOB_ID": str(port - FIRST_OF_SLURM), "SLURM_STEP_NODELIST": "127.0.0.1"}
    job |= {"SLURM_NTASKS": str(count)}
    task = lambda i: job | {"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)} if slurm else {}
    said = [folder.with_name(f"{folder.name}.{i}") for i in range(count)]
    processes = [
      context.Process(
        target=one_of_several.run,
        args=(devices, said[i], [*plain, *own(i)], (strikes or {}).get(i, ())),
        kwargs=more | {"environment": task(i)},
      )
      for i in range(count)
    ]
    with pytest.MonkeyPatch.context() as patch:
      patch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), str(TESTS.parent)]))
      for process in processes:
        process.start()
    stopped = [i for i, (_, name) in (strikes or {}).items() if name == "SIGSTOP"]
    for process in (process for i, process in enumerate(processes) if i not in stopped):
      process.join()
    for i in stopped:
      processes[i].kill()
      processes[i].join()
    for path, process in zip(said, processes, strict=True):
      if process.exitcode not in (0, 143, -signal.SIGKILL):
        # What says the line may end a little later, and writes its end by itself.
        waited_for(lambda path=path: path.read_text().endswith("\n"))
    return [process.exitcode for process in processes], [path.read_text() for path in said]

  return go


def fit(config, folder, **mesh):
  """Trains in this process."""
  jaxtune.fit(jaxtune.load_config(config, {"train.mesh": mesh}), folder)


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
  """The run that one process has trained on one device, undisturbed."""
  folder = tmp_path_factory.mktemp("whole") / "run"
  fit(config, folder, data=1)
  return folder


def equal(found, expected, atol=1e-6):
  """Compares the loss of every step, the final metrics and the adapters of two runs."""
  rows = [[json.loads(x) for x in (f / "metrics.jsonl").open()] for f in (found, expected)]
  assert [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]]
  losses = [[r.get("train_loss", r.get("validation_loss")) for r in run] for run in rows]
  np.testing.assert_allclose(*losses, rtol=0, atol=atol)
  finals = [json.loads((f / "result.json").read_text())["final"] for f in (found, expected)]
  np.testing.assert_allclose(*(list(final.values()) for final in finals), rtol=atol, atol=atol)
  adapters = [load_file(f / "tuned.safetensors") for f in (found, expected)]
  for name, leaf in adapters[1].items():
    np.testing.assert_allclose(adapters[0][name], leaf, rtol=0, atol=atol, err_msg=name)


def test_a_part_of_a_batch_is_that_part_of_the_whole():
  """Which is what a process makes of it, where a mesh splits trials and rows."""
  splits, options = [made_trials.split(40, 0), made_trials.split(40, 1)], TrainOptions(accumulate=2)
  whole = loop.make_batch(splits, [0, 1], [3, 3], options)
  part = loop.make_batch(splits, [0, 1], [3, 3], options, slice(1, 2), slice(2, 4))
  for name, x in whole.items():
    np.testing.assert_array_equal(part[name], x[1:2, :, 2:4])


@pytest.mark.full
def test_killed_on_two_and_resumed_on_one(start, config, whole, tmp_path):
  """The survivor says one line and ends; a process of two devices and another mesh goes on."""
  folder = tmp_path / "run"
  mesh = "--config.train.mesh={'data': 2}"
  (survivor, killed), said = start(folder, 2, mesh, strikes={1: (6, "SIGKILL")}, probe=True)
  assert killed == -signal.SIGKILL and survivor not in (0, -signal.SIGKILL)
  assert said[0].startswith("jaxtune: another process of this run has ended")
  assert said[0].count("\n") == 1 and not (folder / "result.json").exists()
  assert {path.name for path in (folder / "checkpoints").iterdir()} == {"2", "4"}
  fit(config, folder, fsdp=2)
  equal(folder, whole)


@pytest.mark.full
def test_a_process_that_stands_still_ends_the_others(start, tmp_path):
  """As one does whose machine has lost its network: no collective fails."""
  folder, mesh = tmp_path / "run", "--config.train.mesh={'data': 2}"
  codes, said = start(folder, 2, mesh, strikes={1: (4, "SIGSTOP")}, heartbeat=10)
  assert codes[0] not in (0, -signal.SIGKILL) and codes[1] == -signal.SIGKILL
  assert said[0].startswith("jaxtune: another process of this run has ended")
  assert said[0].count("\n") == 1 and not (folder / "result.json").exists()


@pytest.mark.full
def test_the_same_layout_resumes_to_the_same_bits(start, tmp_path):
  """With a method that starts from norms of weights which the mesh splits.

  The run that nothing disturbs is a SLURM job, whose tasks find each other.
  """
  dora = {"name": "lora", "dora": True, "targets": ("o_proj",), "dropout": 0.1}
  changes = "--config.train.mesh={'fsdp': 2}", f"--config.method={dora!r}"
  assert start(tmp_path / "whole", 2, *changes, slurm=True, probe=True) == ([0, 0], ["", ""])
  folder = tmp_path / "killed"
  (killed, survivor), said = start(folder, 2, *changes, strikes={0: (4, "SIGKILL")})
  assert killed == -signal.SIGKILL and survivor not in (0, -signal.SIGKILL)
  assert said[1].startswith("jaxtune: another process") and said[1].count("\n") == 1
  assert start(folder, 2, *changes) == ([0, 0], ["", ""])
  equal(folder, tmp_path / "whole", atol=0)


@pytest.mark.full
def test_interrupted_on_two_and_resumed_on_four(start, whole, tmp_path):
  """SIGTERM to any process ends all after the same step of a group, with a checkpoint."""
  go = partial(start, tmp_path, command="sweep")
  two, four = (f"--config.train.mesh={{'data': 2, '{axis}': 2}}" for axis in ("tensor", "fsdp"))
  seeds = "--config.sweep=({'seed': [0, 1]},)"
  codes, said = go(2, two, seeds, devices=2, strikes={1: (1, "SIGTERM")})
  assert codes == [143, 143] and said == ["", ""]
  assert go(4, four, seeds) == ([0] * 4, [""] * 4)
  equal(tmp_path / "trials" / "seed=0", whole)


def test_processes_number_their_steps_without_gaps(monkeypatch):
  """Over all programs that they train: jax stops them at the very number that follows the last."""
  asked = []
  monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
  monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", asked.append)
  for _ in range(2):
    with checkpoint.interrupts() as interrupted:
      interrupted(), interrupted()
  assert asked == [*range(asked[0], asked[0] + 4)]


@pytest.mark.full
def test_the_first_process_judges_answers_for_all(start, tmp_path):
  (tmp_path / "judge.py").write_text(
    "import os\nfrom pathlib import Path\n\ndef own(prompts, completions, rows):\n"
    "  with Path(__file__).with_suffix('.log').open('a') as log:\n"
    "    log.write(f'{os.getpid()}\\n')\n"
    "  return [os.getpid() % 7 + n % 3 for n, _ in enumerate(completions)]\n"
  )
  rollout = {"samples": 2, "max_new_tokens": 2, "rewards": (f"{tmp_path}/judge.py:own",)}
  changes = "--config.objective={'name': 'grpo'}", f"--config.rollout={rollout!r}"
  changes += "--config.data.validation=None", "--config.data.test=None"
  codes, said = start(tmp_path / "run", 2, "--config.train.mesh={'data': 2}", *changes)
  assert codes == [0, 0], said
  assert len(set((tmp_path / "judge.log").read_text().split())) == 1


@pytest.mark.full
def test_a_sweep_whose_trials_are_spread_over_processes(start, config, tmp_path):
  sweep = "--config.sweep=({'method.rank': [1, 2], 'seed': [0, 1]},)"
  generates = "--config.evaluate={'generate': True, 'max_new_tokens': 3, 'batch_size': 4}"
  mesh = "--config.train.mesh={'trial': 2}"
  assert start(tmp_path / "two", 2, sweep, generates, mesh, command="sweep")[0] == [0, 0]
  one = ["sweep", "--config", str(config), "--workdir", str(tmp_path / "one"), sweep, generates]
  assert main(one) == 0
  assert (tmp_path / "two" / "report.html").exists()
  for trial in (tmp_path / "one" / "trials").iterdir():
    equal(tmp_path / "two" / "trials" / trial.name, trial)
    texts = [(tmp_path / n / "trials" / trial.name / "predictions.jsonl") for n in ("one", "two")]
    assert texts[0].read_bytes() == texts[1].read_bytes()


@pytest.mark.parametrize(
  ("options", "says"),
  [
    (["--process", "1"], "--processes and --process need --coordinator"),
    (["--coordinator", "host"], "--coordinator is 'host', expected HOST:PORT or auto"),
    (["--coordinator", "localhost:1"], "needs --processes N and --process I too"),
    (["--coordinator", "localhost:1", "--processes", "2", "--process", "2"], "expected 0 to 1"),
    (["--coordinator", "no.invalid:1", "--processes", "2", "--process", "1"], "not known here"),
    (["--coordinator", "auto", "--processes", "2"], "leave them out"),
  ],
)
def test_wrong_addresses_and_numbers(config, tmp_path, capsys, options, says):
  assert main(["train", "--config", str(config), "--workdir", str(tmp_path), *options]) == 2
  assert says in capsys.readouterr().err


def test_a_port_that_is_taken(config, tmp_path, capsys):
  with socket.create_server(("", 0)) as taken:
    address = f"localhost:{taken.getsockname()[1]}"
    options = ["--coordinator", address, "--processes", "2", "--process", "0"]
    assert main(["train", "--config", str(config), "--workdir", str(tmp_path), *options]) == 2
  assert "whose port is not free here" in capsys.readouterr().err


@pytest.mark.full
def test_what_does_not_fit_is_said_by_every_process(start, tmp_path):
  for changes, says in {
    "--config.train.mesh={'data': 1}": "the number of devices is 2, expected 1",
    "--config.train={'parallel': 'pmap', 'mesh': None}": "train.parallel is 'pmap', expected 'jit'",
  }.items():
    codes, said = start(tmp_path / "run", 2, changes)
    assert codes == [2, 2] and all(says in line and line.count("\n") == 1 for line in said)
  assert not (tmp_path / "run").exists()
