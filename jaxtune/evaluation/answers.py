"""The texts that trials write for prompts, and the rewards of these texts.

The functions take a `judge.Evaluator`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import PyTree

from jaxtune import data, hosts, peft
from jaxtune.evaluation import rewards, texts


def completions(
  evaluator: Any,
  overlays: peft.Overlay,
  base: PyTree,
  prompts: Sequence[list[list[int]]],
  seeds: Sequence[int],
) -> list[list[str]]:
  """Completes every trial's own prompts; returns a list of texts for each trial.

  Args:
    seeds: one for each trial; a draw depends on it and on the prompt's number, not on the batch.
  """
  seeds_E = np.asarray(seeds, np.int32)
  made = texts.complete(
    lambda batch: hosts.fetch(evaluator.complete(overlays, base, batch | {"seed": seeds_E})),
    prompts,
    evaluator.options.batch_size,
    evaluator.stop_tokens,
  )
  decode = partial(evaluator.tokenizer.decode, skip_special_tokens=True)
  return [[decode(ids).strip() for ids in of_trial] for of_trial in made]


def rewarded(
  evaluator: Any, overlays: peft.Overlay, base: PyTree, splits: Sequence[data.Split]
) -> list[dict]:
  """Lets every trial answer the prompts of its split; returns the rewards of its answers."""
  rows = [split.arrays["example"] for split in splits]
  ids = [[s.prompts[n] for n in own] for s, own in zip(splits, rows, strict=True)]
  answered = completions(evaluator, overlays, base, ids, [0] * len(splits))
  decode = partial(evaluator.tokenizer.decode, skip_special_tokens=True)
  found = []
  for split, own, asked, answers in zip(splits, rows, ids, answered, strict=True):
    references, source = ([values[n] for n in own] for values in (split.references, split.rows))
    judged = rewards.score(
      evaluator.rewards, rewards.Answers(list(map(decode, asked)), answers, references, source)
    )
    known_N = np.isfinite(judged["reward"]).astype(np.float64)
    judged = {name: np.nan_to_num(values_N) for name, values_N in judged.items()}
    sums = {"loss": -judged["reward"], "weight": known_N, "correct": judged["reward"] > 0}
    found.append(sums | judged)
  return found
