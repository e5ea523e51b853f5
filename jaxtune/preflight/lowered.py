"""Lowers the programs of a group from shapes alone, for devices that need not be here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from jaxtune import data, peft, sharding, tree
from jaxtune.models import cudnn
from jaxtune.models.layers import check_attention
from jaxtune.preflight import generation
from jaxtune.preflight.devices import Device
from jaxtune.runs import answer_rows, costs, programs
from jaxtune.runs.first_state import first_state
from jaxtune.runs.group import turns_of
from jaxtune.runs.trial import Trial, changed
from jaxtune.training import loop
from jaxtune.training.options import TrainOptions
from jaxtune.training.progress import begin

POLICIES = (False, "linear", True)  # of `model.remat`, by how much they compute twice


class Outline(NamedTuple):
  """The shapes of a group, and what its programs are lowered for.

  Attributes:
    states: shapes of the trials' states, with a first axis E.
    base: shapes of the frozen base.
    device, devices: what `devices.describe` returns; None for the devices of this process.
    parallel: the layout of the devices.
  """

  trials: Sequence[Trial]
  states: Any
  base: Any
  device: Device | None
  devices: Sequence[Any] | None
  parallel: sharding.Parallel

  @property
  def options(self) -> TrainOptions:
    """Returns the `train` section of the trials."""
    return TrainOptions(**self.trials[0].config["train"])

  @property
  def platforms(self) -> tuple[str, ...] | None:
    """Returns what programs are lowered for; None for this process's backend."""
    return None if self.device is None else (self.device.platform,)


def outline(
  trials: Sequence[Trial],
  device: Device | None = None,
  devices: Sequence[Any] | None = None,
  parallel: sharding.Parallel | None = None,
) -> Outline:
  """Outlines a group of trials, with their models for the device; see `Outline`.

  Their `pretrained.params` may be shapes.

  Args:
    parallel: the layout; default that of `train.mesh` over the devices.

  Raises:
    UserError: for a mesh or a kernel of attention that the devices do not have.
  """

  def make(params):
    pretrained = trials[0].pretrained._replace(params=params)
    states, bases = zip(
      *(first_state(t._replace(pretrained=pretrained)) for t in trials), strict=True
    )
    return tree.stack(list(states)), bases[0]

  if device is not None:
    trials = changed(trials, platform=device.platform)
  c = trials[0].pretrained.model.config
  check_attention(c.attention, c.runs_on)
  train = trials[0].config["train"]
  parallel = parallel or sharding.make(train["parallel"], train["mesh"], devices)
  states, base = jax.eval_shape(make, trials[0].pretrained.params)
  return Outline(trials, states, base, device, devices, parallel)


def batches(group: Outline) -> dict[str, dict]:
  """Returns the shapes of the batches of the programs that a group runs, by a key of LOWER."""
  found = {
    "training step": step_batch(group),
    "evaluation": judged_batch(group),
  } | generation.batches(group.trials)
  return {kind: batch for kind, batch in found.items() if batch is not None}


