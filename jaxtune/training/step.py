"""One training step as a pure function; jit, pmap and vmap are applied outside."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, Key, PyTree, Shaped

from jaxtune import peft
from jaxtune.training import optim

# What of a batch a model reads; the rest is the objective's.
INPUTS = ("tokens", "mask", "segments", "types", "inputs", "inputs_mask")


class State(NamedTuple):
  """Everything a trial changes or owns; a group stacks it along a first axis E.

  Attributes:
    step: updates done, ().
    seed: of dropout, (); the key of a step is made of seed and step.
    tuned: {"params": trained base leaves, "peft": deltas}, fp32.
    hyper: the methods' numbers that no gradient trains.
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
  """What is compiled into a step: the same for every trial of a group.

  Attributes:
    model: the linen module.
    methods: from `peft.build`.
    objective: (forward, batch) -> (losses (B,), {"weight": (B,), ...}), sums of each row.
    make_optimizer: (numbers) -> optax transformation.
    steps: of the whole run.
    dropout: whether any trial drops anything.
    predict: (forward, batch) -> arrays (B, ...) that tell what is predicted; None: text is
      generated instead.
  """

  model: Any
  methods: tuple
  objective: Callable
  make_optimizer: Callable
  steps: int
  dropout: bool = False
  predict: Callable | None = None


def forward(
  program: Program, overlay: peft.Overlay, base: PyTree, rng: Key[Array, ""] | None = None
) -> Callable:
  """Returns (batch) -> the adapted model's output; `rng` turns dropout on."""
  adapted = peft.Adapted(program.methods, *overlay, base)
  inputs = lambda batch: {name: batch[name] for name in INPUTS if name in batch}
  return lambda batch: peft.apply(program.model, adapted, rng=rng, **inputs(batch))


def judge(
  program: Program, overlay: peft.Overlay, base: PyTree, batch: dict[str, Shaped[Array, "B ..."]]
) -> dict[str, Shaped[Array, "B ..."]]:
  """Returns the loss and the prediction of each row: {"loss": (B,), "weight": (B,), ...}."""
  call, outputs = forward(program, overlay, base), []

  def once(batch):  # the loss and the prediction share one forward pass
    if not outputs:
      outputs.append(call(batch))
    return outputs[0]

  losses_B, others = program.objective(once, batch)
  predicted = {} if program.predict is None else program.predict(once, batch)
  return {"loss": losses_B, **others, **predicted}


def update(
  program: Program,
  state: State,
  base: PyTree,
  batch: dict[str, Shaped[Array, "A B ..."]],
  axis: str | None = None,
) -> tuple[State, dict[str, Shaped[Array, ""]]]:
  """Takes one optimizer step on a batch with a leading axis A of accumulated parts.

  Losses, weights and gradients are summed over the parts and, with `axis`, over devices, and
  divided once: padding, accumulation and sharding change nothing.

  Args:
    base: the frozen weights: never closed over, donated or differentiated.
    batch: {"tokens", "mask", "weights"}, each (A, B, T).

  Returns:
    (next state, {"loss", "accuracy", "tokens", "grad_norm", "finite"}); "finite" says whether the
    loss and the norms of the gradients and of the new weights are.
  """
  rng = jax.random.fold_in(jax.random.key(state.seed), state.step)
  if axis is not None:
    rng = jax.random.fold_in(rng, jax.lax.axis_index(axis))

  def part(tuned, piece):
    i, rows = piece
    key = jax.random.fold_in(rng, i) if program.dropout else None
    call = forward(program, peft.Overlay(tuned, state.hyper), base, key)
    losses_B, others = program.objective(call, rows)
    return losses_B.sum(), jax.tree.map(jnp.sum, others)

  gradient = partial(jax.value_and_grad(part, has_aux=True), state.tuned)
  total = _summed(gradient, batch)
  (loss_sum, sums), gradients = total if axis is None else jax.lax.psum(total, axis)
  weight = jnp.maximum(sums["weight"], 1e-6)
  gradients = jax.tree.map(lambda g: g / weight, gradients)
  gradients = _penalised(program.methods, gradients, state)
  changes, optimizer = program.make_optimizer(state.numbers).update(
    gradients, state.optimizer, state.tuned
  )
  changes = optim.scale(changes, state.hyper, state.numbers["head_ratio"])
  metrics = {
    "loss": loss_sum / weight,
    "accuracy": sums["correct"] / weight,
    "tokens": sums["weight"],
    "grad_norm": optax.tree.norm(gradients),
  }
  tuned = optax.apply_updates(state.tuned, changes)
  # Weights whose squares overflow make norms zero, and a loss that looks like a number.
  sizes_3 = jnp.stack([metrics["loss"], metrics["grad_norm"], optax.tree.norm(tuned)])
  metrics["finite"] = jnp.isfinite(sizes_3).all()
  state = state._replace(step=state.step + 1, tuned=tuned, optimizer=optimizer)
  return _adjusted(program, state, gradients), metrics


def _summed(gradient: Callable, batch: dict[str, Array]) -> PyTree:
  """Adds gradient((i, rows)) up over the parts of a batch (A, ...), one after another."""
  count = batch["tokens"].shape[0]
  first = (0, jax.tree.map(lambda x: x[0], batch))
  if count == 1:
    return gradient(first)
  zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(gradient, first))
  add = lambda total, piece: (jax.tree.map(jnp.add, total, gradient(piece)), None)
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
