"""Answers that share a row with their prompt are read as if each had a row of its own."""

from __future__ import annotations

import jax
import matrix
import numpy as np
import pytest
from support import tiny
from support.methods import METHODS

from jaxtune import peft, tree
from jaxtune.objectives import grpo
from jaxtune.training import step

WINDOWS = ("mistral", "qwen2", "gemma2", "gemma3_text", "phi3")  # `answer_rows.shared` leaves out
FAMILIES = [f for f in ("gpt2", "llama", *tiny.DECODERS) if f not in WINDOWS]
POSITIONS = ("gpt2", "llama", "gpt_neox")  # learned, rotary, and rotary for a part of each head
# The methods that read positions or the mask, or that run layers in several scans. What any other
# one does to a token hangs on that token alone, as with rsLoRA.
METHODS_AND_FAMILIES = {
  "rsLoRA, all linear": FAMILIES,
  "prefix": POSITIONS,
  "prompt": POSITIONS,
  "MAM": ("llama",),
  "UniPELT": ("llama",),
  "last layers": ("llama",),
  "LoReFT": ("llama",),
}
QUICK = [("rsLoRA, all linear", "gpt2"), ("prefix", "llama"), ("prompt", "llama"), ("MAM", "llama")]
CELLS = [
  pytest.param(method, family, marks=[] if (method, family) in QUICK else pytest.mark.full)
  for method, families in METHODS_AND_FAMILIES.items()
  for family in families
]
# Edits the first token of each answer to the first prompt, and not all of the second prompt.
CHANGES = {"LoReFT": {"first": 5}}
PROMPTS, SHARE, WIDTH, NEW = 2, 3, 6, 4


def rows(share: int) -> dict:
  """The same prompts, of different lengths, and answers, so many of them in a row."""
  rng = np.random.default_rng(0)
  draw = lambda *shape: rng.integers(2, tiny.VOCABULARY, shape).astype(np.int32)
  prompts, answers = draw(PROMPTS, WIDTH), draw(PROMPTS * SHARE, NEW)
  real_P = np.arange(WIDTH) >= np.array([[2], [0]])
  real_N = np.arange(NEW) < np.array([[4], [1], [3], [2], [4], [4]])
  repeated = lambda x: np.repeat(x, SHARE // share, 0)
  join = lambda front, behind: np.concatenate([repeated(front), behind.reshape(-1, share * NEW)], 1)
  number = 1 + np.arange(PROMPTS * SHARE)[:, None] % share
  branches = join(np.zeros_like(prompts), number * np.ones_like(answers))
  weights = real_N.reshape(-1, share, NEW).astype(np.float32)
  made = {"tokens": join(prompts, answers), "mask": join(real_P, real_N), "weights": weights}
  return made | ({"branches": branches} if share > 1 else {})


@pytest.mark.parametrize(("method", "family"), CELLS)
def test_branches(method, family):
  pretrained = matrix.model(family)
  methods, state, base = matrix.lay(pretrained, METHODS[method].section | CHANGES.get(method, {}))
  program = step.Program(pretrained.model, methods, None, None, 1)

  @jax.jit
  @jax.value_and_grad
  def loss(tuned, batch):
    call = step.forward(program, peft.Overlay(tuned, state.hyper), base, backward=True)
    losses, _ = grpo.scored(call, batch, 1.0)
    by_answer = (losses * batch["weights"]).reshape(-1, NEW).sum(1)
    return by_answer @ np.arange(1.0, 1 + len(by_answer), dtype=np.float32)

  (value, found), (expected, gradients) = (loss(state.tuned, rows(s)) for s in (SHARE, 1))
  assert float(value) == pytest.approx(float(expected), rel=1e-5)
  sizes = {path: np.abs(x).max() for path, x in tree.flatten(gradients).items()}
  largest = max(sizes.values())
  assert largest > 0.01
  for path, x in tree.flatten(gradients).items():
    apart = np.abs(tree.flatten(found)[path] - x).max()
    assert apart <= 1e-4 * max(sizes[path], 1e-2 * largest), path
