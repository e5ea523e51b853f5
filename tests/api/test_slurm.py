"""The script of a SLURM array: what sbatch reads of it, and what its tasks do together.

No SLURM runs here: a stand-in for sbatch checks the options, lets bash run the script for each task
with a command that only prints its arguments, and runs them in this process.
"""

import re
import shlex
import subprocess
from contextlib import nullcontext

import pytest
from support import sweeps

import jaxtune
from jaxtune.api import launch, sweep
from jaxtune.api.launch import cluster, slurm
from jaxtune.errors import UserError
from jaxtune.main import main
from jaxtune.runs import locks
from jaxtune.sweeps import declare

# From the manual of sbatch: options that a script may have, and what their values look like.
GRAMMAR = {
  "job-name": r"[\w.-]+", "array": r"\d+(-\d+)?(,\d+(-\d+)?)*(%\d+)?", "ntasks": r"\d+",
  "cpus-per-task": r"\d+", "gres": r"\w+(:\w+)?:\d+(,\w+:\d+)*", "mem": r"\d+[KMGT]?",
  "time": r"(\d+-)?\d+(:\d\d){0,2}", "signal": r"(B:)?(TERM|USR1|\d+)@\d+",
  "output": r"\S+|'[^']+'", "open-mode": "append|truncate",
}  # fmt: skip


@pytest.fixture
def sbatch(monkeypatch):
  monkeypatch.setattr(slurm.sys, "executable", "echo")

  def run(script):
    subprocess.run(["bash", "-n", script], check=True)
    head, *_ = re.split(r"^[^#\n]", script.read_text(), maxsplit=1, flags=re.MULTILINE)
    given = dict(re.findall(r"^#SBATCH --([\w-]+)=(.+)$", head, re.MULTILINE))
    assert script.read_text().count("#SBATCH") == len(given), "sbatch reads up to a command"
    assert all(re.fullmatch(GRAMMAR[name], value) for name, value in given.items()), given
    for task in given["array"].partition("%")[0].split(","):
      command = f"SLURM_ARRAY_TASK_ID={task} bash {shlex.quote(str(script))}"
      said = subprocess.run(command, shell=True, capture_output=True, text=True, check=True).stdout
      module, *arguments = said.replace(str(script.parent), "FOLDER").split()[1:]
      assert module == "jaxtune.main"
      assert main([word.replace("FOLDER", str(script.parent)) for word in arguments]) == 0
    return given

  return run


@pytest.mark.full
def test_the_tasks_of_an_array_write_what_one_process_writes(tmp_path, sbatch):
  """A rate to choose takes an array of its own; the folder has a space in its name."""
  rates = declare.tune([1e-3, 1e-2])
  config = sweeps.config(
    tmp_path, {"optim.learning_rate": [rates]}, {"optim.schedule": ["constant"]}
  )
  whole, folder = tmp_path / "whole", tmp_path / "a PLACE"
  jaxtune.sweep(config, whole)
  launcher = jaxtune.on_slurm(3, cluster.resources("cpu=2,gpu=1,memory=16G,time=12:00:00"))
  for kind, count in (("tuning", 1), ("trials", 2)):
    with pytest.raises(launch.Elsewhere, match=f"{count} of {count} .*/{kind} are left: submit"):
      jaxtune.sweep(config, folder, launcher=launcher)
    given = sbatch(folder / "slurm.sh")
    assert (given["cpus-per-task"], given["gres"], given["mem"]) == ("2", "gpu:1", "16G")
    assert given["array"] == ",".join(map(str, range(count))) + "%3"
    assert shlex.split(given["output"]) == [str(folder / "slurm" / f"{kind}-%a.out")]
  jaxtune.sweep(config, folder, launcher=launcher)
  (folder / "slurm.sh").unlink()
  (folder / "slurm").rmdir()
  assert sweeps.differences(folder, whole) == ""


def test_only_programs_that_nobody_trains_are_submitted(tmp_path):
  config = sweeps.config(tmp_path, {"optim.schedule": ["constant", "linear"]})
  folder, plan = tmp_path / "sweep", sweep.plan_of(config)
  for busy, numbers in ((False, "0,1"), (True, "0")):
    with locks.of_group(folder / "trials" / "schedule=linear") if busy else nullcontext():
      with pytest.raises(launch.Elsewhere, match="2 of 2 .* are left: submit"):
        jaxtune.sweep(config, folder, launcher=jaxtune.on_slurm(), metric="test_loss")
      script = (folder / "slurm.sh").read_text()
      assert f"--array={numbers}\n" in script and " --metric test_loss --group " in script
      states = [one.state for one in jaxtune.status(folder)]
      assert states == ["waiting", "running" if busy else "waiting"]
      if busy:
        held = locks.of_group(folder / "trials" / "schedule=linear", patience=0)
        with pytest.raises(UserError, match="schedule=linear is in use by process"), held:
          pass
  for group in ("trials/2", "tuning/0", "trials", "3"):
    with pytest.raises(UserError, match=f"--group is '{group}', expected "):
      slurm.train_group(plan, folder, group)
  with pytest.raises(UserError, match="holds no sweep here: .* that all machines share"):
    slurm.train_group(plan, tmp_path / "other", "trials/0")
