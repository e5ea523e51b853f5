"""One of the processes that train a run together, which test_hosts starts and kills."""

import os
import signal
import sys
from pathlib import Path

import conftest  # noqa: F401  cheap compilation
import jax

from jaxtune import data, hosts
from jaxtune.main import main
from jaxtune.preflight import gradients


def arm(step: int, number: int) -> None:
  """Makes this process send itself a signal when it makes the batch of a step."""
  batch = data.batch

  def watched(split, seed, at, *rest):
    if at + 1 == step:
      os.kill(os.getpid(), number)
    return batch(split, seed, at, *rest)

  data.batch = watched


def run(
  devices: int, said: Path, arguments: list[str], strike: tuple = (),
  heartbeat: int = 300, environment: dict[str, str] | None = None, probe: bool = False,
) -> None:  # fmt: skip
  """Runs a command in this process.

  Args:
    devices: how many this process has.
    said: the file that its stderr goes to.
    strike: (the number of a step, the name of a signal that comes there), or ().
    heartbeat: seconds after which a silent process counts as dead: many, as on a busy machine a
      test may stand still. That a process has ended a CPU's collectives tell at once.
    environment: variables of this process.
    probe: whether the gradients are checked before the training, by a program of their own.
  """
  os.environ.update(environment or {})
  flags = os.environ["XLA_FLAGS"].replace("device_count=4", f"device_count={devices}")
  os.environ["XLA_FLAGS"] = flags
  os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
  hosts.HEARTBEAT = heartbeat
  if not probe:
    gradients.check = lambda trials: None
  if strike:
    arm(strike[0], getattr(signal, strike[1]))
  code = main(arguments)
  jax.distributed.shutdown()  # as at the end of a process that multiprocessing has not made
  sys.exit(code)
