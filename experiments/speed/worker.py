"""What the processes of run.py share: each runs something when told to, and answers with times."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable

SMALLEST = "--tiny" in sys.argv
# Of DPO: pairs in a batch; of GRPO: answers, eight to a prompt, and their tokens.
PROMPTS, ROWS, ANSWERS, NEW_TOKENS = (8, 2, 8, 4) if SMALLEST else (128, 8, 32, 32)


def pairs(count: int) -> list[dict]:
  """Returns prompts with two answers each: their own, and that of the next row of the same task."""
  from jaxtune.assets import INSTRUCTIONS

  rows = [json.loads(line) for line in (INSTRUCTIONS / "train.jsonl").open()]
  rows = [row for row in rows if row["task"] == "describe"][: count + 1]
  return [
    {
      "prompt": f"{row['instruction']}\n{row['input']}\n",
      "chosen": row["output"],
      "rejected": other["output"],
    }
    for row, other in zip(rows, rows[1:], strict=False)
  ]


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
    reply(times, peak_on_device(), round(value, 3) if isinstance(value, float) else None)


def reply(times: list[float], peak: int | None, loss: float | None = None) -> None:
  """Writes times in ms and the peak of memory: of the device, in bytes, or of the process."""
  of_process = 1000 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  answered = {"ms": times, "peak_MB": (peak or of_process) / 1e6, "loss": loss}
  print(json.dumps(answered), flush=True)
