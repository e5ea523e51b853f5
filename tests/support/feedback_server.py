"""The page of `jaxtune feedback` in a process of its own, which tests kill and start again."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def free_port() -> int:
  with socket.socket() as one:
    one.bind(("127.0.0.1", 0))
    return one.getsockname()[1]


class Server:
  """A server on one port and one folder, started as a user does.

  Attributes:
    address: the page's, with the token.
  """

  def __init__(self, folder: Path, prompts: str):
    self.out, self.port = folder / "votes", free_port()
    self.command = [sys.executable, "-m", "jaxtune.main", "feedback"]
    self.command += ["--prompts", prompts, "--out", str(self.out), "--port", str(self.port)]
    self.start()

  def start(self) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    self.process = subprocess.Popen(
      self.command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for line in self.process.stdout:
      if found := re.search(r"http\S+", line):
        self.address = found[0]
        return
    raise AssertionError(self.process.stderr.read())

  def kill(self) -> None:
    """Ends it as a crash of the machine would, without a word."""
    self.process.send_signal(signal.SIGKILL)
    self.process.communicate()
