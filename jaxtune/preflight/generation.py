"""The programs of a group that generate text: the prompts that they complete, and how."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from jaxtune import data, sharding
from jaxtune.evaluation import answers, texts
from jaxtune.runs import answer_rows, programs, rollouts
from jaxtune.runs.trial import Trial

ANSWERS = "held-out answers"  # of a policy, by whose rewards it is judged
KINDS = ("generation", ANSWERS)


def batches(trials: Sequence[Trial]) -> dict[str, dict[str, jax.ShapeDtypeStruct]]:
  """Returns the shapes of the widest batch of prompts of each of KINDS that a group runs.

  The prompts of "generation" are those of the test split, or of a policy those of a rollout.
  """
  options, datasets = trials[0].config["evaluate"], {id(t.dataset): t.dataset for t in trials}
  sizes = {}
  if programs.rolls_out(trials[0]):
    rollout, train = answer_rows.options(trials[0])
    drawn = answer_rows.layout(trials)[1], rollout.minibatches * train.batch_size
    answered = list(zip(*map(_answered, datasets.values()), strict=True))
    sizes = {"generation": drawn}
    sizes |= {ANSWERS: _widest(answered, options["batch_size"])} if answered else {}
  elif options["generate"]:
    splits = [one.test or one.validation for one in datasets.values()]
    if splits[0] is not None and any(splits[0].references):
      asked = [[s.prompts[n] for n in answers.completed(s, options["limit"])] for s in splits]
      sizes = {"generation": _widest([asked], options["batch_size"])}
  array = lambda kind, *axes: jax.ShapeDtypeStruct((len(trials), *axes), kind)
  return {
    kind: {
      "tokens": array(jnp.int32, count, longest), "mask": array(bool, count, longest),
      "numbers": array(jnp.int32, count), "count": array(jnp.int32), "seed": array(jnp.int32),
    }
    for kind, (longest, count) in sizes.items()
  }  # fmt: skip


def _answered(dataset: data.Data) -> list[texts.Prompts]:
  """Returns the prompts of each split that a policy answers to be judged; see `group.train`."""
  held = [split for split in (dataset.validation, dataset.test) if split]
  splits = [*held, *(data.sample(dataset.train, split.examples) for split in held[:1])]
  return [[split.prompts[n] for n in split.arrays["example"]] for split in splits]


def _widest(splits: Sequence[Sequence[texts.Prompts]], rows: int) -> tuple[int, int]:
  """Returns the longest prompt and the number of prompts of the widest call; see `texts.complete`.

  Args:
    splits: of each split, the prompts of each trial.
  """
  calls = [call for asked in splits for call in texts.schedule(texts.longest(asked), rows)]
  return max((length, len(numbers)) for length, numbers in calls)


def section(trial: Trial, kind: str) -> str:
  """Returns the section of a config whose `batch_size` says how many rows a program has."""
  return "train" if kind == "generation" and programs.rolls_out(trial) else "evaluate"


def completer(
  trials: Sequence[Trial], kind: str, parallel: sharding.Parallel, chunk: int
) -> Callable:
  """Returns the program of a group that completes prompts; see `judge.Evaluator.complete`.

  Args:
    kind: of KINDS.
  """
  if section(trials[0], kind) == "train":
    program = programs.of_group(trials, chunk)
    return rollouts.make_draw(trials[0], program, parallel=parallel, chunk=chunk)
  return programs.make_evaluator(trials[0], parallel, chunk).complete
