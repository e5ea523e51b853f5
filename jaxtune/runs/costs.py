"""What the training of a trial costs: FLOPs, tokens and device memory, alike in every run of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
from jaxtyping import PyTree

from jaxtune import data, peft
from jaxtune.runs import answer_rows, programs
from jaxtune.runs.trial import Trial, changed
from jaxtune.training.step import State, judge, update

WHOLE = dict(scored_tokens=2**31, remat=False, attention="plain")  # nothing is computed twice


def of_training(trial: Trial, flops: Callable[[int], int], updates: int) -> dict[str, int]:
  """Returns the costs of so many updates: "flops", "flops_per_update" (the mean) and "tokens".

  Tokens are those of all examples drawn, without padding; of a stream, and of answers that
  are drawn while training, they are not known.

  Args:
    flops: from `counter`.
  """
  total, batch_size = flops(updates), trial.config["train"]["batch_size"]
  count = None if programs.rolls_out(trial) else data.tokens_seen
  tokens = count and count(trial.dataset.train, trial.config["seed"], updates, batch_size)
  known = {} if tokens is None else {"tokens": tokens}
  return {"flops": total, "flops_per_update": round(total / updates), **known}


def counter(trial: Trial, state: State, base: PyTree) -> Callable[[int], int]:
  """Returns (number of updates) -> the FLOP of a trial's training.

  These are the matrix products of its updates, forward and backward, of padded rows too, without
  what rematerialisation computes again and without validation. They are counted in the update of
  the trial alone, which is traced once for each width of batches: one that is smaller than others
  of its group has a figure of its own. Answers that are drawn while training add forward passes:
  one that draws them, one for each time that they are scored, all as if they had the most tokens.

  Args:
    state: the trial's first state, or its shapes.
    base: the frozen base, or its shapes.
  """
  targets, train = programs.count_targets([trial]), trial.config["train"]
  program = programs.make_program(changed([trial], **WHOLE)[0], targets=targets)
  parts = train["accumulate"]
  passes = 0.0
  if programs.rolls_out(trial):
    passes = (2 + answer_rows.needs_policy(trial)) / trial.config["rollout"]["epochs"]
  known: dict[str, int] = {}

  def of_update(batch: dict) -> int:
    fold = lambda x: jax.ShapeDtypeStruct((parts, len(x) // parts, *x.shape[1:]), x.dtype)
    shapes = jax.tree.map(fold, batch)
    if (key := str(shapes)) not in known:
      count = lambda function, *arguments: products(jax.make_jaxpr(function)(*arguments).jaxpr)
      total = count(partial(update, program), state, base, shapes)
      if passes:
        overlay, whole = peft.Overlay(state.tuned, state.hyper), jax.eval_shape(dict, batch)
        total += passes * count(partial(judge, program), overlay, base, whole)
      known[key] = round(total)
    return known[key]

  def flops(updates: int) -> int:
    found = data.kinds(trial.dataset.train, updates, train["batch_size"])
    return sum(count * of_update(answer_rows.example([trial], batch)) for count, batch in found)

  return flops


def counters(trials: Sequence[Trial], states: Sequence[State], base: PyTree) -> list[Callable]:
  """Returns the `counter` of each trial; trials of one size share it, and its traces."""
  keys = [(str(jax.tree.map(lambda x: x.shape, state)), id(trial.dataset.train))
          for trial, state in zip(trials, states, strict=True)]  # fmt: skip
  three = zip(keys, trials, states, strict=True)
  found = {key: counter(trial, state, base) for key, trial, state in three}
  return [found[key] for key in keys]


def products(jaxpr: Any) -> float:
  """Counts the FLOP of matrix products; of a loop with an open end, those of one round."""
  total = 0.0
  for equation in jaxpr.eqns:
    if equation.primitive.name == "dot_general":
      (contracted, _), _ = equation.params["dimension_numbers"]
      left, out = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
      total += 2.0 * math.prod(out) * math.prod(left[axis] for axis in contracted)
      continue
    times = equation.params["length"] if equation.primitive.name == "scan" else 1
    total += sum(times * products(inner) for inner in _inner(equation.params.values()))
  return total


def _inner(values: Any) -> Iterator[Any]:
  for value in values:
    value = getattr(value, "jaxpr", value)
    if hasattr(value, "eqns"):
      yield value
    elif isinstance(value, tuple | list):
      yield from _inner(value)


def memory(
  step: Any, arguments: tuple, states: Sequence[State], chunk: int, shards: int, turns: bool
) -> list[int]:
  """Returns the bytes that the training of each trial takes on a device, as if it ran alone.

  These are the frozen base, its own state (weights, moments of the optimizer) and the working
  memory of one trial. The last is what the group's compiled step needs beside its arguments, by
  XLA's own figure, without the copies of the group's states, divided by the trials that one vmap
  computes: near what the trial's own program would take, less so for a large state that takes
  turns. jax has the compiled step at hand once it was called, so that nothing is compiled.

  Args:
    step: what `Parallel.compile` returned.
    arguments: of the step, with the widest batch: ((states, sums), shared, batch).
    states: the shapes of each trial's state, without the padding of its group.
    chunk, turns: as `loop.make_step` had them.
    shards: the size of the mesh axis "trial".
  """
  (stacked, _), shared, batch = arguments
  count = -(-next(iter(batch.values())).shape[0] // shards)  # of a device, that take a step
  here = stacked.step.sharding.shard_shape(stacked.step.shape)[0]  # trials on a device
  analysis = step.lower(*arguments).compile().memory_analysis()
  # A loop over chunks gathers its results in a copy. Turns first take the states out of all, and
  # then choose between a chunk's states before and after the step.
  together = min(chunk, count)
  copies = (chunk < count) * count + turns * (count + together)
  beside = analysis.temp_size_in_bytes - copies * bytes_on_device(stacked) / here
  working = max(beside, 0) / together
  base = bytes_on_device(shared[0] if turns else shared)
  bytes_of = lambda tree: sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
  # Of weights, by a mesh.
  share = bytes_on_device(stacked) / bytes_of(stacked) * len(stacked.step) / here
  return [round(base + share * bytes_of(state) + working) for state in states]


def bytes_on_device(tree: PyTree) -> int:
  """Returns the bytes that arrays take on each device."""
  size = lambda x: math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
  return sum(map(size, jax.tree.leaves(tree)))
