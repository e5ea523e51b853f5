"""What the processes of run.py share: each runs something when told to, and answers with times."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable


def answer(once: Callable, peak_on_device: Callable[[], int | None]) -> None:
  """Answers each line of stdin with the times of so many calls in ms, and the peak of memory.

  Args:
    peak_on_device: () -> bytes, or None for a device whose memory is the process's.
  """
  for line in sys.stdin:
    times = []
    for _ in range(int(line) if line.strip().isdigit() else 3):
      began = time.perf_counter()
      value = once()
      times.append(1000 * (time.perf_counter() - began))
    of_process = 1000 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak = (peak_on_device() or of_process) / 1e6
    loss = round(value, 3) if isinstance(value, float) else None
    print(json.dumps({"ms": times, "peak_MB": peak, "loss": loss}), flush=True)
