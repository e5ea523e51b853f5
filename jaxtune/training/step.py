"""Defines a training step as a pure function; jit, pmap and vmap are applied outside."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, Key, PyTree, Shaped

from jaxtune import peft
from jaxtune.training import optim

# The entries of a batch that the model reads; the objective reads the others.
INPUTS = ("tokens", "mask", "segments", "branches", "types", "inputs", "inputs_mask")


class State(NamedTuple):
  """Holds all that a step changes or reads of a trial; a group stacks it along a first axis E.

  Attributes:
    step: number of updates done, ().
    seed: seed of dropout, (); the random key of a step is made from seed and step.
    tuned: the trained arrays in fp32, {"params": leaves of the base, "peft": arrays of methods}.
    hyper: the methods' fixed numbers.
    numbers: the optimizer's numbers, `optim.NUMBERS`.
    optimizer: the optax state.
  """

  step: Int[Array, "*E"]
  seed: Int[Array, "*E"]
  tuned: PyTree
  hyper: PyTree
  numbers: dict[str, Array]
  optimizer: PyTree


class Program(NamedTuple):
  """Holds what is compiled into a step, the same for all trials of a group.

  Attributes:
    model: the linen module.
    methods: the methods, as `peft.build` returns them.
    objective: (forward, batch, **numbers) -> (losses (B,), {"weight": (B,), ...}), sums over each
      row.
    make_optimizer: (numbers) -> optax transformation.
    steps: number of steps of the run.
    dropout: whether any trial is trained with dropout or other noise.
    predict: (forward, batch) -> {name: (B, ...)}, the predictions; None for objectives whose
      predictions are generated texts.
    logged: names of the objective's sums that are logged, divided by that of the weights.
    updates: how many updates are made of each batch that the step is handed, one after another.
    adapt: (the objective's numbers, metrics of an update) -> those of the next one; None where
      they stay.
    targets: of how many tokens of a row logits are computed, at least as many as have a weight;
      None: of all.
    common: as `objective`, but -> {name: (B,)}, sums of which it needs the totals over all rows of
      a batch; see `informed`.
  """

  model: Any
  methods: tuple
  objective: Callable
  make_optimizer: Callable
  steps: int
  dropout: bool = False
  predict: Callable | None = None
  logged: tuple[str, ...] = ()
  updates: int = 1
  adapt: Callable | None = None
  targets: int | None = None
  common: Callable | None = None


def forward(
  program: Program, overlay: peft.Overlay, base: PyTree, rng: Key[Array, ""] | None = None,
  backward: bool = False,
) -> Callable:  # fmt: skip
  """Returns (batch, **options) -> the adapted model's output, with dropout if a key is given.

  Args:
    backward: whether the output is differentiated; see `peft.apply`.
  """
  adapted = peft.Adapted(program.methods, *overlay, base)
  apply = partial(peft.apply, program.model, adapted, rng=rng, backward=backward)

  def call(batch, **options):
    inputs = {name: batch[name] for name in INPUTS if name in batch}
    if program.targets is None or "score" not in options or "places" in options:
      return apply(**inputs, **options)
    return _at_targets(partial(apply, **inputs), batch["weights"], program.targets, **options)

  return call


def chooses(model: Any, mesh: Mapping[str, int]) -> bool:
  """Says whether logits can be computed of some tokens: of decoders whose rows are not split.

  Args:
    model: the model's `Config`.
    mesh: the number of devices along each axis.
  """
  return model.head is None and model.encoder is None and mesh.get("sequence", 1) == 1


def _at_targets(
  apply: Callable, weights_BT: Array, most: int, *, targets: Array, **options: Any
) -> PyTree:
  """Scores the positions alone whose next token has a weight, `most` of each row; others get 0."""
  if most >= weights_BT.shape[1]:
    return apply(targets=targets, **options)
  following_BT = jnp.roll(weights_BT, -1, 1).at[:, -1].set(0.0)
  places_BM = jnp.argsort(following_BT == 0, axis=1, stable=True)[:, :most]
  targets_BM = jnp.take_along_axis(targets, places_BM, 1)
  scored = apply(targets=targets_BM, places=places_BM, **options)
  empty = lambda x_BM: jnp.zeros(weights_BT.shape, x_BM.dtype)
  put = lambda x_BM: jnp.put_along_axis(empty(x_BM), places_BM, x_BM, 1, inplace=False)
  return jax.tree.map(put, scored)


def judge(
  program: Program, overlay: peft.Overlay, base: PyTree, batch: dict[str, Shaped[Array, "B ..."]]
) -> dict[str, Shaped[Array, "B ..."]]:
  """Returns the loss and the prediction of each row: {"loss": (B,), "weight": (B,), ...}."""
  call, outputs = forward(program, overlay, base), []

  def cached(*args, **options):  # the loss and the prediction share one forward pass
    if not outputs:
      outputs.append(call(*args, **options))
    return outputs[0]

  numbers = numbers_of(overlay)
  losses_B, others = program.objective(cached, batch, **numbers)
  predicted = {} if program.predict is None else program.predict(cached, batch, **numbers)
  return {"loss": losses_B, **others, **predicted}


def informed(
  program: Program,
  overlay: peft.Overlay,
  base: PyTree,
  batch: dict[str, Shaped[Array, "A B ..."]],
  axis: str | None = None,
  rng: Key[Array, ""] | None = None,
) -> dict[str, Shaped[Array, "A ..."]]:
  """Adds to the parts of a batch, by name (A,), what the objective must know of all their rows.

  It takes a pass through the model. Rows that are computed at once need none: the objective adds up
  their sums itself.

  Args:
    axis: as for `update`.
    rng: for the noise of methods, such as dropout; None for none.
  """
  if program.common is None or (len(batch["tokens"]) == 1 and axis is None):
    return batch
  parts, common = len(batch["tokens"]), program.common

  def of_part(part):
    i, rows = part
    call = forward(program, overlay, base, None if rng is None else jax.random.fold_in(rng, i))
    return common(call, rows, **numbers_of(overlay))

  totals = jax.tree.map(jnp.sum, jax.lax.map(of_part, (jnp.arange(parts), batch)))
  totals = totals if axis is None else jax.lax.psum(totals, axis)
  return batch | {name: jnp.full(parts, x) for name, x in totals.items()}


def _noise(state: State, axis: str | None) -> Key[Array, ""]:
  """Returns the key of a step's noise, which on every device is another one."""
  rng = jax.random.fold_in(jax.random.key(state.seed), state.step)
  return rng if axis is None else jax.random.fold_in(rng, jax.lax.axis_index(axis))


def update(
  program: Program,
  state: State,
  base: PyTree,
  batch: dict[str, Shaped[Array, "A B ..."]],
  axis: str | None = None,
) -> tuple[State, dict[str, Shaped[Array, ""]]]:
  """Takes one optimizer step on a batch with a leading axis A of accumulated parts.

  Losses, weights and gradients are summed over the parts and, with `axis`, over devices, and
  divided once. So padding, accumulation and sharding change nothing.

  Args:
    base: the frozen weights, which are never closed over, donated or differentiated.
    batch: {"tokens": (A, B, T), ...}, what the model and the objective read.
    axis: name of the axis of devices under pmap.

  Returns:
    (next state, {"loss", "accuracy", "tokens", "grad_norm", "finite"}). "tokens" is the sum of all
    weights, and loss and accuracy are divided by it; "finite" says whether the loss and the norms
    of the gradients and of the new weights are finite. Also the program's `logged`.
  """
  noise = _noise(state, axis) if program.dropout else None
  batch = informed(program, peft.Overlay(state.tuned, state.hyper), base, batch, axis, noise)

  def part_loss(tuned, part):
    i, rows = part
    key = None if noise is None else jax.random.fold_in(noise, i)
    overlay = peft.Overlay(tuned, state.hyper)
    call = forward(program, overlay, base, key, backward=True)
    losses_B, sums = program.objective(call, rows, **numbers_of(overlay))
    return jax.tree.map(jnp.sum, (losses_B, sums))

  gradient = partial(jax.value_and_grad(part_loss, has_aux=True), state.tuned)
  total = _summed(gradient, batch)
  (loss_sum, sums), gradients = total if axis is None else jax.lax.psum(total, axis)
  weight = jnp.maximum(sums["weight"], 1e-6)
  gradients = _penalised(program.methods, jax.tree.map(lambda g: g / weight, gradients), state)
  make = program.make_optimizer(state.numbers)
  changes, optimizer = make.update(gradients, state.optimizer, state.tuned)
  changes = optim.scale(changes, state.hyper, state.numbers["head_ratio"])
  metrics = {
    "loss": loss_sum / weight,
    "accuracy": sums["correct"] / weight,
    "tokens": sums["weight"],
    "grad_norm": optax.tree.norm(gradients),
  } | {name: sums[name] / weight for name in program.logged}
  tuned = optax.apply_updates(state.tuned, changes)
  # Where squares of weights overflow, the model's norms return 0, and the loss stays finite.
  checked_3 = jnp.stack([metrics["loss"], metrics["grad_norm"], optax.tree.norm(tuned)])
  metrics["finite"] = jnp.isfinite(checked_3).all()
  state = state._replace(step=state.step + 1, tuned=tuned, optimizer=optimizer)
  return _adapted(program, _adjusted(program, state, gradients), metrics), metrics


def numbers_of(overlay: peft.Overlay) -> dict[str, Array]:
  """Returns the objective's own numbers and arrays, such as beta; see `runs.trial.make_methods`."""
  own = lambda arrays: arrays.get("loss", {}).get("objective", {})
  return own(overlay.hyper) | own(overlay.tuned.get("peft", {}))


def _summed(gradient: Callable, batch: dict[str, Array]) -> PyTree:
  """Sums gradient((i, rows)) over the parts of a batch (A, ...), one after another."""
  count = batch["tokens"].shape[0]
  first = (0, jax.tree.map(lambda x: x[0], batch))
  if count == 1:
    return gradient(first)
  zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(gradient, first))
  add = lambda total, part: (jax.tree.map(jnp.add, total, gradient(part)), None)
  return jax.lax.scan(add, zeros, (jnp.arange(count), batch))[0]


