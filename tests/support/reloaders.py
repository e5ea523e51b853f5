"""The PyTorch processes in which the scripts that go through all methods certify exports."""

import os
from contextlib import ExitStack

from jaxtune import certify


def reloaders(stack: ExitStack, adapterhub: bool = True) -> dict:
  """Starts one process for each format that can be reloaded here: {format: reload}."""
  here = stack.enter_context(certify.reloader())
  found = {"peft": here, "merged": here}
  if adapterhub and os.environ.get(certify.VARIABLE):
    found["adapterhub"] = stack.enter_context(certify.reloader(os.environ[certify.VARIABLE]))
  return found
