"""A run of two trials in a process of its own, that test_resume kills and starts again."""

import os
import signal
import threading
from pathlib import Path

import conftest  # noqa: F401  4 host devices, cheap compilation

from jaxtune import data
from jaxtune.training import checkpoint
from support import made_trials, tiny

METHODS = tuple({"name": "lora", "rank": rank, "dropout": 0.1} for rank in (2, 3))
CHANGES = {
  "train.steps": 6,
  "train.log_every": 2,
  "train.eval_every": 3,
  "train.checkpoint_every": 1,
}


def setup():
  architecture = tiny.ARCHITECTURES["llama"] | {"num_hidden_layers": 2}
  return made_trials.make(tiny.random(architecture))


def arm(step: int, moment: str, number: int) -> None:
  """Makes this process send itself a signal at a moment of a step."""
  strike = lambda: os.kill(os.getpid(), number)
  batch, save = data.batch, checkpoint.Checkpoints.save

  def watched_batch(split, seed, at, *rest):
    if moment == "during" and at + 1 == step:
      strike()
    return batch(split, seed, at, *rest)

  def watch(folder):
    while not list(folder.glob("*-tmp*")):
      pass
    strike()

  def watched_save(self, at, *rest):
    if moment == "in" and at >= step:
      threading.Thread(target=watch, args=(self.folder,), daemon=True).start()
    save(self, at, *rest)
    if moment == "after" and at == step:
      strike()

  data.batch, checkpoint.Checkpoints.save = watched_batch, watched_save


def main(folder: Path, step: int = 0, moment: str = "", name: str = "SIGKILL") -> None:
  """Runs the trials in a folder.

  Args:
    step: where the process sends itself the signal `name`; 0 for nowhere.
    moment: "during" the step, "in" the writing of a checkpoint, from that step on, or "after" the
      step's checkpoint.
  """
  arm(step, moment, getattr(signal, name))
  made = [made_trials.complete(method, CHANGES) for method in METHODS]
  folders = [folder / str(i) for i in range(len(made))]
  made_trials.run(made, folders, setup(), folder / "checkpoints")
