"""The texts that trials write for prompts, and the rewards of these texts.

`completions` and `rewarded` take a `judge.Evaluator`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import PyTree

from jaxtune import data, hosts, peft, sharding, tree
from jaxtune.evaluation import generate, rewards, texts
from jaxtune.evaluation.options import EvaluateOptions
from jaxtune.training.step import Program

SHOWN = 3  # answers of each evaluation, which are logged


def completer(
  program: Program,
  options: EvaluateOptions,
  stop_tokens: tuple[int, ...],
  *,
  parallel: sharding.Parallel,
  chunk: int,
  share: int = 1,
) -> Callable:
  """Returns `judge.Evaluator.complete`, compiled at the first call with each shape.

  Devices that split rows share the prompts. XLA splits the work by itself, which it cannot do to a
  fused kernel, so that attention is plain there.

  Args:
    share: as for `generate.generate`.
  """

  model, shards = program.model, parallel.batch_shards
  if parallel.devices > 1:
    model = model.clone(config=model.config.changed(attention="plain"))

  def complete(overlay, base, prompts):
    adapted = peft.Adapted(program.methods, *overlay, base)
    if options.merge:
      whole = jax.tree.map(lambda x: x.astype(model.config.dtype), peft.merge(adapted))
      adapted = peft.untuned(whole)
    group = math.gcd(share, -(-len(prompts["tokens"]) // shards))  # or a part would have them all
    some = lambda tokens_NT, mask_NT, numbers_N, count: generate.generate(
      model, adapted, tokens_NT, mask_NT, max_new_tokens=options.max_new_tokens,
      stop_tokens=stop_tokens, rows=-(-options.batch_size // (shards * group)) * group, share=group,
      count=count,
      temperature=options.temperature, top_k=options.top_k, top_p=options.top_p,
      key=jax.random.key(prompts["seed"]), numbers_N=numbers_N,
    )  # fmt: skip
    call = some if shards == 1 else _shared(some, parallel, group)
    return call(*(prompts[name] for name in ("tokens", "mask", "numbers", "count")))

  return jax.jit(tree.over_trials(complete, chunk, parallel.mesh))


def _shared(some: Callable, parallel: sharding.Parallel, share: int) -> Callable:
  """Splits the prompts of a call between the devices that split rows, one group after another.

  All devices take each step together, and each has its own rows, waiting prompts and cache, of
  which nothing is exchanged.

  Args:
    some: (tokens (N, T), mask (N, T), numbers (N,), count) -> ids (N, new).
    share: how many neighbours form a group, which stays together.
  """
  shards, at = parallel.batch_shards, NamedSharding(parallel.mesh, P(sharding.ROWS))

  def call(tokens_NT, mask_NT, numbers_N, count):
    total = len(tokens_NT)
    groups = -(-total // (shards * share))
    which = np.arange(groups * shards * share).reshape(groups, shards, share)
    which_SM = which.swapaxes(0, 1).reshape(shards, -1)
    own = (x[np.minimum(which_SM, total - 1)] for x in (tokens_NT, mask_NT, numbers_N))
    parts = (*own, (which_SM < count).sum(1))
    parts = jax.lax.with_sharding_constraint(parts, at)
    ids_SMn = jax.vmap(some, spmd_axis_name=sharding.ROWS)(*parts)
    return ids_SMn.reshape(-1, ids_SMn.shape[-1])[np.argsort(which_SM.ravel())[:total]]

  return call


def completed(split: data.Split, limit: int | None) -> list[int]:
  """Returns the numbers of the examples that predictions are made for, in order.

  These have a reference. Every task has equally many; where one has fewer, the others have more.
  """
  numbers = [n for n, references in enumerate(split.references) if references]
  if limit is None or split.tasks is None:
    return numbers[:limit]
  had: Counter = Counter()
  turns = []
  for task in (split.tasks[n] for n in numbers):
    turns.append(had[task])
    had[task] += 1
  return sorted(numbers[turn] for turn in np.argsort(turns, kind="stable")[:limit])


def completions(
  evaluator: Any,
  overlays: peft.Overlay,
  base: PyTree,
  prompts: Sequence[list[list[int]]],
  seeds: Sequence[int] = (),
) -> list[list[str]]:
  """Completes every trial's own prompts; returns a list of texts for each trial.

  Args:
    seeds: one for each trial, by default 0; a draw depends on it and on the prompt's number, not on
      the batch.
  """
  made = continued(evaluator, overlays, base, prompts, seeds)
  decode = partial(evaluator.tokenizer.decode, skip_special_tokens=True)
  return [[decode(ids).strip() for ids in of_trial] for of_trial in made]


def continued(
  evaluator: Any,
  overlays: peft.Overlay,
  base: PyTree,
  prompts: Sequence[list[list[int]]],
  seeds: Sequence[int] = (),
) -> list[list[list[int]]]:
  """Returns the ids of what `completions` returns the texts of, before their stop tokens."""
  seeds_E = np.asarray(seeds or [0] * len(prompts), np.int32)
  return texts.complete(
    lambda batch: hosts.fetch(evaluator.complete(overlays, base, batch | {"seed": seeds_E})),
    prompts,
    evaluator.options.batch_size,
    evaluator.stop_tokens,
  )


def rewarded(
  evaluator: Any,
  overlays: peft.Overlay,
  base: PyTree,
  splits: Sequence[data.Split],
  seeds: Sequence[int] = (),
) -> list[dict]:
  """Lets every trial answer the prompts of its split; returns the rewards of its answers.

  Args:
    seeds: as for `completions`.

  Returns:
    Of each trial the sums of its examples, as `judge.measure`, and "shown": the first few answers,
    [{"prompt", "answer", "reward"}, ...].
  """
  rows = [split.arrays["example"] for split in splits]
  ids = [[s.prompts[n] for n in own] for s, own in zip(splits, rows, strict=True)]
  made = continued(evaluator, overlays, base, ids, seeds)
  found = []
  for split, own, *asked_and_made in zip(splits, rows, ids, made, strict=True):
    references, source = ([values[n] for n in own] for values in (split.references, split.rows))
    answers = rewards.answers_of(evaluator.tokenizer, *asked_and_made, references, source)
    judged = rewards.score(evaluator.rewards, answers)
    known_N = np.isfinite(judged["reward"]).astype(np.float64)
    shown = [
      {"prompt": prompt, "answer": answer, "reward": reward if math.isfinite(reward) else None}
      for prompt, answer, reward in zip(
        answers.prompts[:SHOWN], answers.completions, judged["reward"], strict=False
      )
    ]
    # Of an answer that could not be judged as a whole, no reward counts, as in training.
    own = {f"weight_{k}": known_N * np.isfinite(x_N) for k, x_N in judged.items() if k != "reward"}
    judged = {name: np.nan_to_num(x_N) * known_N for name, x_N in judged.items()}
    sums = {"loss": -judged["reward"], "weight": known_N, "correct": judged["reward"] > 0}
    found.append(sums | judged | own | {"shown": shown})
  return found