def _penalised(methods: tuple[peft.Method, ...], gradients: PyTree, state: State) -> PyTree:
  """Adds the gradients of the methods' penalties."""
  if all(m.penalty is None for m in methods):
    return gradients

  def penalty(deltas):
    overlay = peft.Overlay({"peft": deltas}, state.hyper)
    return sum(m.penalty(*overlay.arrays_of(m)) for m in methods if m.penalty is not None)

  added = jax.grad(penalty)(state.tuned["peft"])
  return gradients | {"peft": jax.tree.map(jnp.add, gradients["peft"], added)}


def _adjusted(program: Program, state: State, gradients: PyTree) -> State:
  """Lets methods change their own arrays after an update."""
  for m in program.methods:
    if m.adjust is not None:
      trees = (state.tuned["peft"], gradients["peft"], state.hyper)
      trained, fixed = m.adjust(state.step, program.steps, *(peft.arrays_of(m, x) for x in trees))
      deltas = peft.with_arrays(m, state.tuned["peft"], trained)
      tuned, hyper = state.tuned | {"peft": deltas}, peft.with_arrays(m, state.hyper, fixed)
      state = state._replace(tuned=tuned, hyper=hyper)
  return state


def _adapted(program: Program, state: State, metrics: dict[str, Array]) -> State:
  """Lets the objective change its own numbers by what an update has measured."""
  if program.adapt is None:
    return state
  own = state.hyper["loss"]
  own = own | {"objective": program.adapt(own["objective"], metrics)}
  return state._replace(hyper=state.hyper | {"loss": own})
