"""What the processes of run.py share: each runs something when told to, and answers with times."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

SMALLEST = "--tiny" in sys.argv
MODELS = json.loads((Path(__file__).parents[1] / "accelerators" / "models.json").read_text())
TINY = {
  "gpt2": dict(n_embd=24, n_layer=2, n_head=2),
  "llama": dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=8,
  ),
}  # fmt: skip


class Shape(NamedTuple):
  """The shape of an update: the model's, by its name in MODELS, and the batch's."""

  model: str
  batch: int
  length: int
  dtype: str = "float32"

  @property
  def architecture(self) -> dict:
    """Returns the model's config.json, or with --tiny a small one of its family."""
    whole = MODELS[self.model]
    return whole | (TINY[whole["model_type"]] if SMALLEST else {})


SHAPES = {
  "cpu": Shape("GPT-2 small", 4, 128),
  "small": Shape("GPT-2 small", 8, 512, "bfloat16"),
  "1b": Shape("Llama 1B", 8, 1024, "bfloat16"),
  "8b": Shape("Llama 8B", 4, 1024, "bfloat16"),
}
if SMALLEST:
  SHAPES = {name: shape._replace(batch=2, length=16) for name, shape in SHAPES.items()}
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


def answer(once: Callable, peak_on_device: Callable[[], int | None], **known: float) -> None:
  """Answers each line of stdin with the times of so many calls in ms, and the peak of memory.

  Args:
    peak_on_device: () -> bytes, or None for a device whose memory is the process's.
    known: what else each answer says.
  """
  for line in sys.stdin:
    times = []
    for _ in range(int(line) if line.strip().isdigit() else 3):
      began = time.perf_counter()
      value = once()
      times.append(1000 * (time.perf_counter() - began))
    loss = round(value, 3) if isinstance(value, float) else None
    reply(times, peak_on_device(), loss=loss, **known)


def reply(times: list[float], peak: int | None, **known: float | None) -> None:
  """Writes times in ms and the peak of memory: of the device, in bytes, or of the process."""
  of_process = 1000 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  answered = {"ms": times, "peak_MB": (peak or of_process) / 1e6} | known
  print(json.dumps(answered), flush=True)