def step_batch(group: Outline) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns the shapes (E, A, B, ...) of the trials' batches; of several updates, one in A each."""
  trials, train = group.trials, group.trials[0].config["train"]
  parts = train["accumulate"]
  drawn = data.batch(trials[0].dataset.train, 0, 0, train["batch_size"])  # batch 0 is the widest
  widest = answer_rows.example(trials, drawn, group.parallel.batch_shards)
  lead = len(trials), parts * programs.updates(trials[0])
  return {name: led(x, *lead, len(x) // parts) for name, x in widest.items()}


def led(x: Any, *first: int) -> jax.ShapeDtypeStruct:
  """Returns the shape of an array whose first axis is replaced by others."""
  return jax.ShapeDtypeStruct((*first, *x.shape[1:]), x.dtype)


def judged_batch(group: Outline) -> dict[str, jax.ShapeDtypeStruct] | None:
  """Returns the shapes (E, 1, B, ...) of the widest batch that is judged; None without a split."""
  trial, shards = group.trials[0], group.parallel.batch_shards
  widest = max(_judged(group), key=lambda split: split.width, default=None)
  if widest is None or programs.rolls_out(trial):  # whose answers are judged
    return None
  rows = -(-trial.config["evaluate"]["batch_size"] // shards) * shards
  return {name: led(x, len(group.trials), 1, rows) for name, x in widest.arrays.items()}


def _judged(group: Outline) -> list[data.Split]:
  """Returns the splits by which a trial is judged.

  With another split, the training data are judged too; see `group.train_metrics`.
  """
  dataset = group.trials[0].dataset
  held = [s for s in (dataset.general, dataset.validation, dataset.test) if s]
  if (dataset.validation or dataset.test) and isinstance(dataset.train, data.Split):
    held.append(dataset.train)
  return held


def lower_step(group: Outline, batch: dict, chunk: int, **computation: Any) -> jax.stages.Lowered:
  """Lowers one training step of a group.

  Args:
    batch: the shapes of the batch, each (E, A, B, ...). E may be any number of trials.
    chunk: trials side by side in one vmap.
    computation: fields of the model's `Config` that are to be changed.
  """
  taken, turns = at_once(group, batch, chunk)
  step = _step(group, chunk, computation, turns)
  states, sums = _carry(group, batch)
  carry = _placed(group, states, "trial"), _placed(group, {"sums": sums}, "trial")["sums"]
  return _lower(group, group.parallel.compile(step, donate=True), carry, taken, turns)


def at_once(group: Outline, batch: dict, chunk: int = 1) -> tuple[dict, bool]:
  """Returns the shapes of the batch that one step takes, and whether trials take turns in steps."""
  places = turns_of(group.trials, group.options)[1]
  if places is None:
    return batch, False
  count = max(places, chunk * group.parallel.trial_shards)  # more, where more are tried
  return {name: led(x, min(count, len(x))) for name, x in batch.items()}, True


def lower_judge(group: Outline, batch: dict, chunk: int, **computation: Any) -> jax.stages.Lowered:
  """Lowers the program that judges a batch of rows, as `lower_step` does a step."""
  function = _judge_rows(group, group.parallel, chunk, computation)
  return _lower(group, function, _overlays(group, batch), batch)


def lower_completion(
  group: Outline, batch: dict, chunk: int, kind: str = "generation", **computation: Any
) -> jax.stages.Lowered:
  """Lowers a program that completes a batch of prompts, as `lower_step` does a step.

  How often its loops run depends on the texts: figures are those of one round, which reads prompts
  into the cache and continues every row by one token.

  Args:
    kind: of `generation.KINDS`.
  """
  trials = changed(group.trials, **computation)
  complete: Any = generation.completer(trials, kind, group.parallel, chunk)
  arguments = _overlays(group, batch), _placed(group, group.base), batch
  with _traced_for(group):
    return complete.trace(*arguments).lower(lowering_platforms=group.platforms)


LOWER = {
  "training step": lower_step, "evaluation": lower_judge,
  **{kind: partial(lower_completion, kind=kind) for kind in generation.KINDS},
}  # fmt: skip


def flops(group: Outline, batch: dict, name: str = "training step") -> float:
  """Returns the FLOP of all matrix products of a program, of which nothing is computed twice.

  Args:
    name: a key of LOWER.
  """
  if name == "training step":
    batch, _ = at_once(group, batch)
    step = _step(group, len(batch["tokens"]), costs.WHOLE)
    traced = jax.make_jaxpr(step)(_carry(group, batch), group.base, batch)
  else:
    count = len(group.trials)
    if name == "evaluation":
      function = _judge_rows(group, sharding.ALONE, count, costs.WHOLE)
    else:
      trials = changed(group.trials, **costs.WHOLE)
      function = generation.completer(trials, name, sharding.ALONE, count)
    overlays = peft.Overlay(group.states.tuned, group.states.hyper)
    traced = jax.make_jaxpr(function)(overlays, group.base, batch)
  return costs.products(traced.jaxpr)


def _step(group: Outline, chunk: int, computation: dict, turns: bool = False) -> Callable:
  """Returns the training step of a group, neither compiled nor placed."""
  program = programs.of_group(changed(group.trials, **computation), chunk)
  return loop.make_step(program, chunk, turns, group.parallel.mesh)


def _judge_rows(group: Outline, parallel: sharding.Parallel, chunk: int, computation: dict) -> Any:
  """Returns the program that judges the widest batch, with the most targets of any."""
  trial = changed(group.trials, **computation)[0]
  evaluator = programs.make_evaluator(trial, parallel, chunk)
  return evaluator.rows(evaluator.targets(_judged(group)))


def _carry(group: Outline, batch: dict) -> tuple[Any, dict]:
  """Returns the shapes of as many states as the batch has trials, and of their sums."""
  states = resized(group.states, len(batch["tokens"]))
  of_group = partial(begin, logged=programs.logged(group.trials[0]))
  return states, jax.eval_shape(of_group, states).sums


def resized(states: Any, count: int) -> Any:
  """Returns the shapes of another number of states."""
  return jax.tree.map(lambda x: led(x, count), states)


def _overlays(group: Outline, batch: dict) -> peft.Overlay:
  states = resized(group.states, len(batch["tokens"]))
  return _placed(group, peft.Overlay(states.tuned, states.hyper), "trial")


def _placed(group: Outline, shapes: Any, first: str | None = None) -> Any:
  """Returns shapes with the places that a run gives them."""
  if group.parallel.mesh is not None:
    return group.parallel.outline(shapes, first)
  if group.devices is None:
    return shapes
  at = SingleDeviceSharding(group.devices[0])
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), shapes)


def _lower(group: Outline, compiled: Any, carry: Any, batch: dict, turns: bool = False) -> Any:
  """Lowers what `Parallel.compile` returns; see `loop.make_step` for `turns`."""
  base, parallel = _placed(group, group.base), group.parallel
  if turns:
    places = jax.ShapeDtypeStruct((batch["tokens"].shape[0],), jnp.int32)
    base = base, _placed(group, {"step": places})["step"]
  if parallel.kind == "pmap":  # which places them itself
    bare = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype)
    batch = jax.eval_shape(parallel.split, batch)
    with _traced_for(group):
      return compiled.lower(*jax.tree.map(bare, (carry, base)), batch)
  if parallel.mesh is None:
    batch = _placed(group, batch)
  else:
    at = parallel.batch_sharding(batch["tokens"].shape[0])
    batch = {n: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at) for n, x in batch.items()}
  with _traced_for(group):
    return compiled.trace(carry, base, batch).lower(lowering_platforms=group.platforms)


def _traced_for(group: Outline) -> AbstractContextManager:
  """Lets programs be traced for the kernels of the group's device."""
  if group.device is None:
    return nullcontext()
  return cudnn.on(group.device.gpu[0] if group.device.gpu else ())
